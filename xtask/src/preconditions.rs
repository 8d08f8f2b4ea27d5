//! Requirements that are checked before anything is installed or built. All that is missing is reported at once. A
//! linker and rustc are not checked: this program was built with them.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, bail};

use crate::setup::Needs;
use crate::{apt, command, toolchain};

/// The oldest kernel that loads the program.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Fails with a list of everything that this machine lacks for the subcommand, with `packages` that must still be
/// installed and, in the first run, everything that must still be built.
pub fn check(needs: &Needs, packages: &[String], is_first: bool) -> Result<()> {
    let mut lacks = Vec::new();
    if let Some(because) = needs.kernel {
        lacks.extend(kernel(needs.subcommand, because));
    }
    if is_first {
        lacks.extend(space(needs.gigabytes));
    }
    if !packages.is_empty() {
        lacks.extend(sources(packages)?);
    }
    if !lacks.is_empty() {
        bail!("cargo xtask {} cannot work here:\n{}", needs.subcommand, lacks.join("\n"));
    }
    Ok(())
}

/// Root, a recent kernel, and the permissions of this process.
fn kernel(subcommand: &str, because: &str) -> Vec<String> {
    let mut lacks = Vec::new();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release).is_none_or(|version| version < OLDEST_KERNEL) {
        let (major, minor) = OLDEST_KERNEL;
        lacks.push(format!(
            "- this kernel is Linux {}, and {major}.{minor} is the oldest that works\n  try: a newer kernel, or \
             a virtual \
             machine that has one",
            release.trim()
        ));
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        lacks.push(
            "- this kernel has no BTF: /sys/kernel/btf/vmlinux is missing\n  try: a kernel with CONFIG_DEBUG_INFO_BTF, \
             such as Debian's; in a container or chroot, mount sysfs at /sys"
                .to_owned(),
        );
    }
    if !command::is_root() {
        lacks.push(format!(
            "- it needs root: it {because}\n  try: sudo --preserve-env=HOME,CARGO_HOME,RUSTUP_HOME env \"PATH=$PATH\" \
             cargo xtask {subcommand}"
        ));
        return lacks; // The rest is only root's.
    }
    for (name, program, script) in [
        ("make a network namespace", "unshare", "exec unshare --net true"),
        (
            "mount a BPF file system below /run",
            "mount",
            "at=$(mktemp --directory /run/tollgate-check-XXXXXX) && trap 'rmdir \"$at\"' EXIT \
             && mount -t bpf bpf \"$at\" && \
             umount \"$at\"",
        ),
        (
            "make veth pairs and bridges",
            "ip",
            "exec unshare --net sh -c 'ip link add name veth0 type veth peer name veth1 && ip link add name \
             bridge0 type bridge'",
        ),
    ] {
        if command::find(program).is_none() {
            continue; // It is to be installed, and this is tried again then.
        }
        let tried = command::command("sh").args(["-c", script]).stdin(Stdio::null()).output();
        let said = match &tried {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        lacks.push(format!(
            "- this process cannot {name}: {said}\n  try: outside of a container, or in one with all capabilities and \
             without a seccomp filter \
             (docker run --privileged); for what the kernel does not know, a kernel with it, such as Debian's"
        ));
    }
    lacks
}

/// `6.1.0-53-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Free space below target/, including what is already used there.
fn space(gigabytes: u64) -> Option<String> {
    let target = command::target();
    let there = target.ancestors().find(|ancestor| ancestor.is_dir())?;
    let figure = |program: &str, args: &[&str]| {
        let text = command::output(command::command(program).args(args).arg(there)).ok()?;
        text.lines().last()?.split_whitespace().next()?.parse::<u64>().ok()
    };
    let free = figure("df", &["--block-size=1M", "--output=avail"])?;
    let used = if target.is_dir() { figure("du", &["--summarize", "--block-size=1M"])? } else { 0 };
    let wanted = (gigabytes * 1024).saturating_sub(used);
    (free < wanted).then(|| {
        format!(
            "- {} has {free} MiB left, and building takes about {wanted} MiB more\n  try: make room, or set \
             CARGO_TARGET_DIR to a directory that has it",
            there.display()
        )
    })
}

