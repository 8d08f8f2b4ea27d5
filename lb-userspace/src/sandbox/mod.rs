//! The restrictions that the daemon applies to itself before it accepts connections (ADR 11): another user with
//! `--user`, three capabilities, no new privileges, a system call filter, and memory that no other process can read.
//!
//! The order matters: first [`hand_over`] and everything that needs root to open, then [`enter`], then the first
//! thread.

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

/// Why the daemon cannot restrict itself, and does not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The user of `--user` does not exist.
    #[error("--user {name}: there is no such user; `useradd --system --shell /usr/sbin/nologin {name}`")]
    NoSuchUser {
        /// The name.
        name: String,
    },
    /// Only root can switch to another user.
    #[error(
        "--user {name}: only root can switch to another user, and this is user {user}; leave --user out, or run as root"
    )]
    NotRoot {
        /// The name.
        name: String,
        /// The user of this process.
        user: u32,
    },
    /// A file to hand over is owned neither by root nor by the user.
    #[error("{} belongs to user {owner}, not to root or {name}; check its content, then `chown -R root {}`",
            path.display(), path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of `--user`.
        name: String,
    },
    /// Other users can change the directory.
    #[error("{} can be changed by other users (mode {mode:03o}); `chmod go-w {}`, and check what was changed there",
            path.display(), path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file may be a link to a file of another user.
    #[error("{} is not a regular file with one link, and is not handed to another user; move it away", path.display())]
    Strange {
        /// The file.
        path: PathBuf,
    },
    /// An operation on a file failed.
    #[error("cannot {action} {}: {source}; run as root, or without --user", path.display())]
    Io {
        /// The action that failed, as in "cannot `open` …".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A restriction cannot be applied.
    #[error("cannot {action}: {cause}; {hint}")]
    Refused {
        /// The action that failed, as in "cannot `drop capabilities`".
        action: &'static str,
        /// The error of the system.
        cause: String,
        /// What to do about it.
        hint: &'static str,
    },
}

/// Keeps the memory of this process out of core dumps, and unreadable for other processes of its user.
///
/// # Errors
/// If the kernel refuses.
pub fn hide_memory() -> Result<(), SandboxError> {
    // The limit alone does not prevent a core dump to a program (core(5)), but the flag does.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .and_then(|()| prctl::set_dumpable(false))
        .map_err(|errno| refused("keep memory out of core dumps", errno, "this should not happen: report it"))
}

/// Applies all restrictions permanently. Switches to `account` first, if there is one. Open files stay open.
///
/// # Errors
/// If a restriction cannot be applied; the process must end then.
pub fn enter(account: Option<&Account>) -> Result<(), SandboxError> {
    capabilities::bound()?;
    if let Some(account) = account {
        account.assume()?;
    }
    capabilities::keep_needed()?;
    // Switching to another user makes the memory dumpable again.
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
