//! What is revoked, and what is to be.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request};

/// `tollgate sessions list --revoked`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRevocations {
    /// Only this service, by name or id; all services if not given.
    pub service: Option<String>,
}

impl Request for ListRevocations {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/sessions/revoked";
    const ACCESS: Access = Access::Read;
    type Answer = Vec<RevocationStatus>;
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
pub struct RevokeSessions {
    /// The service, by name or id.
    pub service: String,
    /// The sessions; either all or none of them are changed.
    pub sessions: Vec<u64>,
    /// Duration of the revocation in seconds; if not given, the longest time that a token of the service can be valid.
    pub seconds: Option<u64>,
}

impl Request for RevokeSessions {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/sessions/revoke";
    const ACCESS: Access = Access::Change;
    type Answer = Vec<RevocationStatus>;
}

/// `tollgate sessions unrevoke`. The answer is what was revoked until now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnrevokeSessions {
    /// The service, by name or id.
    pub service: String,
    /// The sessions; either all or none of them are changed.
    pub sessions: Vec<u64>,
}

impl Request for UnrevokeSessions {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/sessions/unrevoke";
    const ACCESS: Access = Access::Change;
    type Answer = Vec<RevocationStatus>;
}

/// `tollgate token revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeToken {
    /// The header in hex, or only its first 40 bytes, the claims.
    pub token: String,
    /// The service, by name or id; the service of the token's key if not given.
    pub service: Option<String>,
}

impl Request for RevokeToken {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/token/revoke";
    const ACCESS: Access = Access::Change;
    type Answer = RevocationStatus;
}

/// `tollgate token unrevoke`. The answer is what was revoked until now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnrevokeToken {
    /// The header in hex, or only its first 40 bytes, the claims.
    pub token: String,
    /// The service, by name or id; the service of the token's key if not given.
    pub service: Option<String>,
}

impl Request for UnrevokeToken {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/token/unrevoke";
    const ACCESS: Access = Access::Change;
    type Answer = RevocationStatus;
}

/// `tollgate services revoke-before`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeBefore {
    /// The service, by name or id.
    pub service: String,
    /// Tokens issued before this Unix time, in seconds, are revoked; now if not given.
    pub at: Option<u64>,
}

impl Request for RevokeBefore {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/services/revoke-before";
    const ACCESS: Access = Access::Change;
    type Answer = RevokedBefore;
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
