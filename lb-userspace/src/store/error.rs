//! Errors of a store.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use super::disk::FORMAT;

/// Why a store could not be opened or written. Its content is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another commit was made first.
    #[error("the store is at revision {found}, not {expected}: another process changed it; try again")]
    Conflict {
        /// The revision that the commit was based on.
        expected: u64,
        /// The newest revision.
        found: u64,
    },
    /// There are no more revisions.
    #[error(
        "the store is at the last possible revision, which Tollgate cannot have written; restore a copy of the store"
    )]
    LastRevision,
    /// The system provided no random bytes for the id of a new store.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// Another process uses the store.
    #[error(
        "{} is in use by {}; stop that daemon, or give this one another `store`",
        directory.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The store.
        directory: PathBuf,
        /// The process that uses it.
        pid: Option<u32>,
    },
    /// The file is damaged.
    #[error("{} is damaged: {what}; {}", path.display(), go_back(path, *previous))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        what: String,
        /// The revision of the previous copy, if the copy is valid.
        previous: Option<u64>,
    },
    /// The state is missing, but its previous copy exists.
    #[error("{} is missing, but its previous copy exists; {}", path.display(), start_anew(path, *previous))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The revision of the previous copy, if the copy is valid.
        previous: Option<u64>,
    },
    /// A later version wrote the file.
    #[error("{} has format {found}, and this version knows {FORMAT}; run the version that wrote it, or a newer one",
            path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another process wrote into a store that this process has locked.
    #[error("{} was changed by another process while in use; restart the daemon to read it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Other users can read the secrets.
    #[error("{} can be read by other users (mode {mode:03o}) and holds secret keys; `chmod 600 {}`, and if others use \
             this host, replace the keys: `tollgate keys rotate`, then `tollgate keys revoke`",
            path.display(), path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Other users can replace the state.
    #[error("{} can be changed by other users (mode {mode:03o}); `chmod 700 {}`, and check what was changed there",
            path.display(), path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another user owns it.
    #[error("{} belongs to user {owner}, and this is user {user}; run as that user, or `chown -R {user} {}`",
            path.display(), path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}; {}", path.display(), hint_of_io(source))]
    Io {
        /// The action that failed, as in "cannot `read` …".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// The store does not know the commit that is recorded in the kernel, so this hint cannot contain the value of the
/// option.
const START: &str =
    "start the daemon; if it refuses the store, its error names the `--accept-store` option that accepts it";

fn go_back(path: &std::path::Path, previous: Option<u64>) -> String {
    let shown = path.display();
    match previous {
        Some(revision) => format!(
            "nothing was changed. To go back to revision {revision} and lose the last change: `mv {shown} \
             {shown}.damaged && cp -p {shown}.prev {shown}`, then {START}"
        ),
        None => format!(
            "nothing was changed, and there is no sound previous copy. Restore it from a backup, or begin with new \
             keys: `mv {shown} {shown}.damaged` (issuers then need `tollgate keys export` again); then {START}"
        ),
    }
}

fn start_anew(path: &std::path::Path, previous: Option<u64>) -> String {
    let shown = path.display();
    let back = previous.map_or_else(String::new, |revision| {
        format!("to go back to its revision {revision}: `cp -p {shown}.prev {shown}`; ")
    });
    format!("{back}to begin with new keys: `mv {shown}.prev {shown}.old`; then {START}")
}

fn hint_of_io(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free some space and try again; what was stored is intact"
        }
        ErrorKind::ReadOnlyFilesystem => "make the file system writable, or set another `store`",
        ErrorKind::PermissionDenied => "run as root, or give this user the directory",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "another file has its name: move it away",
        _ => "check the disk (`dmesg`) and the path",
    }
}
