//! The file store of one node: a directory with `state.json`, its previous copy, and a lock.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{
    Snapshot, State, Store, StoreError, StoreFuture, StoreId,
    disk::{self, Disk, HostDisk, Owner, Unsound, io_error},
};

/// Keeps the state in a directory of this host, for one process at a time.
pub struct FileStore(Arc<Inner>);

struct Inner {
    disk: Box<dyn Disk>,
    state: PathBuf,
    previous: PathBuf,
    latest: watch::Sender<Snapshot>,
    /// Held during a commit.
    committing: Mutex<()>,
    /// Locked as long as it is open.
    _lock: File,
}

impl FileStore {
    /// Opens the store in `directory`, or creates it.
    ///
    /// # Errors
    /// If another process uses it, it cannot be read, or other users can change it. Then nothing has changed.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        Self::open_on(Box::new(HostDisk), directory)
    }

    /// [`FileStore::open`] that makes its system calls through `disk`.
    pub(super) fn open_on(disk: Box<dyn Disk>, directory: &Path) -> Result<Self, StoreError> {
        disk::directory(&*disk, directory)?;
        let lock = lock(directory)?;
        let (state, previous) = files(directory);
        for path in [&state, &previous] {
            disk::remove_leftover(path)?;
        }
        let snapshot = read(&state, &previous, Owner::User)?;
        let latest = watch::Sender::new(snapshot);
        Ok(Self(Arc::new(Inner { disk, state, previous, latest, committing: Mutex::new(()), _lock: lock })))
    }
}

impl FileStore {
    /// The state in the store of `directory`; see [`super::inspect`].
    pub(super) fn inspect(directory: &Path) -> Result<Snapshot, StoreError> {
        let (state, previous) = files(directory);
        read(&state, &previous, Owner::AnyIfRoot)
    }
}

impl Store for FileStore {
    fn snapshot(&self) -> StoreFuture<'_, Snapshot> {
        let latest = self.0.latest.borrow().clone();
        Box::pin(std::future::ready(Ok(latest)))
    }

    fn watch(&self) -> watch::Receiver<Snapshot> {
        self.0.latest.subscribe()
    }

    fn commit_above(&self, expected: u64, above: u64, state: State) -> StoreFuture<'_, Snapshot> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            // An fsync may take long. A commit is completed even if its caller has stopped waiting.
            match tokio::task::spawn_blocking(move || inner.commit(expected, above, state)).await {
                Ok(result) => result,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        })
    }
}

impl Inner {
    fn commit(&self, expected: u64, above: u64, state: State) -> Result<Snapshot, StoreError> {
        let _one_at_a_time = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = self.latest.borrow().commit;
        let found = latest.revision;
        if found != expected {
            return Err(StoreError::Conflict { expected, found });
        }
        let revision = found.max(above).checked_add(1).ok_or(StoreError::LastRevision)?;
        self.keep_previous(found)?;
        let store_id = if latest.store == StoreId::NONE { new_id()? } else { latest.store };
        let (commit, file) = disk::encode(store_id, revision, &state);
        disk::replace(&*self.disk, &self.state, &file)?;
        let next = Snapshot { commit, state: Arc::new(state) };
        self.latest.send_replace(next.clone());
        Ok(next)
    }

    /// Keeps a copy of the file before it is replaced. Fails if the content is not what this process has written.
    fn keep_previous(&self, revision: u64) -> Result<(), StoreError> {
        let changed = || StoreError::Changed { path: self.state.clone() };
        match disk::read_secret(&self.state, Owner::User)? {
            None if revision == 0 => Ok(()),
            None => Err(changed()),
            Some(bytes) => match disk::decode(&bytes) {
                Ok(stored) if stored == *self.latest.borrow() => {
                    disk::replace(&*self.disk, &self.previous, &bytes)
                }
                _ => Err(changed()),
            },
        }
    }
}

/// The paths of the state and its previous copy.
fn files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("state.json"), directory.join("state.json.prev"))
}

fn read(state: &Path, previous: &Path, owner: Owner) -> Result<Snapshot, StoreError> {
    match disk::read_secret(state, owner)? {
        Some(bytes) => disk::decode(&bytes).map_err(|unsound| refusal(state, previous, owner, unsound)),
        None if previous.exists() => {
            Err(StoreError::Missing { path: state.to_owned(), previous: sound_revision(previous, owner) })
        }
        None => Ok(Snapshot::default()),
    }
}

fn new_id() -> Result<StoreId, StoreError> {
    let mut id = StoreId::NONE;
    getrandom::fill(&mut id.0).map_err(StoreError::Random)?;
    Ok(id)
}

fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // Symbolic links are not followed, because the target would be written to.
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path);
    let mut file = opened.map_err(|source| io_error("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Without a number, the message says "another process".
            let _ = file.read_to_string(&mut pid);
            return Err(StoreError::InUse { directory: directory.to_owned(), pid: pid.trim().parse().ok() });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &path, source)),
    }
    // Only the message above uses it, so a full disk must not prevent the daemon from starting.
    let _ =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn refusal(state: &Path, previous: &Path, owner: Owner, unsound: Unsound) -> StoreError {
    let path = state.to_owned();
    match unsound {
        Unsound::Newer(found) => StoreError::Newer { path, found },
        Unsound::Damaged(what) => {
            StoreError::Damaged { path, what, previous: sound_revision(previous, owner) }
        }
    }
}

/// The revision of the previous copy, if the copy is valid.
fn sound_revision(previous: &Path, owner: Owner) -> Option<u64> {
    let bytes = disk::read_secret(previous, owner).ok().flatten()?;
    Some(disk::decode(&bytes).ok()?.commit.revision)
}
