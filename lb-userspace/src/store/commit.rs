//! Identifies a commit by its store, its revision and its content.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A random number that a store gets with its first commit and keeps. Zero if the store has no id: nothing was ever
/// committed to it, or only a version that wrote format 3 or older did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreId(#[serde(with = "hex::serde")] pub [u8; 16]);

impl StoreId {
    /// No id.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE { f.write_str("without an ID") } else { f.write_str(&hex::encode(self.0)) }
    }
}

/// Identifies one commit. The default stands for a store without any commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The store.
    pub store: StoreId,
    /// Increases with every commit; 0 before the first commit.
    pub revision: u64,
    /// The first half of the SHA-256 of the file's content.
    pub digest: [u8; 16],
}

impl Commit {
    /// Length of [`Commit::to_bytes`], bytes.
    pub const LEN: usize = 40;

    /// Encodes it for use outside the store.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.store.0);
        bytes[16..24].copy_from_slice(&self.revision.to_ne_bytes());
        bytes[24..].copy_from_slice(&self.digest);
        bytes
    }

    /// Decodes [`Commit::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let part = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen bytes");
        let revision = u64::from_ne_bytes(bytes[16..24].try_into().expect("eight bytes"));
        Self { store: StoreId(part(0)), revision, digest: part(24) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_hold_a_commit() {
        let commit = Commit { store: StoreId([7; 16]), revision: u64::MAX - 1, digest: [9; 16] };
        assert_eq!(Commit::from_bytes(&commit.to_bytes()), commit);
        assert_eq!(Commit::from_bytes(&[0; Commit::LEN]), Commit::default());
    }
}
