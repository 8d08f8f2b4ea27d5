//! `cargo xtask setup`: the tools that building, testing, measuring and the demo need. They are checked first, and
//! installed if missing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::toolchain::{self, Toolchain};
use crate::{apt, command, preconditions};

/// A set of tools in addition to the BPF toolchain, which every subcommand needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// To make network namespaces.
    Namespaces,
    /// Checkers of other projects: promtool for metrics pages, systemd-analyze for units.
    Checkers,
    /// The machine that boots Debian's Linux 6.1.
    Emulator,
}

/// The requirements of a subcommand.
pub struct Needs {
    /// Its name.
    pub subcommand: &'static str,
    /// Why it needs root and this kernel; `None`: it needs neither.
    pub kernel: Option<&'static str>,
    /// Tools that it starts.
    pub parts: &'static [Part],
    /// A path below target/ that exists after the first build for this subcommand.
    pub built: &'static str,
    /// Minutes for installing and building from nothing, on two idle CPUs.
    pub minutes: u32,
    /// What runs afterwards and how long it takes, such as "the tests for 20 minutes"; `None`: nothing.
    pub then: Option<&'static str>,
    /// Space below target/, in GiB.
    pub gigabytes: u64,
}

/// Programs that are started, the Debian package of each, and by what.
const PROGRAMS: [(&str, &str, Part); 6] = [
    ("ip", "iproute2", Part::Namespaces),
    ("tc", "iproute2", Part::Namespaces),
    ("ethtool", "ethtool", Part::Namespaces),
    ("nft", "nftables", Part::Checkers),
    ("busybox", "busybox-static", Part::Emulator),
    ("cpio", "cpio", Part::Emulator),
];

/// The requirements of all subcommands.
const ALL: Needs = Needs {
    subcommand: "setup",
    kernel: None,
    parts: &[Part::Namespaces, Part::Checkers, Part::Emulator],
    built: "setup",
    minutes: 5,
    then: None,
    gigabytes: 3,
};

/// `cargo xtask setup`.
pub fn show() -> Result<()> {
    check(&ALL)?;
    let bpf = run(&ALL)?;
    println!("BPF toolchain: {bpf}");
    println!("promtool:      {}", promtool()?.display());
    println!("systemd:       {}", systemd_analyze()?.display());
    println!("QEMU:          {}", qemu()?.display());
    println!("Linux 6.1:     {}", linux_6_1()?.display());
    println!("Nothing is missing. Next: cargo xtask demo");
    Ok(())
}

/// Checks that the subcommand can work at all, before anything is installed or built. Announces the duration of a
/// first run, and the missing packages.
pub fn check(needs: &Needs) -> Result<()> {
    let (install, unpack) = (installed(needs)?, unpacked(needs)?);
    let is_built = command::target().join(needs.built).exists();
    let missing = [&install[..], &unpack[..]].concat();
    preconditions::check(needs, &missing, !is_built || !missing.is_empty())?;
    if !is_built {
        eprintln!("{}", first_run(needs));
    }
    if !install.is_empty() {
        // Without the number where apt cannot tell: it says why when it installs.
        let all = apt::closure(&install).map_or_else(|_| String::new(), |all| format!("{} ", all.len()));
        eprintln!("setup: installs {all}Debian packages: {}, and their dependencies", install.join(" "));
    }
    if !unpack.is_empty() {
        eprintln!("setup: unpacks under target/setup, without installing them: {}", unpack.join(" "));
    }
    Ok(())
}

/// The announcement of a first run.
fn first_run(needs: &Needs) -> String {
    let then = needs.then.map(|then| format!(", then {then}")).unwrap_or_default();
    format!(
        "{}: first run, on 2 idle CPUs: about {} minutes to install and build{then}; up to {} GiB under target/",
        needs.subcommand, needs.minutes, needs.gigabytes
    )
}

/// Finds everything that the subcommand needs, and installs what is missing.
pub fn run(needs: &Needs) -> Result<Toolchain> {
    let packages = installed(needs)?;
    if !packages.is_empty() {
        apt::install(&packages)?;
        // Some of it can be tried only now.
        preconditions::check(needs, &[], false)?;
    }
    let bpf = match toolchain::find() {
        Some(bpf) => bpf,
        None => toolchain::make()?,
    };
    if needs.parts.contains(&Part::Checkers) {
        promtool()?;
        systemd_analyze()?;
    }
    if needs.parts.contains(&Part::Emulator) {
        qemu()?;
        linux_6_1()?;
    }
    Ok(bpf)
}

/// Debian packages that are to be installed.
fn installed(needs: &Needs) -> Result<Vec<String>> {
    let without = PROGRAMS
        .iter()
        .filter(|(program, _, part)| needs.parts.contains(part) && command::find(program).is_none());
    let mut packages: Vec<_> = without.map(|&(_, package, _)| package.to_owned()).collect();
    packages.dedup();
    if toolchain::find().is_none() {
        packages.extend(toolchain::missing_packages()?);
    }
    Ok(packages)
}

/// Debian packages that are only to be unpacked, below target/.
fn unpacked(needs: &Needs) -> Result<Vec<String>> {
    let mut packages = Vec::new();
    let is_kept = |name: &str| command::find(name).is_some() || kept(name).is_file();
    if needs.parts.contains(&Part::Checkers) {
        if !is_kept("promtool") {
            packages.push("prometheus".into());
        }
        if !is_kept("systemd-analyze") {
            packages.push("systemd".into());
        }
    }
    if needs.parts.contains(&Part::Emulator) {
        if !is_kept("qemu-system-x86_64") {
            packages.push("qemu-system-x86".into());
        }
        if !is_kept("vmlinuz-6.1") {
            packages.push(newest_linux_6_1()?);
        }
    }
    Ok(packages)
}

