//! Tokens that are minted.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request, text};

/// `tollgate token mint`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MintToken {
    /// The service, by name or id.
    pub service: String,
    /// The session.
    #[serde(with = "text")]
    pub session: u64,
    /// `bearer` or `proof`.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// Seconds.
    pub ttl: u64,
    /// The address that its client must send from,
    pub bind: Option<std::net::IpAddr>,
    /// so many bits of it; all that can be bound if not given,
    pub bind_len: Option<u8>,
    /// and the port.
    pub bind_port: Option<u16>,
    /// The rate class.
    pub class: u8,
    /// The backend to be pinned to; 0: none.
    pub backend: u16,
}

impl Request for MintToken {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/token/mint";
    const ACCESS: Access = Access::Change;
    type Answer = Minted;
}

/// The type of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// Whoever holds it is in.
    #[default]
    Bearer,
    /// Each packet proves that its sender holds the session key.
    Proof,
}

/// A minted token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    /// The 64 bytes of a BEARER header; of a PROOF token the first header's, with `seq` 0 and an empty payload.
    pub header: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// The key that signed it.
    pub key_id: u32,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// PROOF: the claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<String>,
    /// PROOF: the fast tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_tag: Option<String>,
    /// PROOF: the session's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
}

impl std::fmt::Debug for Minted {
    /// Without what lets somebody in.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minted")
            .field("kind", &self.kind)
            .field("key_id", &self.key_id)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
