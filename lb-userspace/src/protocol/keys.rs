//! Keys, and what was done with them.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request};
use crate::keyring::{KeyState, Keyset};

/// `tollgate keys list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListKeys {}

impl Request for ListKeys {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/keys";
    const ACCESS: Access = Access::Read;
    type Answer = Vec<KeyStatus>;
}

/// A key, without its secret. Times are unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// The service's name, or its number where the configuration has none of it.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// Its id.
    pub key_id: u32,
    /// What it may do.
    pub state: KeyState,
    /// Whether the kernel verifies with it.
    pub installed: bool,
    /// When it was made or imported.
    pub created_at: u64,
    /// When it began to sign.
    pub activated_at: Option<u64>,
    /// When it ends.
    pub not_after: Option<u64>,
    /// Whether another node made it.
    pub imported: bool,
}

/// `tollgate keys rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateKeys {
    /// The service, by name or id; all services if not given.
    pub service: Option<String>,
}

impl Request for RotateKeys {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/rotate";
    const ACCESS: Access = Access::Change;
    type Answer = Vec<Rotated>;
}

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The service's name.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// The new key.
    pub key_id: u32,
    /// `active`, or `staged` while a kernel does not have it.
    pub state: KeyState,
    /// The key before it.
    pub previous: Option<u32>,
}

/// `tollgate keys revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeKey {
    /// The key.
    pub key_id: u32,
}

impl Request for RevokeKey {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/revoke";
    const ACCESS: Access = Access::Change;
    type Answer = Revoked;
}

/// What a revocation did. The kernel refuses the key by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The key.
    pub key_id: u32,
    /// The service it belongs to.
    pub service_id: u32,
    /// What it was.
    pub was: KeyState,
    /// The key that signs now.
    pub active_key: Option<u32>,
}

/// `tollgate keys export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportKeys {
    /// The service, by name or id.
    pub service: String,
}

impl Request for ExportKeys {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/export";
    const ACCESS: Access = Access::Change;
    type Answer = Keyset;
}

/// `tollgate keys import`. The body is a keyset, as `keys export` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImportKeys(pub Keyset);

impl Request for ImportKeys {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/import";
    const ACCESS: Access = Access::Change;
    type Answer = ImportReport;
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Keys that are new here.
    pub added: Vec<u32>,
    /// Keys that were here.
    pub known: Vec<u32>,
    /// Keys that were left out, for they were revoked or have ended.
    pub skipped: Vec<u32>,
}
