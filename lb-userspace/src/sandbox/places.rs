//! What root hands to the daemon's user: the store and the pins. Never what that user could have put in the way.
//!
//! Only what lies in a directory of root's is given away, and the directory comes last: once it is the user's, nothing in
//! it is touched again. So no link that a compromised daemon leaves there makes the next start give away other files.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
    unistd::{Gid, Uid, fchdir, fchown, fchownat},
};

use super::{Account, SandboxError, io_error};
use crate::{
    config::{Config, StoreLocation},
    datapath::Pins,
};

/// Makes the store and the directory of the pins where they are missing, and gives them to `account`. Its directory of the
/// pins becomes the working directory: the way there may be root's alone, as that to `/sys/fs/bpf` is on Debian.
///
/// # Errors
/// If something there is neither root's nor the account's, or might not be what it looks like.
pub fn hand_over(config: &Config, account: &Account) -> Result<(), SandboxError> {
    let StoreLocation::File(store) = &config.store;
    give(store, account)?;

    let pins = Pins::directory_below(&config.bpffs);
    make(&pins)?;
    // Whoever owns the directory above could put another in the place of this one.
    let above = open(&config.bpffs)?;
    let metadata = above.metadata().map_err(|source| io_error("look at", &config.bpffs, source))?;
    not_others(&config.bpffs, &metadata, Uid::from_raw(0), account)?;
    let directory = give(&pins, account)?;
    fchdir(&directory).map_err(|errno| io_error("go to", &pins, errno))
}

/// Gives the control socket, which is there, to `account`.
///
/// # Errors
/// If another could have put something in its place.
pub fn give_socket(path: &Path, account: &Account) -> Result<(), SandboxError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let directory = open(parent)?;
    let metadata = directory.metadata().map_err(|source| io_error("look at", parent, source))?;
    const STICKY: u32 = 0o1000;
    if metadata.mode() & STICKY == 0 {
        not_others(parent, &metadata, Uid::from_raw(0), account)?;
    }
    fchownat(&directory, name, Some(account.uid), Some(account.gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|errno| io_error("give away", path, errno))
}

/// A directory of the account's, with what root has left in it.
fn give(path: &Path, account: &Account) -> Result<File, SandboxError> {
    make(path)?;
    let directory = open(path)?;
    let metadata = directory.metadata().map_err(|source| io_error("look at", path, source))?;
    if metadata.uid() == account.uid.as_raw() {
        return Ok(directory);
    }
    not_others(path, &metadata, Uid::from_raw(0), account)?;
    let failed = |action| move |errno| io_error(action, path, errno);
    let mut entries = Dir::openat(&directory, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed("read"))?;
    for entry in entries.iter() {
        let entry = entry.map_err(failed("read"))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let file = path.join(std::ffi::OsStr::new(&*name.to_string_lossy()));
        let found = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error("look at", &file, errno))?;
        plain(&file, &found, account)?;
        fchownat(&directory, name, Some(account.uid), Some(account.gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error("give away", &file, errno))?;
    }
    fchown(&directory, Some(account.uid), Some(Gid::from_raw(account.gid.as_raw())))
        .map_err(failed("give away"))?;
    Ok(directory)
}

fn make(path: &Path) -> Result<(), SandboxError> {
    let failed = |source| io_error("make", path, source);
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(()),
    }
}

fn open(path: &Path) -> Result<File, SandboxError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| io_error("open", path, source))
}

/// A directory of `owner`'s that nobody else can write to.
fn not_others(path: &Path, found: &Metadata, owner: Uid, account: &Account) -> Result<(), SandboxError> {
    let mode = found.mode() & 0o777;
    if found.uid() != owner.as_raw() {
        let name = account.name.clone();
        return Err(SandboxError::Foreign { path: path.to_owned(), owner: found.uid(), name });
    }
    if mode & 0o022 != 0 {
        return Err(SandboxError::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

/// A file of root's, or one that was handed over before a crash, under no other name.
fn plain(path: &Path, found: &FileStat, account: &Account) -> Result<(), SandboxError> {
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG || found.st_nlink != 1 {
        return Err(SandboxError::Strange { path: path.to_owned() });
    }
    if found.st_uid != 0 && found.st_uid != account.uid.as_raw() {
        let name = account.name.clone();
        return Err(SandboxError::Foreign { path: path.to_owned(), owner: found.st_uid, name });
    }
    Ok(())
}
