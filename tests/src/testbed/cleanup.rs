//! Removes what tests and tools create on this machine: when they are interrupted, and when an earlier run was killed.
//!
//! All names begin with the name of their owner and are in two directories. Daemons are found by the files that they
//! are started with and by their network namespace. Mounts are not enough: those of a killed run, and with them the
//! names of its namespaces, may have been in a mount namespace that no longer exists.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            fs::MetadataExt as _,
            net::{SocketAddr, UnixDatagram},
        },
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
    sys::{
        signal::{SigHandler, Signal, kill, signal},
        stat::{Mode, umask},
    },
    unistd::{Pid, pipe, read},
};

use crate::testbed::{bpffs, daemon::PATIENCE, netns::run};

/// The directory of the names of network namespaces.
pub const NAMESPACES: &str = "/run/netns";
/// The directory of the daemons' files and of the mount points of BPF file systems.
pub const FILES: &str = "/run";

/// A process that makes namespaces and files whose names begin with its prefix.
pub struct Run {
    prefix: String,
    _claim: UnixDatagram,
}

impl Run {
    /// Removes what killed runs of this owner have left, and arranges the removal of what this run creates if it is
    /// interrupted.
    ///
    /// # Errors
    /// If a remaining object cannot be removed.
    pub fn start(owner: &'static str) -> Result<Self> {
        // Other users read files that tests write, independent of the umask of the caller.
        umask(Mode::from_bits_truncate(0o022));
        let (prefix, claim) = loop {
            // No process id: two runs may have the same id, each in its own PID namespace.
            let prefix = format!("{owner}-{:08x}", fastrand::u32(..));
            if let Some(claim) = claim(&prefix)? {
                break (prefix, claim);
            }
        };
        remove_when_interrupted({
            let prefix = prefix.clone();
            move |name| is_below(&prefix, name)
        })?;
        for killed in runs(owner)? {
            // Without the claim, that run is alive, or another process is removing what it has left.
            if let Some(_claim) = self::claim(&killed)? {
                remove(|name| is_below(&killed, name))?;
            }
        }
        Ok(Self { prefix, _claim: claim })
    }

    /// The prefix of all names of this run.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

/// The prefixes of an owner's runs that have left something.
fn runs(owner: &str) -> Result<BTreeSet<String>> {
    let prefix_of = |name: &str| {
        let run = name.strip_prefix(owner)?.strip_prefix('-')?.get(..8)?;
        run.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| format!("{owner}-{run}"))
    };
    let mut found = BTreeSet::new();
    for directory in [NAMESPACES, FILES] {
        let names = owned(directory, |name| prefix_of(name).is_some())?;
        found.extend(names.iter().filter_map(|(_, name)| prefix_of(name)));
    }
    Ok(found)
}

fn is_below(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// A lock on a name for the lifetime of the value; `None` if another process holds it. An abstract socket leaves no
/// file, ends with its process, and is visible from every PID and mount namespace.
///
/// # Errors
/// If the socket fails.
pub fn claim(name: &str) -> Result<Option<UnixDatagram>> {
    match UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(claim) => Ok(Some(claim)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot bind the abstract socket {name}")),
    }
}

/// Removes namespaces, the daemons in them, pins and files that have owned names.
///
/// # Errors
/// If an existing object cannot be removed.
pub fn remove(is_owned: impl Fn(&str) -> bool) -> Result<()> {
    sweep(&is_owned).map(|_| ())
}

/// Blocks forever once this process is interrupted: nothing new may be created, and the thread that cleans up ends the
/// process.
pub fn hold_if_interrupted() {
    while interrupted() {
        thread::park();
    }
}

/// Whether this process is interrupted: objects may be missing because they have been removed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// From now on, Ctrl-C, SIGTERM and SIGHUP remove what is owned and end this process.
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
    // SAFETY: the byte outlives the call. If the pipe is full, its reader has been woken already.
    unsafe { nix::libc::write(WAKE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

fn end(woken: &OwnedFd, is_owned: impl Fn(&str) -> bool) {
    let mut signal = [0];
    while !matches!(read(woken, &mut signal), Ok(1)) {}
    // Not with `eprintln`, which tests capture.
    let _ = match sweep_until_quiet(is_owned) {
        Ok(()) => writeln!(io::stderr(), "\ninterrupted; everything that was made is removed"),
        Err(error) => writeln!(io::stderr(), "\ninterrupted; not everything could be removed: {error:#}"),
    };
    process::exit(128 + i32::from(signal[0]));
}

/// Other threads may still create or remove objects: sweeps until two sweeps in a row find nothing.
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

/// Removes owned objects; returns their number.
fn sweep(is_owned: &impl Fn(&str) -> bool) -> Result<usize> {
    let mut found = end_daemons(is_owned)?;
    for (_, name) in owned(NAMESPACES, is_owned)? {
        found += 1;
        run(Command::new("ip").args(["netns", "delete", &name]))?;
    }
    for (path, _) in owned(FILES, is_owned)? {
        found += 1;
        bpffs::unmount_below(&path)?;
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
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

/// Ends daemons that were started with an owned file or run in an owned namespace; returns their number. Other programs
/// in a namespace belong to a user who inspects it.
fn end_daemons(is_owned: &impl Fn(&str) -> bool) -> Result<usize> {
    let inode = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let namespaces: Vec<_> =
        owned(NAMESPACES, is_owned)?.iter().filter_map(|(namespace, _)| inode(namespace)).collect();
    let mut ended = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let process = entry.path();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that cannot be read has ended.
        let Ok(program) = fs::read_link(process.join("exe")) else { continue };
        let program = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !matches!(program, "tollgate" | "tollgate (deleted)") {
            continue;
        }
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let has_owned_file =
            || arguments.split(|&byte| byte == 0).any(|argument| is_owned_file(argument, is_owned));
        let is_in_namespace = || inode(&process.join("ns/net")).is_some_and(|net| namespaces.contains(&net));
        if has_owned_file() || is_in_namespace() {
            ended += 1;
            // It may have ended in the meantime.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    Ok(ended)
}

/// Whether this is the path of a file whose first directory below [`FILES`] is owned.
fn is_owned_file(argument: &[u8], is_owned: impl Fn(&str) -> bool) -> bool {
    let below = Path::new(OsStr::from_bytes(argument)).strip_prefix(FILES);
    let first = below.ok().and_then(|path| path.components().next());
    first.and_then(|name| name.as_os_str().to_str()).is_some_and(is_owned)
}
