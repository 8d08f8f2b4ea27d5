//! Whom a frame is for, by its destination MAC address.

use crate::world::{LOOPBACK, World};
use lb_common::mac::Mac;

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The interface's.
    Own,
    /// A group's, or everybody's.
    Group,
    /// Another station's.
    Other {
        /// Whether it may be reached through this host.
        passes: bool,
    },
    /// Nobody has said what addresses the interface has.
    Unknown,
}

/// Whose a frame is that came in on the interface of test runs.
pub fn destination(world: &World, frame: &[u8]) -> Destination {
    let of_interface = || world.macs.iter().filter(|entry| entry.ifindex == LOOPBACK);
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
