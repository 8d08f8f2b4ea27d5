//! The possible states of a store after a power failure. POSIX guarantees the bytes of a file only once the file is
//! synced, and its name only once the directory is synced (fsync(2), NOTES). The tests record the system calls of real
//! commits. For each prefix of these calls, they build and open every state that such a disk may have.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    super::disk::{Disk, HostDisk},
    *,
};

/// A system call that has returned, or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    /// The store has reported that this revision is committed.
    Committed(u64),
}

/// The host's disk, which records all calls. The calls whose numbers are in `failing` fail without effect.
#[derive(Clone, Default)]
struct Recorder {
    calls: Arc<Mutex<Vec<Call>>>,
    failing: Option<usize>,
}

impl Recorder {
    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    fn record(&self, call: Call, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut calls = self.calls.lock().unwrap();
        calls.push(call);
        if self.failing == Some(calls.len() - 1) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        make()
    }

    fn committed(&self, revision: u64) {
        self.calls.lock().unwrap().push(Call::Committed(revision));
    }
}

impl Disk for Recorder {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.record(Call::Write(path.to_owned(), bytes.to_vec()), || HostDisk.write(path, bytes))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.record(Call::Sync(path.to_owned()), || HostDisk.sync(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.record(Call::Rename(from.to_owned(), to.to_owned()), || HostDisk.rename(from, to))
    }
}

/// A file of a disk that can lose power.
#[derive(Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: bool,
}

/// A disk that can lose power: the entries of its directory as of the last sync, then after each change since.
struct Fragile {
    inodes: Vec<Inode>,
    entries: Vec<BTreeMap<PathBuf, usize>>,
}

impl Fragile {
    fn after(calls: &[Call], directory: &Path) -> Self {
        let mut disk = Self { inodes: Vec::new(), entries: vec![BTreeMap::new()] };
        for call in calls {
            let mut now = disk.entries.last().unwrap().clone();
            match call {
                Call::Write(path, bytes) => {
                    now.insert(path.clone(), disk.inodes.len());
                    disk.inodes.push(Inode { bytes: bytes.clone(), synced: false });
                    disk.entries.push(now);
                }
                Call::Rename(from, to) => {
                    let inode = now.remove(from).expect("what is renamed is there");
                    now.insert(to.clone(), inode);
                    disk.entries.push(now);
                }
                Call::Sync(path) if path == directory => disk.entries = vec![now],
                Call::Sync(path) => disk.inodes[now[path]].synced = true,
                Call::Committed(_) => {}
            }
        }
        disk
    }

    /// Each set of files that may exist after a power failure now: of unsynced bytes, all, half or none remain.
    fn remains(&self) -> Vec<BTreeMap<PathBuf, Vec<u8>>> {
        let with = |kept: usize| {
            self.entries.iter().map(move |entries| {
                let files = entries.iter().map(|(path, inode)| {
                    let Inode { bytes, synced } = &self.inodes[*inode];
                    let len = if *synced { bytes.len() } else { bytes.len() * kept / 2 };
                    (path.clone(), bytes[..len].to_vec())
                });
                files.collect()
            })
        };
        (0..=2).flat_map(with).collect()
    }
}

/// All calls of the first commits of a new store.
fn recorded(place: &Place, commits: u8) -> Vec<Call> {
    let recorder = Recorder::default();
    fs::create_dir(place.directory()).unwrap();
    let store = FileStore::open_on(Box::new(recorder.clone()), &place.directory()).unwrap();
    for revision in 0..commits {
        commit(&store, revision.into(), state(revision + 1)).unwrap();
        recorder.committed(u64::from(revision) + 1);
    }
    recorder.calls()
}

/// Opens the remaining files: they contain a committed state, or the one that was being committed.
#[test]
fn a_power_failure_at_any_moment_loses_no_commit() {
    let place = Place::new();
    let calls = recorded(&place, 3);
    let mut opened = 0;
    for at in 0..=calls.len() {
        let committed = calls[..at].iter().rev().find_map(|call| match call {
            Call::Committed(revision) => Some(*revision),
            _ => None,
        });
        let committed = committed.unwrap_or(0);
        for files in Fragile::after(&calls[..at], &place.directory()).remains() {
            fs::remove_dir_all(place.directory()).unwrap();
            fs::create_dir(place.directory()).unwrap();
            for (path, bytes) in &files {
                fs::write(path, bytes).unwrap();
                fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
            }
            let last = at.checked_sub(1).map(|last| &calls[last]);
            let store = FileStore::open(&place.directory())
                .unwrap_or_else(|error| panic!("power failed after call {at}, {last:?}: {error}"));
            let found = snapshot(&store);
            assert!(
                (committed..=committed + 1).contains(&found.commit.revision),
                "power failed after call {at}, {last:?}: revision {} where {committed} was committed",
                found.commit.revision
            );
            let wanted = if found.commit.revision == 0 {
                State::default()
            } else {
                state(found.commit.revision as u8)
            };
            assert_eq!(*found.state, wanted);
            // The store is writable again.
            assert_eq!(
                commit(&store, found.commit.revision, state(9)).unwrap().commit.revision,
                found.commit.revision + 1
            );
            opened += 1;
        }
    }
    assert!(opened > 3 * calls.len(), "{opened}");
}

