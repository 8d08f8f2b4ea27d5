//! Packets and bytes.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request, big};

/// `tollgate counters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetCounters {
    /// Only this service, by name or id; all services if not given.
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
pub struct CounterReport {
    /// What was for no service.
    pub not_ours: Count,
    /// Dropped as `unsupported` under so many VLAN tags that nobody can tell whose they were.
    pub buried: Count,
    /// Dropped, for a service or for none, because the tables changed twice while a CPU handled the packet.
    pub tables_changed: Count,
    /// By service.
    pub services: Vec<ServiceCounters>,
}

/// A service's counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounters {
    /// Its name.
    pub service: String,
    /// Its id.
    pub service_id: u32,
    /// By reason: all of them, in the order of their numbers, but `not_ours` and `tables_changed`.
    pub reasons: Vec<ReasonCount>,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    #[serde(with = "big")]
    pub packets: u64,
    /// Bytes of their frames, as they came in.
    #[serde(with = "big")]
    pub bytes: u64,
}

/// Packets and bytes of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Its name.
    pub reason: String,
    /// How many.
    #[serde(flatten)]
    pub count: Count,
}
