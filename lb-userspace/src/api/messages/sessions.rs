//! Tokens in the cache.

use serde::{Deserialize, Serialize};

use super::{TokenKind, text};

/// `tollgate sessions list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// How many there are.
    pub matching: u64,
    /// As many of them as were asked for.
    pub sessions: Vec<SessionStatus>,
}

/// A token in a cache. Times are unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// The service's name, or its number where the configuration has none of it.
    pub service: String,
    /// The service; 0 where its key is no longer here.
    pub service_id: u32,
    /// The session.
    #[serde(with = "text")]
    pub session_id: u64,
    /// `bearer` or `proof`.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// The rate class.
    pub class: u8,
    /// The backend it is pinned to; 0: none.
    pub backend: u16,
    /// The key that signed it.
    pub key_id: u32,
    /// The nonce, in hex.
    pub nonce: String,
    /// When it was issued.
    pub issued_at: u64,
    /// When it ends.
    pub expires_at: u64,
    /// Addresses it is used from, where `max_sources` has them counted.
    pub sources: usize,
    /// Whether its packets are refused as `revoked`.
    pub revoked: bool,
}
