//! Network namespaces: made for a test, gone with it.

use std::{
    fs::File,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::Path,
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::leftovers::{self, NAMESPACES};

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it.
    ///
    /// # Errors
    /// If `ip` fails, as where there is one of this name.
    pub fn new(name: &str) -> Result<Self> {
        leftovers::hold_if_interrupted();
        run(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self { name: name.to_owned() };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// If that fails, with what it said.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        run(Command::new("ip").args(["-netns", &self.name]).args(args))
    }

    /// Sets a sysctl in it.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| std::fs::write(&path, value).with_context(|| format!("cannot set {name}")))?
    }

    /// A command that will run in it, with this host's own file systems: `ip netns exec` would hide bpffs.
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
            && !leftovers::interrupted()
        {
            eprintln!("network namespace {} is left behind: {error:#}", self.name);
        }
    }
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started or fails, with what it said.
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
