//! The desired state as it is stored, and changes of it: each is decided on the newest state, and once more if somebody
//! else was faster.

use std::sync::Arc;

use crate::store::{Snapshot, State, Store, StoreError};

/// How often a commit is tried again when somebody else was faster.
const ATTEMPTS: usize = 8;

/// The store, and what it held last.
pub struct Stored {
    store: Arc<dyn Store>,
    snapshot: Snapshot,
}

impl Stored {
    /// Reads the store.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let snapshot = store.snapshot().await?;
        Ok(Self { store, snapshot })
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.snapshot.state
    }

    /// Of the state.
    pub const fn revision(&self) -> u64 {
        self.snapshot.revision
    }

    /// Changes the state and commits it.
    ///
    /// # Errors
    /// If the change is refused, or not stored. Then nothing has changed.
    pub async fn change<T, E: From<StoreError>>(
        &mut self,
        mut change: impl FnMut(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut attempt = 0;
        loop {
            let mut state = State::clone(&self.snapshot.state);
            let result = change(&mut state)?;
            if state == *self.snapshot.state {
                return Ok(result);
            }
            attempt += 1;
            match self.store.commit(self.snapshot.revision, state).await {
                Ok(snapshot) => {
                    self.snapshot = snapshot;
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
