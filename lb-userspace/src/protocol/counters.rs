//! Packets and bytes.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, Request, big};

/// `tollgate counters`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetCounters {
    /// Name or id of a service; without it, the request is for all services.
    pub service: Option<String>,
}

impl Request for GetCounters {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/counters";
    const ACCESS: Access = Access::Read;
    type Answer = CounterReport;
}

/// The counters of the XDP program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct CounterReport {
    /// Passed: packets to no service.
    pub not_ours: Count,
    /// Dropped as `unsupported`: packets with so many VLAN tags that their service is unknown.
    pub too_many_vlan_tags: Count,
    /// Dropped as `tables_changed`, for a service or for none: the tables changed twice while a CPU handled
    /// the packet.
    pub tables_changed: Count,
    /// Counters of each service.
    pub services: Vec<ServiceCounters>,
}

/// Counters of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ServiceCounters {
    /// Name of the service.
    pub service: String,
    /// Id of the service.
    pub service_id: u32,
    /// One entry for each reason, in the order of their numbers, without `not_ours` and `tables_changed`.
    pub reasons: Vec<ReasonCount>,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Count {
    /// Packets.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub packets: u64,
    /// Bytes of the received frames.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub bytes: u64,
}

/// Packets and bytes of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReasonCount {
    /// Name of the reason, as in metrics; see token.md.
    pub reason: String,
    /// Packets and bytes of that reason.
    #[serde(flatten)]
    pub count: Count,
}
