//! `cargo xtask kernels`: the program's tests on the oldest supported kernel, in a fully emulated virtual machine
//! that runs everywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};

use crate::build::{self, Built};
use crate::report::{Counts, Report};
use crate::setup::{self, Needs, Part};
use crate::{command, log};

/// Seconds after which a virtual machine is stopped. Booting and loading take about five.
const LONGEST_RUN: &str = "2100";

/// Prefix of the line in which the guest's init reports its kernel.
const KERNEL: &str = "tollgate-guest kernel ";

/// Prefix of the line in which the guest's init reports the exit status of the tests.
const EXIT_STATUS: &str = "tollgate-guest exit status ";

/// A virtual machine, and the tests that it runs.
struct Machine {
    /// Its name in the output.
    name: &'static str,
    /// QEMU's options.
    options: &'static [&'static str],
    /// The environment of its init, passed on the kernel command line.
    environment: &'static str,
}

/// The machine for most tests.
const USUAL: Machine =
    Machine { name: "two processors", options: &["-smp", "2"], environment: "TESTS=\"--skip timing::\"" };

/// A machine whose clock counts instructions: each takes one nanosecond, and nothing else takes time.
const COUNTING: Machine = Machine {
    name: "a clock of instructions",
    options: &["-smp", "1", "-icount", "shift=0,sleep=off"],
    environment: "TESTS=timing:: TOLLGATE_TIME_IS_INSTRUCTIONS=1",
};

const NEEDS: Needs = Needs {
    subcommand: "kernels",
    kernel: None,
    parts: &[Part::Emulator],
    built: "kernels",
    minutes: 8,
    then: Some("the tests"),
    gigabytes: 6,
};

/// Builds, then runs the program's tests in Linux 6.1 and shows them as they come.
pub fn run() -> Result<()> {
    setup::check(&NEEDS)?;
    let mut report = Report::new(true);
    run_tests(&build::run(&NEEDS)?, &mut report);
    report.finish("tests")
}

/// Runs the program's tests in Linux 6.1.
pub fn run_tests(built: &Built, report: &mut Report) {
    let initramfs = || {
        let tests = built.test_executable(["--test", "program"])?;
        let replay = built.object.with_file_name("replay-xdp");
        pack(&[(&tests, "tests"), (&built.object, "tollgate-xdp"), (&replay, "replay-xdp")])
    };
    let Some(initramfs) = report.step("Linux 6.1: build", initramfs) else { return };
    for machine in [USUAL, COUNTING] {
        report.group(&format!("Linux 6.1: {}", machine.name), || boot(&initramfs, &machine)?.verdict("6.1."));
    }
}

/// An initramfs with these files in its root directory, the libraries they need, and an init that runs those of
/// `/tests` that the kernel's command line names.
fn pack(files: &[(&Path, &str)]) -> Result<PathBuf> {
    let place = command::target().join("kernels");
    let root = place.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    for directory in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))
            .with_context(|| format!("cannot create {}", root.display()))?;
    }
    let busybox = command::find("busybox").context("busybox is missing\ntry: cargo xtask setup")?;
    copy_with_libraries(&busybox, &root, Path::new("bin/busybox"))?;
    for (from, to) in files {
        copy_with_libraries(from, &root, Path::new(to))?;
    }
    let init = root.join("init");
    fs::write(&init, init_script()).with_context(|| format!("cannot write {}", init.display()))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;

    let initramfs = place.join("initramfs");
    command::run_aside(
        command::command("sh")
            .args(["-c", "find . | cpio --quiet --create --format=newc --owner=0:0 > \"$0\""])
            .arg(&initramfs)
            .current_dir(&root),
    )?;
    Ok(initramfs)
}

/// The init script of the guest.
fn init_script() -> String {
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         echo 1 > /proc/sys/net/core/bpf_jit_enable\n\
         ifconfig lo up\n\
         echo \"{KERNEL}$(uname -r)\"\n\
         TOLLGATE_BPF_OBJECT=/tollgate-xdp /tests --test-threads=1 $TESTS\n\
         status=$?\n\
         echo; echo \"{EXIT_STATUS}$status\"\n\
         reboot -f\n"
    )
}