/// The test above can fail: a disk without guarantees loses commits, and half a file is not a valid state.
#[test]
fn a_power_failure_loses_what_is_not_synced() {
    let place = Place::new();
    let calls = recorded(&place, 1);
    let state_file = place.file("state.json");
    let remains = |without: &dyn Fn(&Path) -> bool| {
        let kept: Vec<_> =
            calls.iter().filter(|call| !matches!(call, Call::Sync(path) if without(path))).cloned().collect();
        Fragile::after(&kept, &place.directory()).remains()
    };
    let whole = fs::read(&state_file).unwrap();
    let has_all = |files: &BTreeMap<PathBuf, Vec<u8>>| files.get(&state_file) == Some(&whole);
    assert!(remains(&|_| false).iter().all(has_all));
    assert!(remains(&|path| path == place.directory()).iter().any(|files| !files.contains_key(&state_file)));
    assert!(remains(&|path| path != place.directory()).iter().any(|files| !has_all(files)));
}

/// If the directory above a new store is not synced, the entry of the store is lost, too.
#[test]
fn the_directories_above_a_new_store_are_synced() {
    let place = Place::new();
    let above = place.0.path();
    let recorder = Recorder::default();
    let directory = above.join("one/two/store");
    drop(FileStore::open_on(Box::new(recorder.clone()), &directory).unwrap());
    let mut synced = recorder.calls();
    synced.sort_by_key(|call| format!("{call:?}").len());
    let expected = [above.to_owned(), above.join("one"), above.join("one/two")].map(Call::Sync);
    assert_eq!(synced, expected);
    drop(FileStore::open_on(Box::new(recorder.clone()), &directory).unwrap());
    assert_eq!(recorder.calls().len(), 3, "nothing is made the second time");
}

/// Each call fails in turn: the commit reports the error, and a restart finds the previous state or the new one.
#[test]
fn a_call_that_fails_is_reported() {
    let mut failed = 0;
    loop {
        let place = Place::with_two_revisions();
        let recorder = Recorder { failing: Some(failed), ..Recorder::default() };
        let store = FileStore::open_on(Box::new(recorder.clone()), &place.directory()).unwrap();
        let before = snapshot(&store);
        let result = commit(&store, 2, state(3));
        let Some(call) = recorder.calls().get(failed).cloned() else {
            assert_eq!(result.unwrap().commit.revision, 3);
            break;
        };
        let error = result.expect_err(&format!("{call:?} failed, and the commit did not"));
        let expected = match &call {
            Call::Sync(path) if *path == place.directory() => "cannot sync /",
            _ => "cannot write /",
        };
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("check the disk"), "{call:?}: {text}");
        assert_eq!(snapshot(&store), before, "{call:?}");
        assert!(place.contents().iter().all(|(name, _)| !name.ends_with(".tmp")), "{call:?} left a file");
        drop(store);
        let after = snapshot(&place.open());
        assert!(
            after == before || (after.commit.revision, &*after.state) == (3, &state(3)),
            "{call:?}: {after:?}"
        );
        failed += 1;
    }
    assert_eq!(failed, 8, "two files, each written, synced and renamed, then their directory synced");
}

/// The hint follows from the error of the system.
#[test]
fn an_error_of_the_disk_says_what_to_try() {
    struct Failing(i32);
    impl Disk for Failing {
        fn write(&self, path: &Path, _: &[u8]) -> io::Result<()> {
            // Fails in the middle of the write.
            HostDisk.write(path, b"{\"format\":1,\"sha")?;
            Err(io::Error::from_raw_os_error(self.0))
        }
    }
    let place = Place::with_two_revisions();
    let before = place.contents();
    for (code, hint) in [
        (libc::ENOSPC, "free some space and try again; what was stored is intact"),
        (libc::EDQUOT, "free some space"),
        (libc::EROFS, "make the file system writable, or set another `store`"),
        (libc::EIO, "check the disk"),
    ] {
        let store = FileStore::open_on(Box::new(Failing(code)), &place.directory()).unwrap();
        let error = commit(&store, 2, state(3)).unwrap_err().to_string();
        assert!(error.contains("cannot write /") && error.contains(hint), "{error}");
        assert_eq!(place.contents(), before, "and no temporary file is left");
    }
}
