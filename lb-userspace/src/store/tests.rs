mod crash;

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{disk::Unsound, *};
use crate::keyring::{KeyPolicy, Keyring};

const POLICY: KeyPolicy = KeyPolicy { service_id: 42, max_ttl: 3600, rotation: None, quota: 64 };

/// A directory for a store.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn directory(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    fn open(&self) -> FileStore {
        FileStore::open(&self.directory()).unwrap()
    }

    fn refused(&self) -> StoreError {
        FileStore::open(&self.directory()).err().expect("refused")
    }

    /// A closed store with two revisions.
    fn with_two_revisions() -> Self {
        let place = Self::new();
        let store = place.open();
        commit(&store, 0, state(1)).unwrap();
        commit(&store, 1, state(2)).unwrap();
        place
    }

    /// Names and contents.
    fn contents(&self) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.directory()).unwrap().map(|entry| entry.unwrap().path());
        let mut contents: Vec<_> = entries
            .filter(|path| path.file_name().unwrap() != "lock")
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
            .collect();
        contents.sort();
        contents
    }
}

/// A state that differs by `seed`.
fn state(seed: u8) -> State {
    let mut keyring = Keyring::default();
    let mut random = |buffer: &mut [u8]| buffer.fill(seed);
    keyring.tick(1_700_000_000, &[POLICY], &mut random);
    State { keyring, ..State::default() }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn commit(store: &FileStore, expected: u64, state: State) -> Result<Snapshot, StoreError> {
    block_on(store.commit(expected, state))
}

fn snapshot(store: &FileStore) -> Snapshot {
    block_on(store.snapshot()).unwrap()
}

#[test]
fn a_new_store_is_empty_and_remembers_what_is_committed() {
    let place = Place::new();
    let store = place.open();
    assert_eq!(snapshot(&store), Snapshot::default());
    let mut watch = store.watch();
    assert!(!watch.has_changed().unwrap());
    let first = commit(&store, 0, state(1)).unwrap();
    assert_eq!((first.commit.revision, &*first.state), (1, &state(1)));
    assert_eq!(snapshot(&store), first);
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), first);
    let second = commit(&store, 1, state(2)).unwrap();
    drop(store);
    assert_eq!(snapshot(&place.open()), second);
    assert_eq!(
        place.contents().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["state.json", "state.json.prev"]
    );
    let previous = disk::decode(&fs::read(place.file("state.json.prev")).unwrap()).unwrap();
    assert_eq!(previous, first);
}

#[test]
fn a_commit_can_skip_revisions_and_never_goes_back() {
    let place = Place::new();
    let store = place.open();
    for (expected, above, revision) in [(0, 0, 1), (1, 0, 2), (2, 1, 3), (3, 3, 4), (4, 9, 10)] {
        let made = block_on(store.commit_above(expected, above, state(1))).unwrap();
        assert_eq!(made.commit.revision, revision);
    }
    let error = block_on(store.commit_above(10, u64::MAX, state(2))).unwrap_err();
    assert!(matches!(error, StoreError::LastRevision), "{error}");
    drop(store);
    assert_eq!(snapshot(&place.open()).commit.revision, 10);
}

