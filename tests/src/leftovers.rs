//! Removes what a harness makes on this machine: when it is interrupted, and when an earlier run was killed.
//!
//! Everything has a name that begins with its owner's, in three directories; daemons are found by their namespace.

use std::{
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Once,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::{Pid, pipe, read},
};

use crate::{daemon::PATIENCE, netns::run};

/// Where network namespaces have their names.
pub const NAMESPACES: &str = "/run/netns";
/// Where programs and maps are pinned.
pub const PINS: &str = "/sys/fs/bpf";
/// Where daemons have their files.
pub const FILES: &str = "/run";

/// Removes namespaces, the daemons in them, pins and files whose names are owned.
///
/// # Errors
/// If something that is there cannot be removed.
pub fn remove(is_owned: impl Fn(&str) -> bool) -> Result<()> {
    sweep(&is_owned).map(|_| ())
}

/// Never returns once this process is being interrupted: nothing new is to be made, and the thread that removes what
/// there is ends the process.
pub fn hold_if_interrupted() {
    while interrupted() {
        thread::park();
    }
}

/// Whether this process is being interrupted: what is missing now may have been removed already.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// From now on Ctrl-C, SIGTERM and SIGHUP remove what is owned and end this process, whatever it is doing.
///
/// # Errors
/// If the handlers cannot be set.
pub fn remove_when_interrupted(is_owned: impl Fn(&str) -> bool + Send + 'static) -> Result<()> {
    static SET: Once = Once::new();
    let mut outcome = Ok(());
    SET.call_once(|| outcome = watch(is_owned));
    outcome
}

fn watch(is_owned: impl Fn(&str) -> bool + Send + 'static) -> Result<()> {
    let (woken, wake) = pipe()?;
    WAKE.store(wake.as_raw_fd(), Ordering::Relaxed);
    // The handler writes to it for as long as the process lives.
    std::mem::forget(wake);
    thread::Builder::new().name("interrupt".to_owned()).spawn(move || end(&woken, is_owned))?;
    for stop in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic and writes to a pipe, both async-signal-safe.
        unsafe { signal(stop, SigHandler::Handler(wake_up)) }?;
    }
    Ok(())
}

extern "C" fn wake_up(signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    let byte = signal as u8;
    // SAFETY: the byte outlives the call. A full pipe has woken its reader already.
    unsafe { nix::libc::write(WAKE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

fn end(woken: &OwnedFd, is_owned: impl Fn(&str) -> bool) {
    let mut signal = [0];
    while !matches!(read(woken, &mut signal), Ok(1)) {}
    // Not by `eprintln`, which tests capture.
    let _ = match sweep_until_quiet(is_owned) {
        Ok(()) => writeln!(io::stderr(), "\ninterrupted; everything that was made is removed"),
        Err(error) => writeln!(io::stderr(), "\ninterrupted; not everything could be removed: {error:#}"),
    };
    process::exit(128 + i32::from(signal[0]));
}

/// Other threads may be in the middle of making something, or of removing it: sweeps until there has been nothing twice.
fn sweep_until_quiet(is_owned: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut quiet = 0;
    while quiet < 2 {
        match sweep(&is_owned) {
            Ok(0) => quiet += 1,
            Err(error) if Instant::now() > deadline => return Err(error),
            _ => quiet = 0,
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Removes what is owned; returns how much there was.
fn sweep(is_owned: &impl Fn(&str) -> bool) -> Result<usize> {
    let mut found = 0;
    for (namespace, name) in owned(NAMESPACES, is_owned)? {
        found += 1;
        end_daemons(&namespace)?;
        run(Command::new("ip").args(["netns", "delete", &name]))?;
    }
    for directory in [PINS, FILES] {
        for (path, _) in owned(directory, is_owned)? {
            found += 1;
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(found)
}

fn owned(directory: &str, is_owned: impl Fn(&str) -> bool) -> Result<Vec<(PathBuf, String)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {directory}"))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if is_owned(&name) {
            found.push((path, name));
        }
    }
    Ok(found)
}

/// Ends the daemons in a namespace; whatever else runs there is somebody's who looks around.
fn end_daemons(namespace: &Path) -> Result<()> {
    let Ok(of_namespace) = fs::metadata(namespace) else { return Ok(()) };
    for entry in fs::read_dir("/proc")?.flatten() {
        let process = entry.path();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes come and go: those that cannot be read are gone.
        let (Ok(net), Ok(program)) =
            (fs::metadata(process.join("ns/net")), fs::read_link(process.join("exe")))
        else {
            continue;
        };
        let program = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_daemon = matches!(program, "tollgate" | "tollgate (deleted)");
        if is_daemon && (net.dev(), net.ino()) == (of_namespace.dev(), of_namespace.ino()) {
            // It may have ended in between, which is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    Ok(())
}
