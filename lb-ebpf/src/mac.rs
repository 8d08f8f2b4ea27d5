//! Last part of step 1: whether a frame is for this interface. If a switch floods frames, a packet for a service's
//! address can be for another balancer. If this node forwarded it too, the packet would reach its backend twice, and
//! two such balancers would forward each other's frames (docs/adr/0013).

use lb_common::{
    control::Tables,
    mac::{MAC_BUCKETS, Mac, MacEntry},
    reason::Reason,
    service::{FORWARD_LOCAL, Service},
};

use crate::{
    maps::MACS,
    outcome::{Delivery, Outcome},
    packet::Frame,
    run::Run,
};

/// Whether the destination MAC address is one that the interface accepts.
#[inline(always)]
pub fn is_own(run: &Run) -> bool {
    destination(&run.frame).is_some_and(|mac| entry(&run.frame, run.tables, mac).is_some())
}

/// The outcome of a service's packet in a frame whose destination is not an address of the interface.
#[inline(always)]
pub fn refused(run: &Run, service: &Service) -> Outcome {
    let refused = |reason: Reason| Outcome::refused(&run.frame, service.index, service.id, reason);
    if destination(&run.frame).is_some_and(Mac::is_group) {
        // A host discards a datagram to a unicast address in a link-layer broadcast (RFC 1122 §3.3.6); Linux does so
        // only with `drop_unicast_in_l2_multicast`. Every balancer on the segment receives this frame, and none
        // forwards it. In observe mode the frame reaches this host's own socket as it would without the program.
        return match service.observes() && service.forward == FORWARD_LOCAL {
            true => Outcome::Delivered {
                service: service.index,
                reason: Reason::Unsupported.into(),
                delivery: Delivery::Host,
            },
            false => refused(Reason::Unsupported),
        };
    }
    match entry(&run.frame, run.tables, Mac::OTHERS) {
        Some(others) if others.passes != 0 => Outcome::NotOurs,
        // If it were passed, the host would accept it after a change of the interface's address, until the daemon
        // publishes the change.
        Some(_) => Outcome::Misdirected,
        // The daemon has not published the addresses of the interface.
        None => refused(Reason::Internal),
    }
}

/// Whether the program is attached to the frame's interface in generic mode.
#[inline(always)]
pub fn is_generic(frame: &Frame, tables: Tables) -> bool {
    entry(frame, tables, Mac::OTHERS).is_some_and(|others| others.generic != 0)
}

#[inline(always)]
fn destination(frame: &Frame) -> Option<Mac> {
    frame.start().read(0).map(Mac::of_frame)
}

#[inline(always)]
fn entry(frame: &Frame, tables: Tables, mac: Mac) -> Option<&'static MacEntry> {
    let ifindex = frame.ingress();
    let bucket = MACS.get(tables.bank * MAC_BUCKETS + mac.bucket(ifindex, tables.seed))?;
    bucket.iter().find(|entry| entry.mac == mac && entry.ifindex == ifindex)
}
