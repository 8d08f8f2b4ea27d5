//! What the daemon gives up before it meets anybody (ADR 11): root's user with `--user`, all capabilities but three, new
//! privileges, all system calls that it does not make, and memory that others can read.
//!
//! The order matters: [`hand_over`] and whatever takes root's rights to open, then [`enter`], then the first thread.

mod capabilities;
mod filter;
mod places;
mod user;

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

pub use places::{give_socket, hand_over};
pub use user::Account;

/// Why the daemon cannot give up what it should, and so does not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// `--user` names nobody.
    #[error("--user {name}: there is no such user; `useradd --system --shell /usr/sbin/nologin {name}`")]
    NoSuchUser {
        /// The name.
        name: String,
    },
    /// Only root can become somebody else.
    #[error(
        "--user {name}: this is user {user}, and only root can become another; leave --user out, or run as root"
    )]
    NotRoot {
        /// The name.
        name: String,
        /// Who is asking.
        user: u32,
    },
    /// What would be handed over is neither root's nor the user's own.
    #[error("{} belongs to user {owner}, neither root's nor {name}'s; look at what is in it, then `chown -R root {}`",
            path.display(), path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// The user it was to be handed to.
        name: String,
    },
    /// Others could have put things there.
    #[error("{} can be changed by other users (mode {mode:03o}); `chmod go-w {}`, and check who put what there",
            path.display(), path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Links and the like might stand for somebody else's files.
    #[error("{} is not a plain file with one name, and is not handed to another user; move it away", path.display())]
    Strange {
        /// The file.
        path: PathBuf,
    },
    /// The system refused with a file.
    #[error("cannot {action} {}: {source}; run as root, or without --user", path.display())]
    Io {
        /// As in "cannot `open` …".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The system refused to take something away.
    #[error("cannot {action}: {cause}; {hint}")]
    Refused {
        /// As in "cannot `drop capabilities`".
        action: &'static str,
        /// What it said.
        cause: String,
        /// What to try.
        hint: &'static str,
    },
}

/// Keeps the memory of this process out of core dumps, and away from other processes of its user.
///
/// # Errors
/// If the kernel refuses.
pub fn hide_memory() -> Result<(), SandboxError> {
    // The limit alone does not stop a core dump that goes to a program (core(5)), but the flag does.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .and_then(|()| prctl::set_dumpable(false))
        .map_err(|errno| refused("keep memory out of core dumps", errno, "this should not happen: report it"))
}

/// Gives everything up that the daemon does not need, for good; becomes `account` first, if there is one. Files stay open.
///
/// # Errors
/// If something cannot be given up. Then this process is to end.
pub fn enter(account: Option<&Account>) -> Result<(), SandboxError> {
    capabilities::bound()?;
    if let Some(account) = account {
        account.assume()?;
    }
    capabilities::keep_needed()?;
    // Another user's memory can be dumped again.
    hide_memory()?;
    prctl::set_no_new_privs().map_err(|errno| refused("forgo new privileges", errno, NEEDS_KERNEL))?;
    filter::apply()
}

const NEEDS_KERNEL: &str = "is this Linux 6.1 or later, with CONFIG_SECCOMP_FILTER?";

fn refused(action: &'static str, cause: impl ToString, hint: &'static str) -> SandboxError {
    SandboxError::Refused { action, cause: cause.to_string(), hint }
}

fn io_error(action: &'static str, path: &Path, source: impl Into<io::Error>) -> SandboxError {
    SandboxError::Io { action, path: path.to_owned(), source: source.into() }
}
