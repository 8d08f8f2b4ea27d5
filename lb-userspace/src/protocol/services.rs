//! Services.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request};

/// `tollgate services list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListServices {}

impl Request for ListServices {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/services";
    const ACCESS: Access = Access::Read;
    type Answer = Vec<ServiceStatus>;
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Where it is reached.
    pub address: String,
    /// Where it is reached.
    pub port: u16,
    /// `enforce` or `observe`.
    pub mode: String,
    /// `local`, `l2`, `ipip`, `gue` or `nat`.
    pub forward: String,
    /// Whether the token is taken off.
    pub strip: bool,
    /// The key that signs.
    pub active_key: Option<u32>,
    /// Backends that may be used.
    pub backends_up: usize,
    /// Backends.
    pub backends: usize,
    /// Its tokens issued before this unix second are revoked; 0 for none.
    pub revoked_before: u32,
}
