//! The pins in `<bpffs>/v<ABI>/`, which keep program and maps in the kernel when the daemon ends. Only the daemon's
//! user has access.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use lb_common::maps::ABI_VERSION;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::DatapathError;

const LINK: &str = "link-";
const NEEDS_ROOT: &str =
    "run as root, with `--user NAME` to become another user, or as the owner of its directory";

/// The directory of the pins of one ABI version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    base: PathBuf,
    /// Path for this process.
    directory: PathBuf,
    /// Path for messages and other processes.
    name: PathBuf,
}

/// A lock on the directory; its owner is the only process that changes the pins.
#[derive(Debug)]
pub struct PinLock {
    directory: Flock<File>,
    /// Mount of the directory when it was locked.
    mount: Option<Mount>,
}

/// Why the next daemon will not find the directory of a [`PinLock`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The cause.
    pub cause: String,
    /// Whether this process can create the directory again.
    pub returns: bool,
}

/// A mount of this process's mount namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mount {
    /// Whether it is a slave of another namespace's mount (`master:`), as in a systemd unit that has its own mount
    /// namespace.
    is_slave: bool,
}

/// The pin of an interface's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPin {
    /// The pin.
    pub path: PathBuf,
    /// Name of the interface in the configuration that attached it.
    pub interface: String,
}

impl Pins {
    /// The pins below the configured directory. The directory may not exist yet.
    ///
    /// # Errors
    /// If it would not be on a BPF file system.
    pub fn new(bpffs: &Path) -> Result<Self, DatapathError> {
        require_bpffs(bpffs)?;
        let directory = Self::directory_below(bpffs);
        Ok(Self { base: bpffs.to_owned(), name: directory.clone(), directory })
    }

    /// Directory of the pins below the configured directory.
    pub fn directory_below(bpffs: &Path) -> PathBuf {
        bpffs.join(format!("v{ABI_VERSION}"))
    }

    /// The same pins, for a process whose working directory is the directory of the pins.
    #[must_use]
    pub fn in_working_directory(self) -> Self {
        Self { directory: ".".into(), ..self }
    }

