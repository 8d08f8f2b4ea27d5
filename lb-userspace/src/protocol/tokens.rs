//! Minted tokens.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, Request, text};

/// `tollgate token mint`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MintToken {
    /// Name or id of the service.
    pub service: String,
    /// Id of the session.
    #[serde(with = "text")]
    #[cfg_attr(test, schemars(with = "text::Schema"))]
    pub session_id: u64,
    /// Type of the token.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// Time until the token expires, in seconds.
    pub ttl: u64,
    /// Address that the client must send from; without it, any address.
    pub bind: Option<std::net::IpAddr>,
    /// Length of the prefix of `bind` that must match; without it, the longest that a token can have.
    pub bind_len: Option<u8>,
    /// Port that the client must send from; without it, any port.
    pub bind_port: Option<u16>,
    /// Rate class.
    pub class: u8,
    /// Id of the backend that gets the session; 0: the Maglev table decides.
    pub backend_id: u16,
}

impl Request for MintToken {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/token/mint";
    const ACCESS: Access = Access::Change;
    type Answer = Minted;
}

/// Type of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// A copy of the token is enough to be admitted.
    #[default]
    Bearer,
    /// Each packet proves that its sender has the session key.
    Proof,
}

impl TokenKind {
    /// As in JSON and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Proof => "proof",
        }
    }
}

/// A new token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Minted {
    /// Header in hex, 64 bytes. Of a PROOF token, the header of a packet with `seq` 0 and an empty payload.
    pub header: String,
    /// Type of the token.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// Id of the key that signed the token.
    pub key_id: u32,
    /// When the token was issued.
    pub issued_at: u64,
    /// When the token expires.
    pub expires_at: u64,
    /// Claims in hex; only of a PROOF token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<String>,
    /// Fast tag in hex; only of a PROOF token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_tag: Option<String>,
    /// Key of the session in hex, a secret; only of a PROOF token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
}

impl std::fmt::Debug for Minted {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minted")
            .field("kind", &self.kind)
            .field("key_id", &self.key_id)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