/// The one in PATH, or out of Debian's package without installing the server that it belongs to.
pub fn promtool() -> Result<PathBuf> {
    match command::find("promtool") {
        Some(promtool) => Ok(promtool),
        None => keep_from_package(
            "promtool",
            || Ok("prometheus".into()),
            |files| Ok(files.join("usr/bin/promtool")),
        ),
    }
}

/// The one in PATH, or Debian's with systemd's own units, which it reads. Installing that package would install an init
/// system.
pub fn systemd_analyze() -> Result<PathBuf> {
    let settings = "LD_LIBRARY_PATH=\"$LD_LIBRARY_PATH:$files/usr/lib/x86_64-linux-gnu/systemd\"\n\
        export SYSTEMD_UNIT_PATH=\"$files/lib/systemd/system\"\n";
    start_unpacked("systemd-analyze", "systemd", settings, |files| {
        // Aliases: their absolute targets lead out of `files`, and systemd-analyze warns about each.
        let units = files.join("lib/systemd/system");
        command::run_aside(command::command("find").arg(units).args(["-type", "l", "-delete"]))
    })
}

/// The one in PATH, or Debian's: installing that package would remove the `qemu-utils` of another version, which the
/// user's virtual machines may need. It finds its firmware relative to itself.
pub fn qemu() -> Result<PathBuf> {
    start_unpacked("qemu-system-x86_64", "qemu-system-x86", "", |_| Ok(()))
}

/// The program in PATH, or a script in target/setup that starts Debian's, which is unpacked there with the libraries
/// that it needs. `settings` are lines of that script; `prepare` changes the unpacked files.
fn start_unpacked(
    name: &str,
    package: &str,
    settings: &str,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    if let Some(program) = command::find(name) {
        return Ok(program);
    }
    let start = kept(name);
    if !start.is_file() {
        let files = start.with_file_name(format!("{name}.files"));
        apt::unpack(&apt::closure(&[package.to_owned()])?, &files)?;
        let program = files.join("usr/bin").join(name);
        ensure!(program.is_file(), "the package has no {}", program.display());
        prepare(&files)?;
        // Written last: an interrupted setup begins again.
        let script = format!(
            "#!/bin/sh\n\
             files=\"$(dirname \"$0\")/{name}.files\"\n\
             export LD_LIBRARY_PATH=\"$files/lib/x86_64-linux-gnu:$files/usr/lib/x86_64-linux-gnu\"\n\
             {settings}\
             exec \"$files/usr/bin/{name}\" \"$@\"\n"
        );
        fs::write(&start, script)
            .and_then(|()| fs::set_permissions(&start, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", start.display()))?;
    }
    Ok(start)
}

/// The package of Debian's kernel for virtual machines: everything Tollgate needs is built in, so no module is kept.
fn newest_linux_6_1() -> Result<String> {
    let numbered = apt::names("linux-image-6.1.0-")?.into_iter().filter_map(|name| {
        let number =
            name.strip_prefix("linux-image-6.1.0-")?.strip_suffix("-cloud-amd64")?.parse::<u32>().ok()?;
        Some((number, name))
    });
    let newest = numbered.max().map(|(_, name)| name);
    newest.context(
        "apt knows no linux-image-6.1.0-*-cloud-amd64\ntry: apt-get update, with Debian 12 among its sources",
    )
}

/// Its image.
pub fn linux_6_1() -> Result<PathBuf> {
    keep_from_package("vmlinuz-6.1", newest_linux_6_1, |files| {
        let boot = files.join("boot");
        let mut entries = fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))?;
        let image = entries.find_map(|entry| {
            let path = entry.ok()?.path();
            path.file_name()?.to_str()?.starts_with("vmlinuz-").then_some(path)
        });
        image.with_context(|| format!("there is no vmlinuz in {}", boot.display()))
    })
}

/// Where a file of a Debian package is kept.
fn kept(name: &str) -> PathBuf {
    command::target().join("setup").join(name)
}

/// `target/setup/NAME`, taken out of a Debian package if it is not there yet.
fn keep_from_package(
    name: &str,
    package: impl FnOnce() -> Result<String>,
    file: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let kept = kept(name);
    if !kept.is_file() {
        let files = kept.with_file_name(format!("{name}.package"));
        apt::unpack(&[package()?], &files)?;
        let wanted = file(&files)?;
        ensure!(wanted.is_file(), "the package has no {}", wanted.display());
        fs::rename(&wanted, &kept)
            .with_context(|| format!("cannot move {} to {}", wanted.display(), kept.display()))?;
        fs::remove_dir_all(&files).with_context(|| format!("cannot remove {}", files.display()))?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_run_is_announced_with_what_runs_after_the_build() {
        let needs = Needs { subcommand: "test", minutes: 15, then: Some("the tests for 20 minutes"), ..ALL };
        assert_eq!(
            first_run(&needs),
            "test: first run, on 2 idle CPUs: about 15 minutes to install and build, then the tests for 20 minutes; \
             up to \
             3 GiB under target/"
        );
        assert!(first_run(&ALL).contains("install and build; up to"));
    }
}