    /// Creates the directories and locks them for this process, until the lock is dropped.
    ///
    /// # Errors
    /// If they cannot be made, or another process has the lock.
    pub fn lock(&self) -> Result<PinLock, DatapathError> {
        self.make()?;
        let failed = |action, source| self.failed(action, source);
        // Symbolic links are not followed: otherwise the files of another directory would be removed as pins.
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&self.directory)
            .map_err(|source| failed("open it", source))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(directory) => {
                let mount = mount_of(&directory).map_err(|source| failed("look at its mount", source))?;
                Ok(PinLock { directory, mount })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(DatapathError::InUse { path: self.name.clone() }),
            Err((_, errno)) => Err(failed("lock it", errno.into())),
        }
    }

    /// Creates missing directories.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn make(&self) -> Result<(), DatapathError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .and_then(|()| fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o700)))
            .map_err(|source| self.failed("make the directory", source))
    }

    /// Why the next daemon will not find the directory of `lock`; `None` if it will.
    ///
    /// An unmounted BPF file system exists as long as a descriptor in it is open. Once this process has ended, its pins
    /// keep nothing attached.
    pub fn lost(&self, lock: &PinLock) -> Option<Lost> {
        let name = self.name.display();
        // A process with the pins as working directory cannot open them by name.
        let returns = self.directory == self.name;
        let lost = |cause: String| Some(Lost { cause, returns });
        let (held, mount) = match (lock.directory.metadata(), mount_of(&lock.directory)) {
            (Ok(held), Ok(mount)) => (held, mount),
            (Err(error), _) | (_, Err(error)) => return lost(format!("{name} cannot be looked at: {error}")),
        };
        if held.nlink() == 0 {
            return lost(format!("{name} was removed"));
        }
        let Some(mount) = mount else { return lost(format!("the BPF file system of {name} was unmounted")) };
        // If the host's file system is unmounted, the mount in this namespace persists until this process ends
        // (mount_namespaces(7)).
        if !mount.is_slave && lock.mount.is_some_and(|before| before.is_slave) {
            let cause = format!("the BPF file system of {name} was unmounted in the host's mount namespace");
            return Some(Lost { cause, returns: false });
        }
        match fs::symlink_metadata(&self.name) {
            Ok(found) if (found.dev(), found.ino()) == (held.dev(), held.ino()) => None,
            Ok(_) => lost(format!("another directory is at {name}")),
            // The user of the daemon may have no permission to open it by name.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            Err(error) => lost(format!("{name}: {error}")),
        }
    }

    /// Creates and locks the directory again, after the previous one was lost.
    ///
    /// # Errors
    /// If there is no BPF file system, or another process has the lock.
    pub fn lock_again(&self) -> Result<PinLock, DatapathError> {
        require_bpffs(&self.base)?;
        self.lock()
    }

    fn failed(&self, action: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Pin { path: self.name.clone(), action, source, hint: NEEDS_ROOT }
    }

    /// Whether the directory exists.
    ///
    /// # Errors
    /// If this process has no permission.
    pub fn exist(&self) -> Result<bool, DatapathError> {
        self.directory.try_exists().map_err(|source| self.failed("look for it", source))
    }

    /// Whether it contains no pins.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn is_empty(&self) -> Result<bool, DatapathError> {
        Ok(self.names()?.is_empty())
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The pin of an interface's link. An interface name contains neither `/` nor `:`, and a name on a BPF file system
    /// contains no `.` (`bpf_lookup`).
    pub fn link(&self, index: u32, interface: &str) -> PathBuf {
        self.directory.join(format!("{LINK}{index}-{}", interface.replace('.', ":")))
    }

    /// The path of a pin for messages.
    pub fn name(&self, pin: &Path) -> PathBuf {
        self.name.join(pin.file_name().unwrap_or_default())
    }

    /// All pinned links.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn links(&self) -> Result<Vec<LinkPin>, DatapathError> {
        let pin = |name: &String| {
            let rest = name.strip_prefix(LINK)?;
            let is_index = |text: &str| text.parse::<u32>().is_ok();
            // Earlier releases named them by the interface alone.
            let interface =
                rest.split_once('-').filter(|(index, _)| is_index(index)).map_or(rest, |(_, name)| name);
            Some(LinkPin { path: self.directory.join(name), interface: interface.replace(':', ".") })
        };
        Ok(self.names()?.iter().filter_map(pin).collect())
    }

    /// Renames a pin.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), DatapathError> {
        fs::rename(from, to).map_err(|source| DatapathError::Pin {
            path: self.name(from),
            action: "rename the pin",
            source,
            hint: NEEDS_ROOT,
        })
    }

    /// Removes a pin; a missing pin is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self, pin: &Path) -> Result<(), DatapathError> {
        match fs::remove_file(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DatapathError::Pin {
                path: self.name(pin),
                action: "remove the pin",
                source: error,
                hint: NEEDS_ROOT,
            }),
            _ => Ok(()),
        }
    }

    /// Removes all pins, links first, so that no interface runs a program whose maps are no longer pinned.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn remove_all(&self) -> Result<(), DatapathError> {
        let mut names = self.names()?;
        names.sort_by_key(|name| !name.starts_with(LINK));
        for name in names {
            self.remove(&self.directory.join(name))?;
        }
        // The base directory stays if it contains directories of other versions.
        for directory in [&self.directory, &self.base] {
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, DatapathError> {
        let failed = |source| self.failed("list the pins", source);
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
    }
}

fn require_bpffs(base: &Path) -> Result<(), DatapathError> {
    let there = base.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let on_bpffs = statfs(there).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if on_bpffs { Ok(()) } else { Err(DatapathError::NotBpffs { path: base.to_owned() }) }
}

/// The mount of an open directory; `None` if it is not, or no longer, a mount of this process's mount namespace:
/// proc_pid_fdinfo(5) and proc_pid_mountinfo(5).
fn mount_of(directory: &File) -> io::Result<Option<Mount>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", directory.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let id = id.ok_or_else(|| io::Error::other("no mnt_id in /proc/self/fdinfo"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mount = mounts.lines().map(|line| line.split(' '));
    Ok(mount.find_map(|mut fields| {
        if fields.next() != Some(id) {
            return None;
        }
        // Five more fields, then optional fields up to a dash.
        let is_slave =
            fields.skip(5).take_while(|field| *field != "-").any(|field| field.starts_with("master:"));
        Some(Mount { is_slave })
    }))
}
