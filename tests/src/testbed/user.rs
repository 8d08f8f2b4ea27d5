//! Actions of another user of the host: closures on threads that have switched to that user.

use std::{fs, thread};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    libc,
    unistd::{Gid, Uid, User},
};

/// A user that every Debian has; daemons of tests switch to it.
pub const NAME: &str = "games";
/// A user that no host has.
pub const STRANGER: u32 = 61_183;

/// The uid of [`NAME`].
///
/// # Errors
/// If this host has no such user.
pub fn uid() -> Result<Uid> {
    Ok(User::from_name(NAME)?.context("there is no user `games`")?.uid)
}

/// Runs a closure on a thread with the rights of this user and these groups; the first group is the primary one.
///
/// # Errors
/// If the rights cannot be obtained, or the closure fails.
pub fn become_user<T: Send>(uid: u32, gids: &[u32], run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let on_thread = move || {
        let gids: Vec<_> = gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let own = gids.first().map_or(uid, |gid| gid.as_raw());
        // SAFETY: these calls change only this thread; libc's functions of the same names change all threads.
        unsafe {
            Errno::result(libc::syscall(libc::SYS_setgroups, gids.len(), gids.as_ptr()))?;
            Errno::result(libc::syscall(libc::SYS_setresgid, own, own, own))?;
            Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        run()
    };
    thread::scope(|scope| scope.spawn(on_thread).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A field of `/proc/PID/task/TID/status`, of all threads of a process.
///
/// # Errors
/// If the process has ended, or the field does not exist.
pub fn statuses(pid: u32, field: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        found.push(
            line.with_context(|| format!("no {field}"))?.split_whitespace().collect::<Vec<_>>().join(" "),
        );
    }
    Ok(found)
}
