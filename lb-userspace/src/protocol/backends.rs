//! Backends.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request, big};

/// `tollgate backends list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListBackends {
    /// Only this service, by name or id; all services if not given.
    pub service: Option<String>,
}

impl Request for ListBackends {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/backends";
    const ACCESS: Access = Access::Read;
    type Answer = Vec<BackendStatus>;
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// The service's name.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// Its id.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Its share.
    pub weight: u32,
    /// `up`, or why not, in a word.
    pub state: String,
    /// Why not, and what to look at.
    pub detail: String,
    /// Whether it gets sessions.
    pub up: bool,
    /// Its MAC address or that of the router before it, where known.
    pub mac: Option<String>,
    /// The interface that its frames leave through.
    pub interface: Option<String>,
    /// The router before it, if there is one.
    pub gateway: Option<String>,
    /// The VLAN tags of its frames, the outermost first, as in `802.1Q 10`.
    pub tags: Vec<String>,
    /// The longest IP packet that the way takes.
    pub mtu: Option<u16>,
    /// Where packets for it come from, if they are not the client's own: an address, or a prefix of addresses.
    pub source: Option<String>,
    /// Packets sent to it.
    #[serde(with = "big")]
    pub packets: u64,
    /// Bytes sent to it, as they came in.
    #[serde(with = "big")]
    pub bytes: u64,
}
