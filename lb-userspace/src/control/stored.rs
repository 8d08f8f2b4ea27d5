//! The desired state in the store, and changes of it. A change is computed on the newest state, and again if another
//! commit came first.

use std::sync::Arc;

use tracing::warn;

use crate::{
    datapath::{DatapathError, LastCommit},
    store::{Commit, Snapshot, State, Store, StoreError},
};

/// How often a commit is tried if another commit comes first.
const ATTEMPTS: usize = 8;

/// Records the newest commit outside the store.
pub trait Memory: Send {
    /// Records a commit in place of the previous one.
    ///
    /// # Errors
    /// If it cannot be written.
    fn remember(&mut self, commit: &Commit) -> Result<(), DatapathError>;
}

impl Memory for LastCommit {
    fn remember(&mut self, commit: &Commit) -> Result<(), DatapathError> {
        self.write(commit)
    }
}

/// The store, and its last known content.
pub struct Stored {
    store: Arc<dyn Store>,
    snapshot: Snapshot,
    memory: Box<dyn Memory>,
    remembered: Commit,
}

impl Stored {
    /// Reads the store. Later commits are recorded in `memory`; for the current one, call [`Stored::remember`].
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn open(store: Arc<dyn Store>, memory: Box<dyn Memory>) -> Result<Self, StoreError> {
        let snapshot = store.snapshot().await?;
        Ok(Self { store, snapshot, memory, remembered: Commit::default() })
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.snapshot.state
    }

    /// Revision of the state.
    pub fn revision(&self) -> u64 {
        self.snapshot.commit.revision
    }

    /// Records the commit of the state, if it is not recorded yet. A store without a commit changes nothing.
    ///
    /// # Errors
    /// If the commit cannot be recorded. The next call tries again.
    pub fn remember(&mut self) -> Result<(), DatapathError> {
        if self.remembered != self.snapshot.commit {
            self.memory.remember(&self.snapshot.commit)?;
            self.remembered = self.snapshot.commit;
        }
        Ok(())
    }

    /// Changes the state and commits it. The commit is recorded once it is durable: a crash in between leaves an
    /// older commit recorded, never a newer one than the store has.
    ///
    /// # Errors
    /// If the change is refused, or not stored. Then nothing has changed.
    pub async fn change<T, E: From<StoreError>>(
        &mut self,
        change: impl FnMut(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        self.apply(None, change).await
    }

    /// [`Stored::change`] that always commits, with a revision higher than `above`.
    ///
    /// # Errors
    /// As for [`Stored::change`].
    pub async fn change_above<T, E: From<StoreError>>(
        &mut self,
        above: u64,
        change: impl FnMut(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        self.apply(Some(above), change).await
    }

    async fn apply<T, E: From<StoreError>>(
        &mut self,
        above: Option<u64>,
        mut change: impl FnMut(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut attempt = 0;
        loop {
            let mut state = State::clone(&self.snapshot.state);
            let result = change(&mut state)?;
            if above.is_none() && state == *self.snapshot.state {
                return Ok(result);
            }
            attempt += 1;
            let expected = self.snapshot.commit.revision;
            match self.store.commit_above(expected, above.unwrap_or(0), state).await {
                Ok(snapshot) => {
                    self.snapshot = snapshot;
                    if let Err(error) = self.remember() {
                        // The change is made. The reconcile loop tries to record it again within a second, and
                        // reports it.
                        warn!("the commit is stored, but not recorded in the kernel: {error}");
                    }
                    return Ok(result);
                }
                Err(StoreError::Conflict { .. }) if attempt < ATTEMPTS => {
                    self.snapshot = self.store.snapshot().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{path::PathBuf, sync::Mutex};

    use super::*;
    use crate::store::{self, FileStore};

    /// A memory in this process. With each recorded commit, it keeps the commit that the file contained at that moment.
    #[derive(Clone, Default)]
    pub struct Told(Arc<Mutex<Vec<(Commit, Commit)>>>, PathBuf, Arc<Mutex<bool>>);

    impl Memory for Told {
        fn remember(&mut self, commit: &Commit) -> Result<(), DatapathError> {
            if *self.2.lock().unwrap() {
                return Err(DatapathError::NoObject);
            }
            let stored = store::inspect(&crate::config::StoreLocation::File(self.1.clone()));
            self.0
                .lock()
                .unwrap()
                .push((*commit, stored.map(|snapshot| snapshot.commit).unwrap_or_default()));
            Ok(())
        }
    }

    impl Told {
        pub fn of(directory: &std::path::Path) -> Self {
            Self(Arc::default(), directory.to_owned(), Arc::default())
        }

        fn commits(&self) -> Vec<Commit> {
            self.0.lock().unwrap().iter().map(|(commit, _)| *commit).collect()
        }
    }

    fn revoke_before(at: u32) -> impl FnMut(&mut State) -> Result<(), StoreError> {
        move |state| {
            state.revocations.revoke_before(42, at.into(), at.into()).expect("a moment in the past");
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_commit_is_remembered_once_it_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let told = Told::of(directory.path());
        let store = Arc::new(FileStore::open(directory.path()).unwrap());
        let mut stored = Stored::open(store, Box::new(told.clone())).await.unwrap();
        stored.remember().unwrap();
        assert_eq!(told.commits(), [], "there is none yet");
        for at in 1..=3 {
            stored.change(revoke_before(at)).await.unwrap();
        }
        stored.change(revoke_before(3)).await.unwrap();
        stored.remember().unwrap();
        let commits = told.commits();
        assert_eq!(commits.iter().map(|commit| commit.revision).collect::<Vec<_>>(), [1, 2, 3]);
        for (told, on_disk) in told.0.lock().unwrap().iter() {
            assert_eq!(told, on_disk, "a recorded commit is already on the disk");
        }
    }

    #[tokio::test]
    async fn a_commit_above_a_revision_is_made_without_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let told = Told::of(directory.path());
        let store = Arc::new(FileStore::open(directory.path()).unwrap());
        let mut stored = Stored::open(store, Box::new(told.clone())).await.unwrap();
        for above in [7, 3] {
            stored.change_above(above, |_| Ok::<_, StoreError>(())).await.unwrap();
        }
        assert_eq!(told.commits().iter().map(|commit| commit.revision).collect::<Vec<_>>(), [8, 9]);
    }

    #[tokio::test]
    async fn what_is_not_stored_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let told = Told::of(directory.path());
        let store = Arc::new(FileStore::open(directory.path()).unwrap());
        let mut stored = Stored::open(store, Box::new(told.clone())).await.unwrap();
        stored.change(revoke_before(1)).await.unwrap();
        std::fs::create_dir(directory.path().join("state.json.tmp")).unwrap();
        stored.change(revoke_before(2)).await.unwrap_err();
        stored.remember().unwrap();
        assert_eq!(told.commits().len(), 1);
    }

    #[tokio::test]
    async fn what_could_not_be_remembered_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let told = Told::of(directory.path());
        let store = Arc::new(FileStore::open(directory.path()).unwrap());
        let mut stored = Stored::open(store, Box::new(told.clone())).await.unwrap();
        *told.2.lock().unwrap() = true;
        stored.change(revoke_before(1)).await.unwrap();
        assert!(stored.remember().is_err());
        *told.2.lock().unwrap() = false;
        stored.remember().unwrap();
        stored.remember().unwrap();
        assert_eq!(told.commits().iter().map(|commit| commit.revision).collect::<Vec<_>>(), [1]);
    }
}
