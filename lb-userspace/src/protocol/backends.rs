//! Backends.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, List, Request, big};

/// `tollgate backends list`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListBackends {
    /// Name or id of a service; without it, the request is for all services.
    pub service: Option<String>,
}

impl Request for ListBackends {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/backends";
    const ACCESS: Access = Access::Read;
    type Answer = List<BackendStatus>;
}

/// A backend and its next hop. The keys about the next hop are `null` while it is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct BackendStatus {
    /// Name of the service.
    pub service: String,
    /// Id of the service.
    pub service_id: u32,
    /// Id of the backend.
    pub backend_id: u16,
    /// Name of the backend.
    pub name: String,
    /// IP address of the backend.
    pub address: String,
    /// UDP port of the backend.
    pub port: u16,
    /// Share of the sessions, relative to the weights of the other backends.
    pub weight: u32,
    /// `up`, or in one word why the backend gets no sessions: `resolving`, `no-neighbour`, `no-route`,
    /// `link-down`, `behind-router`, `wrong-interface`, `no-source`, or `unused` for a backend of a `local`
    /// service.
    pub state: String,
    /// The state as a sentence, with what to look at.
    pub detail: String,
    /// Whether the backend gets sessions.
    pub up: bool,
    /// MAC address of the next hop: the backend, or the router in front of it.
    pub mac: Option<String>,
    /// Interface that frames to the backend leave through.
    pub interface: Option<String>,
    /// Address of the router in front of the backend; `null` on the same segment.
    pub gateway: Option<String>,
    /// VLAN tags of frames to the backend, outermost first, such as `802.1Q 10`.
    pub vlan_tags: Vec<String>,
    /// Largest IP packet that the route takes, in bytes.
    pub mtu: Option<u16>,
    /// Source address or prefix of packets to the backend; `null` where the address of the client is kept.
    pub source: Option<String>,
    /// Packets sent to the backend.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub packets: u64,
    /// Bytes sent to the backend, as received from clients.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub bytes: u64,
}
