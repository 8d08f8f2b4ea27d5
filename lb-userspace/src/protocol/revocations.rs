//! Revocations of sessions, tokens, and everything that a service issued before a time.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, List, Request};

/// `tollgate sessions list --revoked`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListRevocations {
    /// Name or id of a service; without it, the request is for all services.
    pub service: Option<String>,
}

impl Request for ListRevocations {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/sessions/revoked";
    const ACCESS: Access = Access::Read;
    type Answer = List<RevocationStatus>;
}

/// The revocation of a session or of one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct RevocationStatus {
    /// Name of the service; its id in digits if the configuration has no such service.
    pub service: String,
    /// Id of the service.
    pub service_id: u32,
    /// Id of the revoked session, in digits; only if a session is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Nonce of the revoked token in hex; only if a token is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// When the revocation ends.
    pub until: u64,
}

/// `tollgate sessions revoke`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeSessions {
    /// Name or id of the service.
    pub service: String,
    /// Ids of the sessions. Either all of them are changed or none.
    pub sessions: Vec<u64>,
    /// Duration of the revocation; without it, the longest time that a token of the service can be valid.
    pub seconds: Option<u64>,
}

impl Request for RevokeSessions {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/sessions/revoke";
    const ACCESS: Access = Access::Change;
    type Answer = List<RevocationStatus>;
}

/// `tollgate sessions unrevoke`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UnrevokeSessions {
    /// Name or id of the service.
    pub service: String,
    /// Ids of the sessions. Either all of them are changed or none.
    pub sessions: Vec<u64>,
}

impl Request for UnrevokeSessions {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/sessions/unrevoke";
    const ACCESS: Access = Access::Change;
    type Answer = List<RevocationStatus>;
}

/// `tollgate token revoke`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeToken {
    /// Header of the token in hex, or only its first 40 bytes, the claims.
    pub token: String,
    /// Name or id of the service; without it, the service of the key of the token.
    pub service: Option<String>,
}

impl Request for RevokeToken {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/token/revoke";
    const ACCESS: Access = Access::Change;
    type Answer = RevocationStatus;
}

/// `tollgate token unrevoke`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UnrevokeToken {
    /// Header of the token in hex, or only its first 40 bytes, the claims.
    pub token: String,
    /// Name or id of the service; without it, the service of the key of the token.
    pub service: Option<String>,
}

impl Request for UnrevokeToken {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/token/unrevoke";
    const ACCESS: Access = Access::Change;
    type Answer = RevocationStatus;
}

/// `tollgate services revoke-before`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeBefore {
    /// Name or id of the service.
    pub service: String,
    /// Tokens issued before this time are revoked; without it, all tokens issued until now.
    pub at: Option<u64>,
}

impl Request for RevokeBefore {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/services/revoke-before";
    const ACCESS: Access = Access::Change;
    type Answer = RevokedBefore;
}

/// Old tokens of a service are revoked: the kernel already refuses them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct RevokedBefore {
    /// Name of the service.
    pub service: String,
    /// Id of the service.
    pub service_id: u32,
    /// Tokens issued before this time are revoked.
    pub revoked_before: u32,
}
