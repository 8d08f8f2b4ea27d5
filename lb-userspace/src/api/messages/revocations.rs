//! What is revoked, and what is to be.

use serde::{Deserialize, Serialize};

/// How many revocations are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationCounts {
    /// Sessions.
    pub sessions: u32,
    /// Tokens.
    pub tokens: u32,
    /// For both together.
    pub room: u32,
}

/// A revocation: of a session, or of one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationStatus {
    /// The service's name, or its number where the configuration has none of it.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// The session, where one is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The token's nonce in hex, where one is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Unix second.
    pub until: u64,
}

/// `tollgate sessions revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeSessionsRequest {
    /// The service, by name or id.
    pub service: String,
    /// The sessions: all or none.
    pub sessions: Vec<u64>,
    /// For how long; as long as a token of theirs may live if not given.
    pub seconds: Option<u64>,
}

/// `tollgate sessions unrevoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnrevokeSessionsRequest {
    /// The service, by name or id.
    pub service: String,
    /// The sessions: all or none.
    pub sessions: Vec<u64>,
}

/// `tollgate token revoke` and `tollgate token unrevoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokenRequest {
    /// Its header, or the 40 bytes of its claims, in hex.
    pub token: String,
    /// The service, by name or id; that of its key if not given.
    pub service: Option<String>,
}

/// `tollgate services revoke-before`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeBeforeRequest {
    /// The service, by name or id.
    pub service: String,
    /// Unix second; the next one if not given.
    pub at: Option<u64>,
}

/// What `services revoke-before` did. The kernel refuses those tokens by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedBefore {
    /// The service's name.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// Its tokens issued before this unix second are refused.
    pub revoked_before: u32,
}
