//! What can keep the daemon from starting.

use super::{keys::KeysError, lineage::Mismatch, network::NetworkError};
use crate::{datapath::DatapathError, revocation::RevocationError, store::StoreError};

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data path.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is not the one that the kernel state was made from.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The kernel has more revocations than the store can take in.
    #[error(transparent)]
    Revocations(#[from] RevocationError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
}
