//! The outcome of a packet. All steps can return it, and `verdict` turns it into an action and a count.

use aya_ebpf::programs::XdpContext;
use lb_common::reason::{Reason, ReasonCode};

use crate::{events, packet::Frame};

/// How a packet leaves the program. (`Host` is not the first: see `verifier`.)
pub enum Delivery {
    /// Out of an interface, to a backend.
    Send {
        /// The interface.
        ifindex: u32,
        /// The index of the backend's counter.
        counter: u32,
    },
    /// To the network stack of this host.
    Host,
    /// Out of an interface, to a client.
    Back {
        /// The interface.
        ifindex: u32,
    },
}

/// The outcome of a packet.
pub enum Outcome {
    /// It is for no service.
    NotOurs,
    /// It is for the address of a service, but its frame is for another station, and no switch of this host is behind
    /// the interface.
    Misdirected,
    /// It has more VLAN tags than the program parses, and the kernel might deliver it to a service.
    TooManyVlanTags,
    /// It is refused.
    Refused {
        /// The service's index.
        service: u32,
        /// Why. `NotOurs`: the packet is for no service.
        reason: ReasonCode,
    },
    /// It is delivered.
    Delivered {
        /// The service's index.
        service: u32,
        /// The reason that it is counted under: `Forwarded`, or why `mode = "enforce"` would refuse it; `TooBig` where
        /// the packet became a message to its sender.
        reason: ReasonCode,
        /// How it leaves.
        delivery: Delivery,
    },
}

impl Outcome {
    /// Refuses a packet of the service with this index and id. Logs an internal error.
    #[inline(always)]
    pub fn refused(frame: &Frame, service: u32, service_id: u32, reason: impl Into<ReasonCode>) -> Self {
        let reason = reason.into();
        if reason.is(Reason::Internal) {
            events::internal(&XdpContext::new(frame.context()), service_id);
        }
        Self::Refused { service, reason }
    }
}
