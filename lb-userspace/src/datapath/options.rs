//! What is decided when the program is loaded.

use std::time::Duration;

use lb_common::{
    control::SECOND_NS,
    maps,
    nat::{PER_SESSION_DEFAULT, Ports},
};

use super::{GRACE, Pins};

/// The least that an LRU works with, for what nobody needs.
pub(super) const LEAST_ENTRIES: u32 = 256;

/// What is decided when the program is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Entries of each token cache, of the flows and of the translations.
    pub sessions: u32,
    /// Whether there are tokens of which nothing is counted.
    pub untracked: bool,
    /// Whether there are tokens of which something is.
    pub tracked: bool,
    /// What one HMAC costs of a CPU's budget, nanoseconds.
    pub hmac_cost_ns: u64,
    /// How long what was live is left alone. Zero for whoever runs the program on packets of its own.
    pub grace: Duration,
    /// The ports of `forward = "nat"`; `None`: nothing is translated.
    pub nat_ports: Option<Ports>,
    /// Translations that a session holds towards one backend, at most.
    pub nat_ports_per_session: u32,
    /// Where the maps are pinned; `None`: private to this process.
    pub pins: Option<Pins>,
}

impl Options {
    /// The size of a map that has no fixed one.
    pub(super) fn entries(&self, map: &str) -> Option<u32> {
        let is_needed = match map {
            maps::SESSIONS => self.untracked,
            maps::STATEFUL => self.tracked,
            maps::FLOWS => true,
            maps::TRANSLATIONS => self.nat_ports.is_some(),
            _ => return None,
        };
        Some(if is_needed { self.sessions } else { LEAST_ENTRIES })
    }
}

impl Default for Options {
    /// Private maps of the sizes and budget that a configuration without numbers gets.
    fn default() -> Self {
        Self {
            sessions: maps::SESSIONS_DEFAULT,
            untracked: true,
            tracked: true,
            hmac_cost_ns: SECOND_NS / maps::HMACS_PER_SECOND_DEFAULT,
            grace: GRACE,
            nat_ports: None,
            nat_ports_per_session: PER_SESSION_DEFAULT,
            pins: None,
        }
    }
}
