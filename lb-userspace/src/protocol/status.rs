//! The state of a node, and its interfaces.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, BackendStatus, ClockStatus, KeyStatus, Request, ServiceStatus, big};

/// `tollgate status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetStatus {}

impl Request for GetStatus {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/status";
    const ACCESS: Access = Access::Read;
    type Answer = Status;
}

/// The state of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// Of the daemon.
    pub version: String,
    /// It was built from.
    pub commit: String,
    /// The layout of the maps.
    pub abi: u32,
    /// Whether it filters.
    pub ready: bool,
    /// Why it does not.
    pub not_ready: Vec<String>,
    /// The daemon's process.
    pub pid: u32,
    /// How long it has been running, seconds.
    pub uptime_seconds: u64,
    /// Where it filters.
    pub interfaces: Vec<InterfaceStatus>,
    /// What it protects.
    pub services: Vec<ServiceStatus>,
    /// All keys.
    pub keys: Vec<KeyStatus>,
    /// All backends.
    pub backends: Vec<BackendStatus>,
    /// The clock.
    pub clock: ClockStatus,
    /// What is revoked by name.
    pub revocations: RevocationCounts,
    /// Where the kernel differed from what is desired at the last comparison and could not be mended.
    pub differences: Vec<String>,
    /// What went wrong at the last comparison.
    pub errors: Vec<String>,
    /// Of the store.
    #[serde(with = "big")]
    pub store_revision: u64,
    /// Whether the store can be used.
    pub store_connected: bool,
    /// Tokens in the caches.
    #[serde(with = "big")]
    pub sessions: u64,
    /// Those of them of which something is counted: PROOF tokens, and those of services with limits.
    #[serde(with = "big", default)]
    pub sessions_tracked: u64,
    /// Room for those, and for the others.
    pub sessions_max: u32,
    /// Clients behind a port of this node, where a service has `forward = "nat"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_translations: Option<u64>,
    /// Full checks made.
    #[serde(with = "big")]
    pub hmacs: u64,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Whether the program is on it.
    pub attached: bool,
    /// `native` or `generic`.
    pub mode: Option<String>,
    /// The kernel's number for the program.
    pub program_id: Option<u32>,
    /// The destination MAC addresses of the frames that are services'.
    pub macs: Vec<String>,
    /// Whether frames for other stations are passed on: the interface is a port of a switch of this host.
    pub switched: bool,
}

/// How many revocations are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationCounts {
    /// Sessions.
    pub sessions: u32,
    /// Tokens.
    pub tokens: u32,
    /// For both together.
    pub room: u32,
}
