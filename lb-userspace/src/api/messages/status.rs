//! How a node does: its interfaces, services, backends, clock.

use serde::{Deserialize, Serialize};

use super::{KeyStatus, RevocationCounts, big};

/// `tollgate status`.
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

/// `tollgate clock`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// The wall clock, unix seconds.
    pub wall: f64,
    /// The program's clock, unix seconds.
    pub program: f64,
    /// The wall clock less the program's.
    pub difference_seconds: f64,
    /// Whether the program keeps the time it had, because the wall clock was set back.
    pub held: bool,
    /// Since the program's clock was last found to be right.
    pub confirmed_age_seconds: f64,
    /// Whether that is so long ago that new tokens are refused.
    pub stale: bool,
    /// How often the wall clock was set forward while this daemon ran.
    pub jumps_forward: u64,
    /// How often it was set back.
    pub jumps_backward: u64,
}

/// `tollgate clock accept`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptClockRequest {}

/// What `clock accept` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAccepted {
    /// By how much the program's clock went back.
    pub seconds_back: u64,
    /// What all services issued before this unix second is refused.
    pub revoked_before: u64,
}