/// Copies a file, and the shared libraries of a program to where its loader looks for them.
fn copy_with_libraries(from: &Path, root: &Path, to: &Path) -> Result<()> {
    copy(from, &root.join(to))?;
    let ldd = command::command("ldd").arg(from).stderr(Stdio::null()).output().context("cannot start ldd")?;
    if !ldd.status.success() {
        return Ok(()); // It is no program, or a static one.
    }
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
    for word in String::from_utf8_lossy(&ldd.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(word), &root.join(word.trim_start_matches('/')))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let directory = to.parent().context("a file is in a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The guest's output until the machine ended.
struct Console {
    text: String,
    /// Whether the machine was ended because it took too long.
    timed_out: bool,
}

/// Boots the kernel and returns when the machine has ended.
fn boot(initramfs: &Path, machine: &Machine) -> Result<Console> {
    let (qemu, kernel) = (setup::qemu()?, setup::linux_6_1()?);
    log::say(format_args!("kernels: booting {} under emulation, with {}", kernel.display(), machine.name));
    let (text, status) = log::record(
        command::command("timeout")
            // In our process group: Ctrl-C ends the machine, too.
            .args(["--foreground", "--kill-after=5", LONGEST_RUN])
            .arg(&qemu)
            .args(["-accel", "tcg", "-cpu", "max", "-m", "2048"])
            .args(machine.options)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(initramfs)
            // A panic ends the machine at once.
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 {}", machine.environment)),
    )?;
    let timed_out = status.code() == Some(124);
    ensure!(status.success() || timed_out, "{} failed: {status}", qemu.display());
    Ok(Console { text, timed_out })
}

impl Console {
    /// The rest of the line with this prefix.
    fn said(&self, prefix: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.trim().strip_prefix(prefix))
    }

    /// The number of tests that passed. No output, another kernel, an early end and an empty run are errors.
    fn verdict(&self, kernel: &str) -> Result<Counts> {
        let Some(booted) = self.said(KERNEL) else {
            bail!("the guest did not come as far as its init{}", self.timeout_note());
        };
        ensure!(
            booted.starts_with(kernel),
            "the guest runs Linux {booted}, not {kernel}x\ntry: rm -r target/setup"
        );
        match self.said(EXIT_STATUS) {
            Some("0") => {
                let counts = Counts::of_libtest(&self.text)?;
                ensure!(counts.passed > 0, "the tests in Linux {booted} ended without one that ran");
                Ok(counts)
            }
            Some(status) => bail!("the tests failed in Linux {booted} with exit status {status}"),
            None => bail!("Linux {booted} ended before the tests did{}", self.timeout_note()),
        }
    }

    fn timeout_note(&self) -> String {
        if self.timed_out { format!(" and was stopped after {LONGEST_RUN} s") } else { String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(console: &[&str], timed_out: bool) -> Result<u64, String> {
        let verdict = Console { text: console.join("\r\n"), timed_out }.verdict("6.1.");
        verdict.map(|counts| counts.passed).map_err(|error| error.to_string())
    }

    const BOOTED: &str = "tollgate-guest kernel 6.1.0-56-cloud-amd64";
    const PASSED: &str = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
    const ENDED: &str = "tollgate-guest exit status 0";

    #[test]
    fn passes_only_with_tests_that_ran() {
        assert_eq!(verdict(&[BOOTED, PASSED, ENDED], false), Ok(12));
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 12 filtered out";
        assert!(verdict(&[BOOTED, none, ENDED], false).unwrap_err().contains("without one that ran"));
        assert!(verdict(&[BOOTED, ENDED], false).unwrap_err().contains("without a result"));
    }

    #[test]
    fn fails_when_the_guest_does_not_say_that_it_passed() {
        assert!(verdict(&[], false).unwrap_err().contains("did not come as far as its init"));
        assert!(verdict(&[BOOTED, PASSED], false).unwrap_err().contains("ended before the tests did"));
        assert!(verdict(&[BOOTED], true).unwrap_err().contains("was stopped after"));
        let failed = "test result: FAILED. 11 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        let status = "tollgate-guest exit status 101";
        assert!(verdict(&[BOOTED, failed, status], false).unwrap_err().contains("exit status 101"));
    }

    #[test]
    fn fails_on_another_kernel() {
        let other = "tollgate-guest kernel 6.12.101+deb12-cloud-amd64";
        assert!(verdict(&[other, PASSED, ENDED], false).unwrap_err().contains("runs Linux 6.12"));
    }
}
