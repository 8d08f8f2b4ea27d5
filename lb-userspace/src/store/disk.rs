//! The state as a file: `{"format": 4, "sha256": of the content, "content": {"store_id": HEX, "revision": N, "state":
//! {..}}}`.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Commit, Snapshot, State, StoreError, StoreId};

/// The format that this version writes. It also reads 1 (no revocations), 2 (no service of a key slot) and 3 (no store
/// id).
pub(super) const FORMAT: u32 = 4;

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    format: u32,
    sha256: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    store_id: StoreId,
    revision: u64,
    state: State,
}

#[derive(Serialize)]
struct ContentRef<'a> {
    store_id: StoreId,
    revision: u64,
    state: &'a State,
}

/// Why bytes are not a valid state.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unsound {
    Damaged(String),
    Newer(u32),
}

/// Encodes a state: the commit, and the bytes of the file.
pub(super) fn encode(store_id: StoreId, revision: u64, state: &State) -> (Commit, Zeroizing<Vec<u8>>) {
    let content = ContentRef { store_id, revision, state };
    let content =
        Zeroizing::new(serde_json::to_string(&content).expect("the state has nothing that JSON has not"));
    let sum = Sha256::digest(content.as_bytes());
    let sha256 = hex::encode(sum);
    let file = format!("{{\"format\":{FORMAT},\"sha256\":\"{sha256}\",\"content\":{}}}\n", content.as_str());
    (Commit { store: store_id, revision, digest: first_half(&sum) }, Zeroizing::new(file.into_bytes()))
}

fn first_half(sum: &[u8]) -> [u8; 16] {
    sum[..16].try_into().expect("a SHA-256 has 32 bytes")
}

pub(super) fn decode(bytes: &[u8]) -> Result<Snapshot, Unsound> {
    let damaged = |what: String| Unsound::Damaged(what);
    if bytes.is_empty() {
        return Err(damaged("it is empty".to_owned()));
    }
    let not_json = |error: serde_json::Error| {
        damaged(format!("after byte {} of {} it is not what Tollgate writes", error.column(), bytes.len()))
    };
    let Format { format } = serde_json::from_slice(bytes).map_err(not_json)?;
    match format {
        0 => return Err(damaged("no version writes format 0".to_owned())),
        1..=FORMAT => {}
        _ => return Err(Unsound::Newer(format)),
    }
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(not_json)?;
    let content = envelope.content.get();
    let sum = Sha256::digest(content.as_bytes());
    if hex::encode(sum) != envelope.sha256 {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let Content { store_id, revision, state } = serde_json::from_str(content)
        .map_err(|error| damaged(format!("its content is contradictory ({error})")))?;
    let commit = Commit { store: store_id, revision, digest: first_half(&sum) };
    Ok(Snapshot { commit, state: Arc::new(state) })
}

/// The system calls that a commit depends on. A test records them to reconstruct the possible states after a power
/// failure, or makes one of them fail.
pub(super) trait Disk: Send + Sync {
    /// Creates a file that only its owner can read, with these bytes.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
    }

    /// Makes the bytes of a file, or the entries of a directory, survive a power failure (fsync(2)).
    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    /// Replaces `to` by `from` (rename(2)).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
}

/// The disk of this host.
pub(super) struct HostDisk;

impl Disk for HostDisk {}

/// Creates the directory, or checks that it can hold secrets.
pub(super) fn directory(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    let missing: Vec<_> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => {}
        Err(source) => return Err(io_error("make", path, source)),
    }
    // The entry of a new directory survives a power failure only once its parent directory is synced, too.
    for parent in missing.iter().filter_map(|made| made.parent()) {
        sync(disk, parent)?;
    }
    let metadata = fs::metadata(path).map_err(|source| io_error("look at", path, source))?;
    let mode = metadata.mode() & 0o777;
    owned(path, metadata.uid())?;
    if mode & 0o022 != 0 {
        return Err(StoreError::Writable { path: path.to_owned(), mode });
    }
    if mode != 0o700 {
        // For example, a service manager made the directory with wider permissions. The files in it were never readable
        // for others.
        let restricted = fs::set_permissions(path, Permissions::from_mode(0o700));
        restricted.map_err(|source| io_error("restrict the permissions of", path, source))?;
    }
    Ok(())
}

/// The permitted owners of a file that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// This process's user.
    User,
    /// Any user if this process runs as root, which only reports the content.
    AnyIfRoot,
}

/// Reads a file with secrets in it; `None` if there is none.
pub(super) fn read_secret(path: &Path, owner: Owner) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let mut file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("open", path, source)),
    };
    let metadata = file.metadata().map_err(|source| io_error("look at", path, source))?;
    if owner == Owner::User || !nix::unistd::geteuid().is_root() {
        owned(path, metadata.uid())?;
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Readable { path: path.to_owned(), mode });
    }
    // Full capacity from the start: a vector that grows leaves copies of the secrets behind.
    let len = usize::try_from(metadata.len()).unwrap_or(0);
    let mut bytes = Zeroizing::new(Vec::with_capacity(len + 1));
    io::Read::read_to_end(&mut file, &mut bytes).map_err(|source| io_error("read", path, source))?;
    Ok(Some(bytes))
}

pub(super) fn owned(path: &Path, owner: u32) -> Result<(), StoreError> {
    let user = nix::unistd::geteuid().as_raw();
    if owner == user { Ok(()) } else { Err(StoreError::Foreign { path: path.to_owned(), owner, user }) }
}

/// Replaces the whole content of a file: after a crash or an error, the file has either the old content or the new one.
pub(super) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = temporary(path);
    remove_leftover(path)?;
    let replaced = disk
        .write(&temporary, bytes)
        // Must come before the rename: otherwise a crash may leave the new name without the bytes.
        .and_then(|()| disk.sync(&temporary))
        .and_then(|()| disk.rename(&temporary, path));
    if let Err(source) = replaced {
        // The first error is reported. A remaining temporary file is removed at the next start at the latest.
        let _ = fs::remove_file(&temporary);
        return Err(io_error("write", path, source));
    }
    sync(disk, path.parent().unwrap_or(path))
}

/// Syncs a directory. The parent of a relative path of one component is the working directory.
fn sync(disk: &dyn Disk, directory: &Path) -> Result<(), StoreError> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    disk.sync(directory).map_err(|source| io_error("sync", directory, source))
}

/// Removes the temporary file that a crash has left.
pub(super) fn remove_leftover(path: &Path) -> Result<(), StoreError> {
    let temporary = temporary(path);
    match fs::remove_file(&temporary) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(io_error("remove", &temporary, source)),
        _ => Ok(()),
    }
}

fn temporary(path: &Path) -> PathBuf {
    path.with_added_extension("tmp")
}

pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { action, path: path.to_owned(), source }
}
