//! BPF file systems that belong to a test. The tests need no mount at `/sys/fs/bpf`, which containers and minimal
//! systems lack, and do not write to the host's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::testbed::cleanup;

/// Files that the kernel creates in every BPF file system and that cannot be removed (`populate_bpffs`).
const ITERATORS: [&str; 2] = ["maps.debug", "progs.debug"];

/// A BPF file system; its pins are removed with this value.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl Bpffs {
    /// Mounts it at a new directory. As on most systems, only root can access its content.
    ///
    /// # Errors
    /// If the directory exists, or the kernel does not let this process mount.
    pub fn mount(at: &Path) -> Result<Self> {
        fs::create_dir(at).with_context(|| format!("cannot make {}", at.display()))?;
        mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), Some("mode=0700")).with_context(|| {
            format!(
                "cannot mount a BPF file system at {}\ntry: as root, in a container with CAP_SYS_ADMIN",
                at.display()
            )
        })?;
        Ok(Self(at.to_owned()))
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let removed = unmount_below(&self.0).and_then(|()| {
            fs::remove_dir(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))
        });
        if let Err(error) = removed
            && !cleanup::interrupted()
        {
            eprintln!("{} is left behind: {error:#}", self.0.display());
        }
    }
}

/// Unmounts all file systems at a directory and below it. Pins are removed first: otherwise a copy of the mount in
/// another mount namespace would keep them, and programs would stay attached.
///
/// # Errors
/// If one cannot be emptied or unmounted.
pub fn unmount_below(directory: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").context("cannot read the mounts")?;
    // The last mount is on top.
    for line in table.lines().rev() {
        // `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: proc(5).
        let mut fields = line.split(' ');
        let Some(at) = fields.nth(4).map(Path::new).filter(|at| at.starts_with(directory)) else { continue };
        if fields.skip_while(|field| *field != "-").nth(1) == Some("bpf") {
            empty(at).with_context(|| format!("cannot remove what is pinned in {}", at.display()))?;
        }
        umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", at.display()))?;
    }
    Ok(())
}

fn empty(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if !ITERATORS.iter().any(|name| entry.file_name() == *name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
