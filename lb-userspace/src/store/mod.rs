//! The store of the desired state. One trait for all stores: a snapshot, a watch, and a commit that succeeds only if no
//! other commit was made in between.

mod commit;
mod disk;
mod error;
mod file;

use std::{pin::Pin, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{config::StoreLocation, keyring::Keyring, revocation::Revocations};

pub use commit::{Commit, StoreId};
pub use error::StoreError;
pub use file::FileStore;

/// The desired state of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The keys of all services.
    pub keyring: Keyring,
    /// The revocations. Format 1 had none.
    #[serde(default)]
    pub revocations: Revocations,
}

/// The state at one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit.
    pub commit: Commit,
    /// The state.
    pub state: Arc<State>,
}

/// The result of a store operation.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A store of the desired state.
pub trait Store: Send + Sync {
    /// The newest state.
    fn snapshot(&self) -> StoreFuture<'_, Snapshot>;

    /// The newest state and its changes. A reader may skip states, because each state is complete.
    fn watch(&self) -> watch::Receiver<Snapshot>;

    /// Commits `state` durably if `expected` is still the newest revision.
    ///
    /// Otherwise it fails with `StoreError::Conflict`: take a new snapshot, compute the change again and commit that.
    /// After any error the state is unchanged.
    fn commit(&self, expected: u64, state: State) -> StoreFuture<'_, Snapshot> {
        self.commit_above(expected, 0, state)
    }

    /// [`Store::commit`] with a revision that is also higher than `above`.
    fn commit_above(&self, expected: u64, above: u64, state: State) -> StoreFuture<'_, Snapshot>;
}

/// Opens the store of a configuration.
///
/// # Errors
/// If it is in use, damaged, of a newer format, or accessible to other users. Then nothing has changed.
pub fn open(location: &StoreLocation) -> Result<Arc<dyn Store>, StoreError> {
    match location {
        StoreLocation::File(directory) => Ok(Arc::new(FileStore::open(directory)?)),
    }
}

/// Reads the store of a configuration without a lock, and changes nothing. Root can read a store of another user. A
/// missing store counts as empty.
///
/// # Errors
/// If it cannot be read, is damaged, or is too new.
pub fn inspect(location: &StoreLocation) -> Result<Snapshot, StoreError> {
    match location {
        StoreLocation::File(directory) => FileStore::inspect(directory),
    }
}

#[cfg(test)]
mod tests;