/// Whether apt's sources have these packages, and a compiler that is new enough among them.
fn sources(packages: &[String]) -> Result<Option<String>> {
    let absent: Vec<_> = apt::without_candidate(packages)?;
    let compiler = packages.iter().any(|package| package == toolchain::DEBIAN_RUSTC_PACKAGE);
    let candidate = if compiler { apt::candidate(toolchain::DEBIAN_RUSTC_PACKAGE)? } else { None };
    let is_old = compiler && !candidate.as_deref().is_some_and(toolchain::is_new_enough);
    if !is_old && absent.is_empty() {
        return Ok(None);
    }
    let found = match candidate {
        _ if !is_old => format!("- apt's sources have no {}", absent.join(", no ")),
        Some(candidate) => format!(
            "- apt's sources have {} {candidate}, and the XDP program takes 1.{} or later",
            toolchain::DEBIAN_RUSTC_PACKAGE,
            toolchain::OLDEST_RUSTC
        ),
        None => format!("- apt's sources have no {}", toolchain::DEBIAN_RUSTC_PACKAGE),
    };
    let codename = codename();
    let suite = format!("{codename}-security");
    if codename != "bookworm" {
        return Ok(Some(format!(
            "{found}\n  try: Debian 12 (bookworm) with its suite bookworm-security; docs/adr/0005-toolchain-routes.md \
             names \
             another toolchain"
        )));
    }
    if is_old && apt::archive(&suite)?.is_none() {
        return Ok(Some(format!(
            "{found}\n  cause: apt has no source with the suite {suite} (Debian's security archive)\n{}",
            security_hint(apt::archive(&codename)?.as_deref(), &suite)
        )));
    }
    Ok(Some(format!(
        "{found}\n  try: apt-get update, with the suites bookworm and {suite} among the sources"
    )))
}

/// How to add the suite to apt's sources. Mirrors have it in `debian-security`, beside `debian`, which is the archive
/// that this host has.
fn security_hint(archive: Option<&str>, suite: &str) -> String {
    let file = "/etc/apt/sources.list.d/security.list";
    match archive.and_then(|archive| archive.trim_end_matches('/').strip_suffix("/debian")) {
        Some(mirror) => format!(
            "  try, as root: echo 'deb {mirror}/debian-security {suite} main' >> {file} && apt-get update\n  if \
             this mirror \
             does not have the suite, apt-get update says so: name one that does in {file}"
        ),
        None => format!(
            "  try: in {file}, add a line for {suite} like the one for bookworm in apt's sources, with the address \
             at which \
             your mirror has `debian-security`; then apt-get update"
        ),
    }
}

fn codename() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or_default().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(version("6.1.0-53-amd64\n"), Some((6, 1)));
        assert_eq!(version("6.18.44"), Some((6, 18)));
        assert_eq!(version("5.10-rc1"), Some((5, 10)));
        assert_eq!(version("none"), None);
        assert!(version("5.19.17") < Some(OLDEST_KERNEL) && version("10.0.1") > Some(OLDEST_KERNEL));
    }

    #[test]
    fn the_security_archive_is_looked_for_on_the_mirror_of_this_host() {
        for archive in ["http://mirror.example/debian", "http://mirror.example/debian/"] {
            let hint = security_hint(Some(archive), "bookworm-security");
            let line = "echo 'deb http://mirror.example/debian-security bookworm-security main' >> /etc/apt/";
            assert!(hint.contains(line), "{hint}");
        }
        for archive in [None, Some("https://mirror.example/remote")] {
            let hint = security_hint(archive, "bookworm-security");
            assert!(!hint.contains("http") && hint.contains("a line for bookworm-security"), "{hint}");
        }
    }

    #[test]
    fn a_disk_that_is_too_small_is_told() {
        assert!(space(1 << 30).unwrap().contains("MiB left"));
        assert_eq!(space(0), None);
    }
}
