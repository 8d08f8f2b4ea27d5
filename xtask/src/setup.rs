//! `cargo xtask setup`: what building, testing, measuring and showing take, installed where it is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::toolchain::{self, Toolchain};
use crate::{apt, command};

/// What the other subcommands work with.
pub struct Tools {
    /// Turns `lb-ebpf` into an object.
    pub bpf: Toolchain,
    /// Prometheus's checker of metrics pages.
    pub promtool: PathBuf,
    /// The machine that boots another Linux.
    pub qemu: PathBuf,
    /// Debian's Linux 6.1: the image that QEMU boots.
    pub linux_6_1: PathBuf,
}

/// Programs that tests, demo, bench and kernels start, and the Debian package of each.
const PROGRAMS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("ethtool", "ethtool"), ("busybox", "busybox-static"), ("cpio", "cpio")];

/// `cargo xtask setup`.
pub fn show() -> Result<()> {
    let Tools { bpf, promtool, qemu, linux_6_1 } = run()?;
    println!("BPF toolchain: {bpf}");
    println!("promtool:      {}", promtool.display());
    println!("QEMU:          {}", qemu.display());
    println!("Linux 6.1:     {}", linux_6_1.display());
    println!("Nothing is missing. Next: cargo xtask demo");
    Ok(())
}

/// Finds everything, and installs what is missing.
pub fn run() -> Result<Tools> {
    let toolchain = toolchain::find();
    let without = PROGRAMS.iter().filter(|(program, _)| command::find(program).is_none());
    let mut packages: Vec<_> = without.map(|&(_, package)| package.to_owned()).collect();
    if toolchain.is_none() {
        packages.extend(toolchain::missing_packages()?);
    }
    apt::install(&packages)?;
    let bpf = match toolchain {
        Some(bpf) => bpf,
        None => toolchain::make()?,
    };
    Ok(Tools { bpf, promtool: promtool()?, qemu: qemu()?, linux_6_1: linux_6_1()? })
}

/// The one in PATH, or out of Debian's package without installing the server that it belongs to.
fn promtool() -> Result<PathBuf> {
    match command::find("promtool") {
        Some(promtool) => Ok(promtool),
        None => keep_from_package(
            "promtool",
            || Ok("prometheus".into()),
            |files| Ok(files.join("usr/bin/promtool")),
        ),
    }
}

/// The one in PATH, or Debian's with the libraries it needs, unpacked: installing it would remove the `qemu-utils` of
/// another version, which may be what the user's own machines run on.
fn qemu() -> Result<PathBuf> {
    if let Some(qemu) = command::find("qemu-system-x86_64") {
        return Ok(qemu);
    }
    let setup = command::target().join("setup");
    let start = setup.join("qemu-system-x86_64");
    if !start.is_file() {
        let files = setup.join("qemu");
        apt::unpack(&apt::closure("qemu-system-x86")?, &files)?;
        let program = files.join("usr/bin/qemu-system-x86_64");
        ensure!(program.is_file(), "the package has no {}", program.display());
        // It finds its firmware beside itself. The script is there only once everything that it starts is.
        let script = "#!/bin/sh\n\
            qemu=\"$(dirname \"$0\")/qemu\"\n\
            LD_LIBRARY_PATH=\"$qemu/lib/x86_64-linux-gnu:$qemu/usr/lib/x86_64-linux-gnu\"\n\
            export LD_LIBRARY_PATH\n\
            exec \"$qemu/usr/bin/qemu-system-x86_64\" \"$@\"\n";
        fs::write(&start, script)
            .and_then(|()| fs::set_permissions(&start, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", start.display()))?;
    }
    Ok(start)
}

/// Debian's kernel for virtual machines: everything Tollgate needs is built in, so no module is kept.
fn linux_6_1() -> Result<PathBuf> {
    let newest_package = || {
        let names = apt::names("linux-image-6.1.0-")?;
        let numbered = names.into_iter().filter_map(|name| {
            let number =
                name.strip_prefix("linux-image-6.1.0-")?.strip_suffix("-cloud-amd64")?.parse::<u32>().ok()?;
            Some((number, name))
        });
        let newest = numbered.max().map(|(_, name)| name);
        newest.context("apt knows no linux-image-6.1.0-*-cloud-amd64\ntry: apt-get update, with Debian 12 among its sources")
    };
    keep_from_package("vmlinuz-6.1", newest_package, |files| {
        let boot = files.join("boot");
        let mut entries = fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))?;
        let image = entries.find_map(|entry| {
            let path = entry.ok()?.path();
            path.file_name()?.to_str()?.starts_with("vmlinuz-").then_some(path)
        });
        image.with_context(|| format!("there is no vmlinuz in {}", boot.display()))
    })
}

/// `target/setup/NAME`, taken out of a Debian package if it is not there yet.
fn keep_from_package(
    name: &str,
    package: impl FnOnce() -> Result<String>,
    file: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let setup = command::target().join("setup");
    let kept = setup.join(name);
    if !kept.is_file() {
        let files = setup.join(format!("{name}.package"));
        apt::unpack(&[package()?], &files)?;
        let wanted = file(&files)?;
        ensure!(wanted.is_file(), "the package has no {}", wanted.display());
        fs::rename(&wanted, &kept)
            .with_context(|| format!("cannot move {} to {}", wanted.display(), kept.display()))?;
        fs::remove_dir_all(&files).with_context(|| format!("cannot remove {}", files.display()))?;
    }
    Ok(kept)
}
