//! Changes the owner of the store and of the pins from root to the user of the daemon.
//!
//! Only files in a directory of root are changed, and the directory itself is changed last: nothing in a directory of
//! the user is changed. So a link that a compromised daemon leaves in its directory cannot make the next start change
//! the owner of other files.

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

/// Creates the store and the directory of the pins if they are missing, and makes `account` their owner. The directory
/// of the pins becomes the working directory, because its path may be accessible to root only, as `/sys/fs/bpf` is on
/// Debian.
///
/// # Errors
/// If a file belongs to neither root nor the account, or may be a link to another file.
pub fn hand_over(config: &Config, account: &Account) -> Result<(), SandboxError> {
    let StoreLocation::File(store) = &config.store;
    give(store, account)?;

    let pins = Pins::directory_below(&config.bpffs);
    make(&pins)?;
    // The owner of the parent directory could replace this directory.
    let above = open(&config.bpffs)?;
    let metadata = above.metadata().map_err(|source| io_error("read the owner of", &config.bpffs, source))?;
    not_others(&config.bpffs, &metadata, Uid::from_raw(0), account)?;
    let directory = give(&pins, account)?;
    fchdir(&directory).map_err(|errno| io_error("change the working directory to", &pins, errno))
}

/// Makes `account` the owner of the control socket.
///
/// # Errors
/// If another user could have replaced it.
pub fn give_socket(path: &Path, account: &Account) -> Result<(), SandboxError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let directory = open(parent)?;
    let metadata = directory.metadata().map_err(|source| io_error("read the owner of", parent, source))?;
    const STICKY: u32 = 0o1000;
    if metadata.mode() & STICKY == 0 {
        not_others(parent, &metadata, Uid::from_raw(0), account)?;
    }
    fchownat(&directory, name, Some(account.uid), Some(account.gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|errno| io_error("change the owner of", path, errno))
}

/// Makes the account the owner of a directory and of its files.
fn give(path: &Path, account: &Account) -> Result<File, SandboxError> {
    make(path)?;
    let directory = open(path)?;
    let metadata = directory.metadata().map_err(|source| io_error("read the owner of", path, source))?;
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
            .map_err(|errno| io_error("read the owner of", &file, errno))?;
        plain(&file, &found, account)?;
        fchownat(&directory, name, Some(account.uid), Some(account.gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error("change the owner of", &file, errno))?;
    }
    fchown(&directory, Some(account.uid), Some(Gid::from_raw(account.gid.as_raw())))
        .map_err(failed("change the owner of"))?;
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

/// Checks that only `owner` can write to a directory.
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

/// Checks that a file is owned by root, or was handed over before a crash, and has only one link.
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
