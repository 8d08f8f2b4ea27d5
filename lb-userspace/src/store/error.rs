//! What a store cannot do, and what to do about it.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use super::disk::FORMAT;

/// Why a store could not be opened or written. What it held is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else committed first.
    #[error("the store is at revision {found}, not {expected}: somebody else changed it; try again")]
    Conflict {
        /// What the commit was based on.
        expected: u64,
        /// What is newest.
        found: u64,
    },
    /// There are no more revisions.
    #[error(
        "the store is at the last revision there is, which no commit of Tollgate's reaches: who wrote it? Go back to a copy of it"
    )]
    LastRevision,
    /// There is no randomness for the ID of a new store.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// Another daemon has it.
    #[error(
        "{} is in use by {}; stop that daemon, or give this one another `store`",
        directory.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The store.
        directory: PathBuf,
        /// The process that has it.
        pid: Option<u32>,
    },
    /// It is not what was written.
    #[error("{} is damaged: {what}; {}", path.display(), go_back(path, *previous))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        what: String,
        /// The revision of the previous copy, if that is sound.
        previous: Option<u64>,
    },
    /// The state is gone, and was there.
    #[error("{} is missing, but its previous copy is there; {}", path.display(), start_anew(path, *previous))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The revision of the previous copy, if that is sound.
        previous: Option<u64>,
    },
    /// A later version wrote it.
    #[error("{} has format {found}, and this version knows {FORMAT}; run the version that wrote it, or a newer one",
            path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Somebody wrote into a store that this process has locked.
    #[error("{} was changed by somebody else while in use; restart to read what is there now", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The secrets may have been read.
    #[error("{} can be read by other users (mode {mode:03o}) and holds secret keys; `chmod 600 {}`, and if others use \
             this host, replace the keys: `tollgate keys rotate`, then `tollgate keys revoke`",
            path.display(), path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Others could put another state there.
    #[error("{} can be changed by other users (mode {mode:03o}); `chmod 700 {}`, and check who put what there",
            path.display(), path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is somebody else's.
    #[error("{} belongs to user {owner}, and this is user {user}; run as that user, or `chown -R {user} {}`",
            path.display(), path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who is asking.
        user: u32,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}; {}", path.display(), hint_of_io(source))]
    Io {
        /// As in "cannot `read` …".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The store does not know what the kernel remembers, so it cannot name the option's value.
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
            "nothing was changed, and there is no sound previous copy. Restore it from a backup, or begin with new keys: \
             `mv {shown} {shown}.damaged` (issuers then need `tollgate keys export` again); then {START}"
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
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "something else is in its place: move it away",
        _ => "check the disk (`dmesg`) and the path",
    }
}