#[test]
fn only_one_of_two_commits_on_a_revision_succeeds() {
    let place = Place::with_two_revisions();
    let store = place.open();
    let before = place.contents();
    let error = commit(&store, 1, state(3)).unwrap_err();
    assert!(matches!(error, StoreError::Conflict { expected: 1, found: 2 }), "{error}");
    assert_eq!(place.contents(), before);
    let won = std::thread::scope(|scope| {
        let race = |seed| {
            scope.spawn({
                let store = &store;
                move || commit(store, 2, state(seed)).is_ok()
            })
        };
        let racers: Vec<_> = (3..19).map(race).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
    assert_eq!(snapshot(&store).commit.revision, 3);
}

#[test]
fn secrets_are_for_the_owner_alone() {
    let place = Place::with_two_revisions();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(place.directory()), 0o700);
    for name in ["state.json", "state.json.prev", "lock"] {
        assert_eq!(mode(place.file(name)), 0o600, "{name}");
    }
    fs::set_permissions(place.directory(), Permissions::from_mode(0o755)).unwrap();
    drop(place.open());
    assert_eq!(mode(place.directory()), 0o700, "restricted: no other user could read the files");
    fs::set_permissions(place.directory(), Permissions::from_mode(0o770)).unwrap();
    let error = place.refused().to_string();
    assert!(error.contains("can be changed by other users (mode 770); `chmod 700 /"), "{error}");
    fs::set_permissions(place.directory(), Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(place.file("state.json"), Permissions::from_mode(0o644)).unwrap();
    let error = place.refused().to_string();
    assert!(
        error.contains("can be read by other users (mode 644) and holds secret keys; `chmod 600 /"),
        "{error}"
    );
    assert_eq!(mode(place.file("state.json")), 0o644);
}

/// A user who can create a link there could make root write to the link's target.
#[test]
fn a_lock_is_no_link() {
    let place = Place::with_two_revisions();
    let elsewhere = place.file("elsewhere");
    fs::write(&elsewhere, "untouched").unwrap();
    fs::remove_file(place.file("lock")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, place.file("lock")).unwrap();
    let error = place.refused().to_string();
    assert!(error.contains("lock"), "{error}");
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "untouched");
}

#[test]
fn a_second_daemon_is_told_which_process_has_it() {
    let place = Place::with_two_revisions();
    let store = place.open();
    let error = place.refused();
    let pid = std::process::id();
    assert!(error.to_string().contains(&format!("is in use by process {pid}; stop that daemon")), "{error}");
    drop(store);
    place.open();
}

#[test]
fn a_lock_is_held_across_processes_and_ends_with_its_process() {
    let place = Place::with_two_revisions();
    let script = "echo $$ > \"$0\"; echo locked; read line";
    let mut holder = Command::new("flock")
        .arg(place.file("lock"))
        .args(["sh", "-c", script])
        .arg(place.file("lock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock of util-linux");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    let error = place.refused();
    let StoreError::InUse { pid: Some(pid), .. } = error else { panic!("{error}") };
    assert_ne!(pid, std::process::id());
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_eq!(snapshot(&place.open()).commit.revision, 2);
}

/// However a crash, a disk or an editor truncates the file, reading yields the state or an error, never an empty store.
#[test]
fn a_truncated_file_is_never_taken_for_another_state() {
    let place = Place::with_two_revisions();
    let whole = fs::read(place.file("state.json")).unwrap();
    let previous = fs::read(place.file("state.json.prev")).unwrap();
    let whole_snapshot = disk::decode(&whole).unwrap();
    for len in 0..whole.len() {
        fs::write(place.file("state.json"), &whole[..len]).unwrap();
        match FileStore::open(&place.directory()) {
            // Only the final newline is missing.
            Ok(store) => assert_eq!((snapshot(&store), len), (whole_snapshot.clone(), whole.len() - 1)),
            Err(error @ StoreError::Damaged { previous: Some(1), .. }) => {
                let text = error.to_string();
                assert!(text.contains("state.json is damaged: ") && text.contains("cp -p"), "{len}: {text}");
                assert_eq!(fs::read(place.file("state.json")).unwrap(), whole[..len], "not touched");
            }
            Err(error) => panic!("{len}: {error}"),
        }
        assert_eq!(fs::read(place.file("state.json.prev")).unwrap(), previous);
    }
    fs::copy(place.file("state.json.prev"), place.file("state.json")).unwrap();
    assert_eq!(snapshot(&place.open()).commit.revision, 1, "the recovery that the error names");
}

#[test]
fn every_flipped_byte_is_noticed() {
    let (_, whole) = disk::encode(StoreId([5; 16]), 7, &state(1));
    let sound = disk::decode(&whole).unwrap();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 1 << bit;
            let decoded = disk::decode(&flipped);
            // A flipped bit may change the case of a letter in an escape, or white space, without effect. The content
            // cannot differ.
            assert!(decoded.as_ref().is_err() || decoded.as_ref() == Ok(&sound), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn what_a_crash_leaves_is_the_old_state() {
    let place = Place::with_two_revisions();
    let before = snapshot(&place.open());
    for leftover in ["state.json.tmp", "state.json.prev.tmp"] {
        fs::write(place.file(leftover), "{\"format\":1,").unwrap();
        assert_eq!(snapshot(&place.open()), before);
        assert!(!place.file(leftover).exists(), "{leftover} is removed");
    }
    // A crash between the two renames of a commit: the copy equals the state.
    fs::copy(place.file("state.json"), place.file("state.json.prev")).unwrap();
    let store = place.open();
    assert_eq!(commit(&store, 2, state(3)).unwrap().commit.revision, 3);
}

#[test]
fn what_belongs_to_another_user_is_refused() {
    let user = nix::unistd::geteuid().as_raw();
    let path = std::path::Path::new("/var/lib/tollgate");
    assert!(disk::owned(path, user).is_ok());
    let error = disk::owned(path, user + 1).unwrap_err().to_string();
    assert!(
        error.contains(&format!("belongs to user {}, and this is user {user}; run as that user", user + 1)),
        "{error}"
    );
}

#[test]
fn a_failed_commit_changes_nothing_and_can_be_repeated() {
    let place = Place::with_two_revisions();
    let store = place.open();
    let before = snapshot(&store);
    // A directory with the name of the temporary file: not even root can overwrite it.
    fs::create_dir(place.file("state.json.tmp")).unwrap();
    let error = commit(&store, 2, state(3)).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert_eq!(snapshot(&store), before);
    fs::remove_dir(place.file("state.json.tmp")).unwrap();
    assert_eq!(commit(&store, 2, state(3)).unwrap().commit.revision, 3);
}

#[test]
fn a_store_of_the_version_before_is_read() {
    let no_id = format!("\"store_id\":\"{}\",", hex::encode([5; 16]));
    let no_revocations = ",\"revocations\":{\"named\":[],\"before\":{}}";
    for (format, without) in [(1, vec![no_id.as_str(), no_revocations]), (3, vec![&no_id])] {
        let place = Place::with_two_revisions();
        let (_, file) = disk::encode(StoreId([5; 16]), 2, &state(2));
        let mut text = String::from_utf8(file.to_vec()).unwrap();
        for part in without {
            assert!(text.contains(part), "{part}: {text}");
            text = text.replace(part, "");
        }
        let content = text.split_once("\"content\":").unwrap().1.trim_end().strip_suffix('}').unwrap();
        let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(content));
        let before = format!("{{\"format\":{format},\"sha256\":\"{sum}\",\"content\":{content}}}\n");
        fs::write(place.file("state.json"), &before).unwrap();
        let store = place.open();
        assert_eq!(*snapshot(&store).state, state(2));
        assert_eq!(snapshot(&store).commit.store, StoreId::NONE);
        assert_eq!(
            fs::read_to_string(place.file("state.json")).unwrap(),
            before,
            "as it was, until something changes"
        );
        let next = commit(&store, 2, state(3)).unwrap().commit;
        assert_eq!(next.revision, 3);
        assert_ne!(next.store, StoreId::NONE, "the first commit gives it an ID");
        drop(store);
        assert!(fs::read_to_string(place.file("state.json")).unwrap().starts_with("{\"format\":4,"));
        assert_eq!(fs::read_to_string(place.file("state.json.prev")).unwrap(), before);
        assert_eq!(*snapshot(&place.open()).state, state(3));
        assert_eq!(snapshot(&place.open()).commit, next);
    }
}

#[test]
fn commits_are_told_apart() {
    let (place, other) = (Place::with_two_revisions(), Place::with_two_revisions());
    let commits = |place: &Place| {
        let previous = disk::decode(&fs::read(place.file("state.json.prev")).unwrap()).unwrap();
        (previous.commit, snapshot(&place.open()).commit)
    };
    let (first, second) = commits(&place);
    assert_eq!(first.store, second.store, "an ID is kept");
    assert_ne!(first.store, commits(&other).0.store, "and is of one store alone");
    // Restores the first revision, then commits another state.
    fs::copy(place.file("state.json.prev"), place.file("state.json")).unwrap();
    let fork = commit(&place.open(), 1, state(3)).unwrap().commit;
    assert_eq!((fork.store, fork.revision), (second.store, second.revision));
    assert_ne!(fork.digest, second.digest);
}

#[test]
fn inspecting_a_store_changes_nothing() {
    let place = Place::new();
    let inspect = || FileStore::inspect(&place.directory());
    assert_eq!(inspect().unwrap(), Snapshot::default());
    assert!(!place.directory().exists());
    let store = place.open();
    commit(&store, 0, state(1)).unwrap();
    let latest = commit(&store, 1, state(2)).unwrap();
    assert_eq!(inspect().unwrap(), latest, "also while it is locked");
    fs::write(place.file("state.json.tmp"), "left by a crash").unwrap();
    let before = place.contents();
    assert_eq!(inspect().unwrap(), latest);
    assert_eq!(place.contents(), before);
    fs::remove_file(place.file("state.json")).unwrap();
    assert!(matches!(inspect().unwrap_err(), StoreError::Missing { previous: Some(1), .. }));
}

#[test]
fn a_store_of_a_later_version_is_left_alone() {
    let place = Place::with_two_revisions();
    let later = "{\"format\":5,\"checksum\":\"?\",\"parts\":[]}";
    fs::write(place.file("state.json"), later).unwrap();
    let error = place.refused().to_string();
    assert!(
        error.contains("has format 5, and this version knows 4; run the version that wrote it"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(place.file("state.json")).unwrap(), later);
}

#[test]
fn a_store_of_a_version_that_never_was_is_left_alone() {
    let place = Place::with_two_revisions();
    let never = fs::read_to_string(place.file("state.json")).unwrap().replacen(":4,", ":0,", 1);
    fs::write(place.file("state.json"), &never).unwrap();
    let error = place.refused().to_string();
    assert!(error.contains("no version writes format 0") && error.contains("revision 1"), "{error}");
    assert_eq!(fs::read_to_string(place.file("state.json")).unwrap(), never);
}

#[test]
fn a_sound_checksum_over_nonsense_is_nonsense() {
    let (_, sound) = disk::encode(StoreId([5; 16]), 1, &state(1));
    let text = std::str::from_utf8(&sound).unwrap();
    let content = text.split_once("\"content\":").unwrap().1.trim_end().strip_suffix('}').unwrap();
    let contradictory = content.replace("\"imported\":false", "\"imported\":false,\"colour\":3");
    let sum = |content: &str| {
        use sha2::{Digest, Sha256};
        hex::encode(Sha256::digest(content))
    };
    let forged = text.replace(&sum(content), &sum(&contradictory)).replace(content, &contradictory);
    let Err(Unsound::Damaged(what)) = disk::decode(forged.as_bytes()) else { panic!("accepted") };
    assert!(what.contains("its content is contradictory (unknown field `colour`"), "{what}");
}

#[test]
fn revisions_up_to_the_last_are_read() {
    for revision in [u64::MAX - 1, u64::MAX] {
        let (commit, file) = disk::encode(StoreId([5; 16]), revision, &state(1));
        assert_eq!(disk::decode(&file), Ok(Snapshot { commit, state: Arc::new(state(1)) }));
    }
}

#[test]
fn a_missing_state_is_not_a_new_store() {
    let place = Place::with_two_revisions();
    fs::remove_file(place.file("state.json")).unwrap();
    let error = place.refused().to_string();
    assert!(
        error.contains("is missing, but its previous copy exists; to go back to its revision 1: `cp"),
        "{error}"
    );
    assert!(error.contains("to begin with new keys: `mv"), "{error}");
    fs::write(place.file("state.json.prev"), "x").unwrap();
    let error = place.refused();
    assert!(matches!(error, StoreError::Missing { previous: None, .. }), "{error}");
}

#[test]
fn damage_without_a_copy_says_so() {
    let place = Place::with_two_revisions();
    fs::write(place.file("state.json"), "").unwrap();
    fs::write(place.file("state.json.prev"), "x").unwrap();
    let error = place.refused().to_string();
    assert!(
        error.contains("state.json is damaged: it is empty; nothing was changed, and there is no sound"),
        "{error}"
    );
}

#[test]
fn what_others_wrote_meanwhile_is_not_overwritten() {
    let place = Place::with_two_revisions();
    let store = place.open();
    fs::copy(place.file("state.json.prev"), place.file("state.json")).unwrap();
    let before = place.contents();
    let error = commit(&store, 2, state(3)).unwrap_err();
    assert!(error.to_string().contains("was changed by another process while in use; restart"), "{error}");
    assert_eq!(place.contents(), before);
    fs::remove_file(place.file("state.json")).unwrap();
    let error = commit(&store, 2, state(3)).unwrap_err();
    assert!(matches!(error, StoreError::Changed { .. }), "{error}");
}

#[test]
fn what_is_no_directory_is_refused() {
    let place = Place::new();
    fs::write(place.directory(), "").unwrap();
    let error = place.refused().to_string();
    assert!(error.contains("cannot make /") && error.contains("another file has its name"), "{error}");
}

#[test]
fn a_link_is_not_followed() {
    let place = Place::with_two_revisions();
    let elsewhere = place.0.path().join("elsewhere.json");
    fs::rename(place.file("state.json"), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, place.file("state.json")).unwrap();
    let error = place.refused();
    assert!(matches!(error, StoreError::Io { action: "open", .. }), "{error}");
}
