//! The state of a node, and its interfaces.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, BackendStatus, ClockStatus, KeyStatus, Request, ServiceStatus, big};

/// `tollgate status`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetStatus {}

impl Request for GetStatus {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/status";
    const ACCESS: Access = Access::Read;
    type Answer = Status;
}

/// The state of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Status {
    /// Name of the node.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Git commit that the daemon was built from.
    pub commit: String,
    /// Version of the layout of the BPF maps.
    pub abi: u32,
    /// Whether the node filters and can deliver; what `/readyz` answers.
    pub ready: bool,
    /// The reasons why `ready` is false.
    pub not_ready: Vec<String>,
    /// Process id of the daemon.
    pub pid: u32,
    /// Time since the daemon started.
    pub uptime_seconds: u64,
    /// The interfaces that are filtered.
    pub interfaces: Vec<InterfaceStatus>,
    /// The protected services.
    pub services: Vec<ServiceStatus>,
    /// The keys of all services.
    pub keys: Vec<KeyStatus>,
    /// The backends of all services.
    pub backends: Vec<BackendStatus>,
    /// The clock that tokens are checked against.
    pub clock: ClockStatus,
    /// Number of revocations in force.
    pub revocations: RevocationCounts,
    /// Where the kernel differs from the desired state and could not be corrected.
    pub differences: Vec<String>,
    /// Errors of the last round of the reconcile loop.
    pub errors: Vec<String>,
    /// Revision of the store.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub store_revision: u64,
    /// Whether the store can be used.
    pub store_connected: bool,
    /// Entries of the token cache: BEARER tokens of services without limits.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub token_cache_entries: u64,
    /// Stateful entries: PROOF tokens, and tokens of services with limits.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub stateful_entries: u64,
    /// Capacity of the token cache, and of the table of stateful entries.
    pub token_cache_capacity: u32,
    /// Clients that have a port of this node; only where a service has `forward = "nat"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat_translations: Option<u64>,
    /// HMAC verifications since the program was loaded.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub hmac_verifications: u64,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct InterfaceStatus {
    /// Name of the interface.
    pub name: String,
    /// Whether the XDP program is attached to it.
    pub attached: bool,
    /// XDP mode: `native` or `generic`; `null` if not attached.
    pub mode: Option<String>,
    /// Id of the BPF program in the kernel; `null` if not attached.
    pub program_id: Option<u32>,
    /// Destination MAC addresses of frames that are filtered.
    pub macs: Vec<String>,
    /// Whether frames to other MAC addresses pass, because the interface is a port of a bridge or of Open
    /// vSwitch.
    pub switched: bool,
}

/// Number of revocations in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct RevocationCounts {
    /// Revoked sessions.
    pub sessions: u32,
    /// Revoked tokens.
    pub tokens: u32,
    /// Capacity for revoked sessions and tokens together.
    pub capacity: u32,
}
