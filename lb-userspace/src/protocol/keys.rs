//! Keys.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, List, Request};
use crate::keyring::{KeyState, Keyset};

/// `tollgate keys list`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListKeys {}

impl Request for ListKeys {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/keys";
    const ACCESS: Access = Access::Read;
    type Answer = List<KeyStatus>;
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct KeyStatus {
    /// Name of the service; its id in digits if the configuration has no such service.
    pub service: String,
    /// Id of the service.
    pub service_id: u32,
    /// Id of the key.
    pub key_id: u32,
    /// State of the key.
    pub state: KeyState,
    /// Whether the kernel verifies with the key.
    pub installed: bool,
    /// When the key was made or imported.
    pub created_at: u64,
    /// When the key began to sign; `null` if it never did.
    pub activated_at: Option<u64>,
    /// When the key stops verifying; `null` if no end is set.
    pub not_after: Option<u64>,
    /// Whether the key was imported from another node.
    pub imported: bool,
}

/// `tollgate keys rotate`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RotateKeys {
    /// Name or id of a service; without it, the request is for all services.
    pub service: Option<String>,
}

impl Request for RotateKeys {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/rotate";
    const ACCESS: Access = Access::Change;
    type Answer = List<Rotated>;
}

/// A key rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Rotated {
    /// Name of the service.
    pub service: String,
    /// Id of the service.
    pub service_id: u32,
    /// Id of the new key.
    pub key_id: u32,
    /// `active`, or `staged` until the kernel has the key.
    pub state: KeyState,
    /// Id of the key that signed before; `null` if there was none.
    pub previous_key_id: Option<u32>,
}

/// `tollgate keys revoke`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeKey {
    /// Id of the key.
    pub key_id: u32,
}

impl Request for RevokeKey {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/revoke";
    const ACCESS: Access = Access::Change;
    type Answer = Revoked;
}

/// A key is revoked: the kernel already refuses its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Revoked {
    /// Id of the key.
    pub key_id: u32,
    /// Id of the service that the key belongs to.
    pub service_id: u32,
    /// State of the key before the request.
    pub previous_state: KeyState,
    /// Id of the key that signs now; `null` if none does.
    pub active_key_id: Option<u32>,
}

/// `tollgate keys export`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExportKeys {
    /// Name or id of the service.
    pub service: String,
}

impl Request for ExportKeys {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/export";
    const ACCESS: Access = Access::Change;
    type Answer = Keyset;
}

/// `tollgate keys import`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(transparent)]
pub struct ImportKeys(pub Keyset);

impl Request for ImportKeys {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/import";
    const ACCESS: Access = Access::Change;
    type Answer = ImportReport;
}

/// Ids of the imported keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ImportReport {
    /// Ids of keys that were unknown and are now stored.
    pub added: Vec<u32>,
    /// Ids of keys that were already stored.
    pub known: Vec<u32>,
    /// Ids of keys that were not imported because they are revoked or have ended.
    pub skipped: Vec<u32>,
}
