//! Tokens in the cache.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request, TokenKind, text};

/// `tollgate sessions list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListSessions {
    /// Only this service, by name or id; all services if not given.
    pub service: Option<String>,
    /// The answer lists at most so many entries, and never more than 10,000.
    pub limit: usize,
}

impl Request for ListSessions {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/sessions";
    const ACCESS: Access = Access::Read;
    type Answer = SessionList;
}

/// Tokens in the token cache and the table of stateful entries.
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
