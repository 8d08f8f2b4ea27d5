//! Services.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, List, Request};

/// `tollgate services list`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListServices {}

impl Request for ListServices {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/services";
    const ACCESS: Access = Access::Read;
    type Answer = List<ServiceStatus>;
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ServiceStatus {
    /// Name of the service.
    pub name: String,
    /// Id of the service.
    pub service_id: u32,
    /// IP address that clients send to.
    pub address: String,
    /// UDP port that clients send to.
    pub port: u16,
    /// `enforce` or `observe`.
    pub mode: String,
    /// Forwarding mode: `local`, `l2`, `ipip`, `gue` or `nat`.
    pub forward: String,
    /// Whether the token is removed before a datagram is delivered.
    pub strip: bool,
    /// Id of the key that signs; `null` if none does.
    pub active_key_id: Option<u32>,
    /// Number of backends that get sessions.
    pub backends_up: usize,
    /// Number of backends.
    pub backends: usize,
    /// Tokens issued before this time are revoked; 0 if no time is set.
    pub revoked_before: u32,
}
