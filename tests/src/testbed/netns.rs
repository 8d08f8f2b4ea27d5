//! Network namespaces, removed at the end of a test.

use std::{
    env,
    fs::{self, File},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::testbed::cleanup::{self, NAMESPACES};

/// Environment variable: sysctls that new namespaces get before the testbed sets its own, as `NAME=VALUE NAME=VALUE`.
/// They simulate a host with these settings; the sysctls of the host itself are never written.
pub const INHERITED: &str = "TOLLGATE_INHERITED_SYSCTLS";

/// The kernel's defaults, for all interfaces and for new ones. The kernel copies the IPv4 settings of the host's first
/// namespace into each new one (`devinet_init_net`), and disables IPv6 if it was disabled at boot
/// (`addrconf_init_net`).
const RESET: [(&str, &str); 11] = [
    ("net.ipv4.conf.rp_filter", "0"),
    ("net.ipv4.conf.accept_local", "0"),
    ("net.ipv4.conf.accept_redirects", "1"),
    ("net.ipv4.conf.secure_redirects", "1"),
    ("net.ipv4.conf.send_redirects", "1"),
    ("net.ipv4.conf.arp_ignore", "0"),
    ("net.ipv4.conf.arp_announce", "0"),
    ("net.ipv4.conf.arp_filter", "0"),
    ("net.ipv4.conf.arp_accept", "0"),
    ("net.ipv4.conf.arp_notify", "0"),
    ("net.ipv6.conf.disable_ipv6", "0"),
];

/// Enabled if `br_netfilter` is loaded: then the packet filter would process frames that cross a bridge.
const BRIDGE: [&str; 3] = [
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.bridge.bridge-nf-call-arptables",
];

/// A network namespace with its loopback up and with the kernel's default settings, independent of the host's.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace.
    ///
    /// # Errors
    /// If `ip` fails, for example because the name exists.
    pub fn new(name: &str) -> Result<Self> {
        cleanup::hold_if_interrupted();
        run(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self { name: name.to_owned() };
        namespace.reset()?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Resets the settings that a new namespace inherits from the host.
    fn reset(&self) -> Result<()> {
        let write = |name: &str, value: &str| {
            fs::write(sysctl_path(name), value).with_context(|| format!("cannot set {name} to {value}"))
        };
        self.enter(|| {
            let inherited = env::var(INHERITED).unwrap_or_default();
            for setting in inherited.split_whitespace() {
                let (name, value) =
                    setting.split_once('=').with_context(|| format!("{INHERITED}: {setting}"))?;
                write(name, value)?;
            }
            write("net.ipv4.ip_forward", "0")?;
            for (name, value) in RESET {
                for of in ["all", "default"] {
                    write(&name.replace("conf", &format!("conf.{of}")), value)?;
                }
            }
            BRIDGE.into_iter().filter(|name| sysctl_path(name).exists()).try_for_each(|name| write(name, "0"))
        })?
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// If that fails, with its output.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        run(Command::new("ip").args(["-netns", &self.name]).args(args))
    }

    /// Whether an interface in it has an XDP program.
    ///
    /// # Errors
    /// If `ip` fails, for example because there is no such interface.
    pub fn has_xdp(&self, interface: &str) -> Result<bool> {
        let links = self.command("ip")?.args(["link", "show", interface]).output()?;
        ensure!(links.status.success(), "{}", String::from_utf8_lossy(&links.stderr));
        Ok(String::from_utf8_lossy(&links.stdout).contains("xdp"))
    }

    /// Sets a sysctl in it.
    ///
    /// # Errors
    /// If there is no sysctl of this name.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.enter(|| fs::write(sysctl_path(name), value).with_context(|| format!("cannot set {name}")))?
    }

    /// A command that runs in the namespace, with the file systems of this process: `ip netns exec` would hide some.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn command(&self, program: &str) -> Result<Command> {
        let namespace = self.file()?;
        let mut command = Command::new(program);
        // SAFETY: setns is a system call, which may be made between fork and exec.
        unsafe { command.pre_exec(move || Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?)) };
        Ok(command)
    }

    /// Runs a function on a thread in it. Sockets that it makes stay in the namespace.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.file()?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(function())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn file(&self) -> Result<File> {
        let path = Path::new(NAMESPACES).join(&self.name);
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.name]))
            && !cleanup::interrupted()
        {
            eprintln!("network namespace {} is left behind: {error:#}", self.name);
        }
    }
}

fn sysctl_path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started or fails, with its output.
pub fn run(command: &mut Command) -> Result<()> {
    let output =
        command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
