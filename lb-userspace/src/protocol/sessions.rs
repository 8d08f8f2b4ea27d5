//! Tokens in the kernel.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, List, Request, TokenKind, text};

/// `tollgate sessions list`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListSessions {
    /// Name or id of a service; without it, the request is for all services.
    pub service: Option<String>,
    /// Largest number of items in the answer; above 10,000 it is 10,000.
    pub limit: usize,
}

impl Request for ListSessions {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/sessions";
    const ACCESS: Access = Access::Read;
    type Answer = List<SessionStatus>;
}

/// A token in the token cache or in the table of stateful entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct SessionStatus {
    /// Name of the service; its id in digits if the configuration has no such service.
    pub service: String,
    /// Id of the service; 0 if the key of the token has left the keyring.
    pub service_id: u32,
    /// Id of the session.
    #[serde(with = "text")]
    #[cfg_attr(test, schemars(with = "text::Schema"))]
    pub session_id: u64,
    /// Type of the token.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// Rate class.
    pub class: u8,
    /// Id of the backend that the token names; 0 if it names none.
    pub backend_id: u16,
    /// Id of the key that signed the token.
    pub key_id: u32,
    /// Nonce of the token in hex.
    pub nonce: String,
    /// When the token was issued.
    pub issued_at: u64,
    /// When the token expires.
    pub expires_at: u64,
    /// Number of addresses that the token was used from; 0 where the service has no `max_sources`.
    pub sources: usize,
    /// Whether packets with the token are dropped as `revoked`.
    pub revoked: bool,
}
