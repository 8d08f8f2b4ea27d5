//! The host that a frame is for, by its destination MAC address.

use lb_common::{
    mac::Mac,
    reason::Reason,
    service::{FORWARD_LOCAL, Service},
};

use crate::model::{
    fixture::{Fixture, LOOPBACK},
    program::Verdict,
};

/// The destination of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The interface that it arrived on.
    Own,
    /// A multicast group, or broadcast.
    Group,
    /// Another station.
    Other {
        /// Whether it can be reached through this host.
        passes: bool,
    },
    /// The daemon has not published the addresses of the interface.
    Unknown,
}

impl Destination {
    /// The outcome of a service's packet that is not addressed to the interface: verdict, index of the service that
    /// counts it, and reason.
    pub fn refuses(self, service: &Service) -> Option<(Verdict, u32, Reason)> {
        let to_host = service.observes() && service.forward == FORWARD_LOCAL;
        let verdict = |passes| if passes { Verdict::Pass } else { Verdict::Drop };
        match self {
            Self::Own => None,
            Self::Group => Some((verdict(to_host), service.index, Reason::Unsupported)),
            Self::Other { passes } => Some((verdict(passes), 0, Reason::NotOurs)),
            Self::Unknown => Some((Verdict::Drop, service.index, Reason::Internal)),
        }
    }
}

/// The destination of a frame that arrived on the interface of test runs.
pub fn destination(fixture: &Fixture, frame: &[u8]) -> Destination {
    let of_interface = || fixture.macs.iter().filter(|entry| entry.ifindex == LOOPBACK);
    let is_own = |octets: &[u8; 6]| of_interface().any(|entry| entry.mac == Mac::new(*octets));
    match frame.first_chunk() {
        Some(octets) if is_own(octets) => Destination::Own,
        Some(octets) if octets[0] % 2 == 1 => Destination::Group,
        _ => match of_interface().find(|entry| entry.mac == Mac::OTHERS) {
            Some(others) => Destination::Other { passes: others.passes == 1 },
            None => Destination::Unknown,
        },
    }
}
