//! Debian packages: which are installed, installing them, and unpacking them without installing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

use anyhow::{Context as _, Result, bail};

use crate::{command, log};

/// Waits for another apt: a new machine may be installing its security updates (unattended-upgrades).
const WAIT_FOR_LOCK: &str = "-oDPkg::Lock::Timeout=300";

/// The packages that are not installed.
pub fn missing(packages: &[String]) -> Result<Vec<String>> {
    require_apt(packages)?;
    // Exits with 1 when it does not know one of them, and still prints the others.
    let output = command::command("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(packages)
        .stderr(Stdio::null())
        .output()
        .context("cannot start dpkg-query")?;
    let known = String::from_utf8_lossy(&output.stdout);
    let installed = |package: &String| known.lines().any(|line| line == format!("{package} installed"));
    Ok(packages.iter().filter(|package| !installed(package)).cloned().collect())
}

/// Installs the packages; if that is not permitted, the error shows the command to run.
pub fn install(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    require_apt(packages)?;
    // Nothing of the user's is removed to make room for a package of ours.
    let arguments = ["install", "--yes", "-qq", "--no-install-recommends", "--no-remove", WAIT_FOR_LOCK];
    let Some(mut install) = as_root("apt-get") else {
        bail!(
            "these Debian packages are missing, and only root may install them\ntry: sudo apt-get update && \
             sudo apt-get install --no-install-recommends {}\nthen the same cargo xtask again",
            packages.join(" ")
        );
    };
    log::say("setup: installing packages: one to three minutes");
    refresh();
    log::run_quietly("apt-get-install", install.args(arguments).args(packages)).context(
        "apt-get could not install what Tollgate needs\ntry: run `apt-get update`, and read its errors",
    )
}

/// The packages that would be installed: these and their missing dependencies.
pub fn closure(packages: &[String]) -> Result<Vec<String>> {
    require_apt(packages)?;
    refresh();
    let plan = command::output(
        command::command("apt-get")
            .args(["install", "--simulate", "-qq", "--no-install-recommends"])
            .args(packages),
    )
    .with_context(|| format!("apt-get cannot install {}\ntry: sudo apt-get update", packages.join(" ")))?;
    // `Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])`
    let packages = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    Ok(packages.map(str::to_owned).collect())
}

/// Downloads packages and unpacks them under `into`: nothing is installed, no service starts.
pub fn unpack(packages: &[String], into: &Path) -> Result<()> {
    require_apt(packages)?;
    // In apt's order: dependencies first.
    let [others @ .., wanted] = packages else { return Ok(()) };
    log::say(format_args!(
        "setup: unpacking Debian's {wanted}{} under {}; it is not installed",
        if others.is_empty() { String::new() } else { format!(" and {} dependencies", others.len()) },
        into.display()
    ));
    let downloads = into.join("download");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    refresh();
    log::run_quietly(
        "apt-get-download",
        command::command("apt-get")
            // Downloading as another user than root's would need a directory that this user may write.
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(&downloads),
    )
    .context("apt-get could not download what Tollgate needs\ntry: sudo apt-get update")?;
    for entry in fs::read_dir(&downloads)? {
        let archive = entry?.path();
        command::run_aside(command::command("dpkg-deb").arg("--extract").args([&archive, into]))?;
    }
    fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))
}

/// The names of all known packages with this prefix.
pub fn names(prefix: &str) -> Result<Vec<String>> {
    require_apt(&[format!("{prefix}*")])?;
    refresh();
    let names = command::output(command::command("apt-cache").args(["pkgnames", prefix]))?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// The version that would be installed, if there is one.
pub fn candidate(package: &str) -> Result<Option<String>> {
    refresh();
    let policy = command::output(command::command("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

/// The packages without an installable version.
pub fn without_candidate(packages: &[String]) -> Result<Vec<String>> {
    require_apt(packages)?;
    let mut absent = Vec::new();
    for package in packages {
        if candidate(package)?.is_none() {
            absent.push(package.clone());
        }
    }
    Ok(absent)
}

/// The address of the first of apt's sources that offers this Debian suite.
pub fn archive(codename: &str) -> Result<Option<String>> {
    let policy = command::output(command::command("apt-cache").arg("policy").env("LC_ALL", "C"))?;
    Ok(archive_in(&policy, codename))
}

/// [`archive`], in what `apt-cache policy` prints:
///
/// ```text
///  500 http://HOST/debian bookworm/main amd64 Packages
///      release v=12.15,o=Debian,a=oldstable,n=bookworm,l=Debian,c=main,b=amd64
/// ```
fn archive_in(policy: &str, codename: &str) -> Option<String> {
    let wanted = format!("n={codename}");
    let lines: Vec<_> = policy.lines().map(str::trim).collect();
    lines.windows(2).find_map(|pair| {
        let fields: Vec<_> = pair[1].strip_prefix("release ")?.split(',').collect();
        let is_it = fields.contains(&"o=Debian") && fields.contains(&wanted.as_str());
        pair[0].split(' ').nth(1).filter(|_| is_it).map(str::to_owned)
    })
}

/// The direct dependencies of a package; empty if it is unknown.
pub fn dependencies(package: &str) -> Result<Vec<String>> {
    require_apt(&[package.to_owned()])?;
    refresh();
    let output = command::command("apt-cache")
        .args(["depends", package])
        .stderr(Stdio::null())
        .output()
        .context("cannot start apt-cache")?;
    let lines = String::from_utf8_lossy(&output.stdout);
    let depended = lines.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depended.map(str::to_owned).collect())
}

/// Updates the package lists, once, if this process has the permission.
fn refresh() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Some(mut update) = as_root("apt-get") else { return };
        log::say("setup: reading the package lists");
        if let Err(error) = log::run_quietly("apt-get-update", update.args(["update", "-qq"])) {
            log::say(format_args!(
                "setup: {error}\nsetup: continuing with the package lists of the last update"
            ));
        }
    });
}

/// Runs the program as root, by `sudo` if that needs no password.
fn as_root(program: &str) -> Option<Command> {
    let mut command = if command::is_root() {
        command::command(program)
    } else {
        let sudo = command::find("sudo")?;
        let may = Command::new(&sudo).args(["-n", "true"]).stderr(Stdio::null()).status();
        if !may.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut command = command::command(sudo);
        command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", program]);
        command
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Some(command)
}

fn require_apt(packages: &[String]) -> Result<()> {
    if command::find("apt-get").is_none() {
        bail!(
            "this is no Debian system: there is no apt-get to install {}\n\
             try: install the same by hand (docs/adr/0005-toolchain-routes.md says what is looked for)",
            packages.join(" ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_found_by_suite() {
        let policy = "\
Package files:
 100 /var/lib/dpkg/status
     release a=now
 500 https://other.example/repository bookworm/main amd64 Packages
     release o=Other,a=bookworm,n=bookworm,c=main,b=amd64
     origin other.example
 500 http://mirror.example/debian bookworm-updates/main amd64 Packages
     release v=12-updates,o=Debian,a=oldstable-updates,n=bookworm-updates,l=Debian,c=main,b=amd64
     origin mirror.example
 500 http://mirror.example/debian bookworm/main amd64 Packages
     release v=12.15,o=Debian,a=oldstable,n=bookworm,l=Debian,c=main,b=amd64
     origin mirror.example
Pinned packages:
";
        assert_eq!(archive_in(policy, "bookworm").as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(archive_in(policy, "bookworm-security"), None);
    }
}
