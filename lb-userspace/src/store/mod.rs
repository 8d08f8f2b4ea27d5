//! Where the desired state lives. One trait, whatever keeps it: a snapshot, a watch, and a commit that only succeeds
//! if nobody else committed in between.

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

/// What a node is to make true. Services and backends of a shared store join it here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The keys of all services.
    pub keyring: Keyring,
    /// What is revoked before its time. Format 1 had none.
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

/// What a store promises to answer.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Keeps the desired state.
pub trait Store: Send + Sync {
    /// The newest state.
    fn snapshot(&self) -> StoreFuture<'_, Snapshot>;

    /// The newest state as it changes, whoever changes it. What comes between two looks is skipped: a state is
    /// whole in itself.
    fn watch(&self) -> watch::Receiver<Snapshot>;

    /// Makes `state` the newest, durably, if `expected` is still the newest revision.
    ///
    /// Fails with `StoreError::Conflict` if it is not: then take a new snapshot, decide again and commit that.
    /// After any error the state is as it was before.
    fn commit(&self, expected: u64, state: State) -> StoreFuture<'_, Snapshot> {
        self.commit_above(expected, 0, state)
    }

    /// [`Store::commit`] with a revision that is also higher than `above`.
    fn commit_above(&self, expected: u64, above: u64, state: State) -> StoreFuture<'_, Snapshot>;
}

/// Opens the store of a configuration.
///
/// # Errors
/// If it is in use, damaged, too new or not to be trusted. Nothing has changed then.
pub fn open(location: &StoreLocation) -> Result<Arc<dyn Store>, StoreError> {
    match location {
        StoreLocation::File(directory) => Ok(Arc::new(FileStore::open(directory)?)),
    }
}

/// Reads the store of a configuration as it is now, also one that another user owns if this is root. Does not lock it, and
/// changes nothing; a store that is not there is empty.
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
