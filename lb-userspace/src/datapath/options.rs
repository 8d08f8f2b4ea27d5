//! Options of a load.

use std::time::Duration;

use lb_common::{
    control::SECOND_NS,
    maps,
    nat::{PER_SESSION_DEFAULT, Ports},
};

use super::{GRACE, Pins};

/// The smallest size of a working LRU map, for maps that are not needed.
pub(super) const LEAST_ENTRIES: u32 = 256;

/// Options of a load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Entries of each token cache, of the flows and of the translations.
    pub sessions: u32,
    /// Whether the token cache is needed.
    pub stateless: bool,
    /// Whether stateful entries are needed.
    pub stateful: bool,
    /// Cost of one HMAC verification in the budget of a CPU, nanoseconds.
    pub hmac_cost_ns: u64,
    /// Time for which entries that were active are not overwritten. Zero in tests, where no other packets are in
    /// flight.
    pub grace: Duration,
    /// The ports of `forward = "nat"`; `None` if no service uses it.
    pub nat_ports: Option<Ports>,
    /// Maximum translations of a session towards one backend.
    pub nat_ports_per_session: u32,
    /// Where the maps are pinned; `None` for maps private to this process.
    pub pins: Option<Pins>,
}

impl Options {
    /// The size of a map without a fixed size.
    pub(super) fn entries(&self, map: &str) -> Option<u32> {
        let is_needed = match map {
            maps::SESSIONS => self.stateless,
            maps::STATEFUL => self.stateful,
            maps::FLOWS => true,
            maps::TRANSLATIONS => self.nat_ports.is_some(),
            _ => return None,
        };
        Some(if is_needed { self.sessions } else { LEAST_ENTRIES })
    }
}

impl Default for Options {
    /// Private maps with the default sizes and budget.
    fn default() -> Self {
        Self {
            sessions: maps::SESSIONS_DEFAULT,
            stateless: true,
            stateful: true,
            hmac_cost_ns: SECOND_NS / maps::HMACS_PER_SECOND_DEFAULT,
            grace: GRACE,
            nat_ports: None,
            nat_ports_per_session: PER_SESSION_DEFAULT,
            pins: None,
        }
    }
}
