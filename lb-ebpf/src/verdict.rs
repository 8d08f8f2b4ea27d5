//! The end of the way: each outcome becomes one action and one count, exactly once.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    counter::{Counter, counter_index},
    reason::Reason,
};

use crate::{
    events,
    forward::Delivery,
    maps::{BACKEND_COUNTERS, COUNTERS, EGRESS},
    packet::Frame,
};

/// What became of a packet.
pub enum Outcome {
    /// It is for no service.
    NotOurs,
    /// Nobody can tell whose it is, and the kernel might deliver it.
    Buried,
    /// A service's, and refused.
    Refused {
        /// The service's index.
        service: u32,
        /// Why.
        reason: Reason,
    },
    /// A service's, and on its way.
    Delivered {
        /// The service's index.
        service: u32,
        /// What it is counted under: `Forwarded`, or why `mode = "enforce"` would have refused it; `TooBig` where what
        /// leaves is a message to its sender.
        reason: Reason,
        /// How it leaves.
        delivery: Delivery,
    },
}

impl Outcome {
    /// A service's packet that is refused.
    #[inline(always)]
    pub fn refused(frame: &Frame, (index, id): (u32, u32), reason: Reason) -> Self {
        if let Reason::Internal = reason {
            events::internal(&XdpContext::new(frame.context()), id);
        }
        Self::Refused { service: index, reason }
    }
}

/// The index that counts what is for no service.
const NO_SERVICE: u32 = 0;

/// Counts a frame of `bytes` that came in, and gives the driver's action for it.
#[inline(always)]
pub fn conclude(ctx: &XdpContext, bytes: u64, outcome: Outcome) -> u32 {
    let (service, reason, action) = match outcome {
        Outcome::NotOurs => (NO_SERVICE, Reason::NotOurs, xdp_action::XDP_PASS),
        Outcome::Buried => (NO_SERVICE, Reason::Unsupported, xdp_action::XDP_DROP),
        Outcome::Refused { service, reason } => (service, reason, xdp_action::XDP_DROP),
        Outcome::Delivered { service, reason, delivery: Delivery::Host } => {
            (service, reason, xdp_action::XDP_PASS)
        }
        Outcome::Delivered { service, reason, delivery: Delivery::Send { ifindex, counter } } => {
            match send(ctx, ifindex) {
                Some(action) => {
                    count(BACKEND_COUNTERS.get_ptr_mut(counter), bytes);
                    (service, reason, action)
                }
                None => (service, Reason::NoBackend, xdp_action::XDP_DROP),
            }
        }
        Outcome::Delivered { service, reason, delivery: Delivery::Back { ifindex } } => {
            (service, reason, send(ctx, ifindex).unwrap_or(xdp_action::XDP_DROP))
        }
    };
    count(COUNTERS.get_ptr_mut(counter_index(service, reason)), bytes);
    action
}

/// Out of an interface; `None` if the daemon has not made it one that may be sent out of.
#[inline(always)]
fn send(ctx: &XdpContext, ifindex: u32) -> Option<u32> {
    if ifindex == ctx.ingress_ifindex() as u32 {
        return Some(xdp_action::XDP_TX);
    }
    EGRESS.redirect(ifindex, xdp_action::XDP_DROP.into()).ok()
}

#[inline(always)]
fn count(counter: Option<*mut Counter>, bytes: u64) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}
