//! Where the data path outlives the daemon: `<bpffs>/v<ABI>/`, for the daemon's user alone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
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

/// The directory of one layout's pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    base: PathBuf,
    /// As this process gets there.
    directory: PathBuf,
    /// As everybody else does.
    name: PathBuf,
}

/// Held by the one process that may change what is pinned.
#[derive(Debug)]
pub struct PinLock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl Pins {
    /// Below the configured directory, which need not be there yet.
    ///
    /// # Errors
    /// If it would not be on a BPF file system.
    pub fn new(bpffs: &Path) -> Result<Self, DatapathError> {
        let there = bpffs.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        let on_bpffs = statfs(there).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if !on_bpffs {
            return Err(DatapathError::NotBpffs { path: bpffs.to_owned() });
        }
        let directory = Self::directory_below(bpffs);
        Ok(Self { base: bpffs.to_owned(), name: directory.clone(), directory })
    }

    /// Where they are below the configured directory.
    pub fn directory_below(bpffs: &Path) -> PathBuf {
        bpffs.join(format!("v{ABI_VERSION}"))
    }

    /// The same, for a process whose working directory they are and that cannot get there otherwise.
    #[must_use]
    pub fn in_working_directory(self) -> Self {
        Self { directory: ".".into(), ..self }
    }

    /// Makes the directories and locks them for this process, until the lock is dropped.
    ///
    /// # Errors
    /// If they cannot be made, or another process has the lock.
    pub fn lock(&self) -> Result<PinLock, DatapathError> {
        self.make()?;
        let failed = |action, source| self.failed(action, source);
        // No link to another directory, whose files would be removed as pins.
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&self.directory)
            .map_err(|source| failed("open it", source))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(PinLock(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(DatapathError::InUse { path: self.name.clone() }),
            Err((_, errno)) => Err(failed("lock it", errno.into())),
        }
    }

    /// Makes the directories, where they are not there.
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

    fn failed(&self, action: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Pin { path: self.name.clone(), action, source, mend: NEEDS_ROOT }
    }

    /// Whether the directory is there.
    ///
    /// # Errors
    /// If this process may not know.
    pub fn exist(&self) -> Result<bool, DatapathError> {
        self.directory.try_exists().map_err(|source| self.failed("look for it", source))
    }

    /// Whether nothing is pinned in it.
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

    /// The pin of an interface's link. Interface names hold neither `/` nor NUL.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.directory.join(format!("{LINK}{interface}"))
    }

    /// The name of a pin that messages tell.
    pub fn name(&self, pin: &Path) -> PathBuf {
        self.name.join(pin.file_name().unwrap_or_default())
    }

    /// The interfaces that have a pinned link.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn links(&self) -> Result<Vec<String>, DatapathError> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(LINK)).map(str::to_owned).collect())
    }

    /// Removes one pin; one that is not there is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self, pin: &Path) -> Result<(), DatapathError> {
        match fs::remove_file(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DatapathError::Pin {
                path: self.name(pin),
                action: "remove the pin",
                source: error,
                mend: NEEDS_ROOT,
            }),
            _ => Ok(()),
        }
    }

    /// Removes all pins, links first: no interface is to run a program whose maps nobody finds any more.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn remove_all(&self) -> Result<(), DatapathError> {
        let mut names = self.names()?;
        names.sort_by_key(|name| !name.starts_with(LINK));
        for name in names {
            self.remove(&self.directory.join(name))?;
        }
        // The base may hold other versions' directories; then it stays.
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
