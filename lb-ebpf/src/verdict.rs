//! The end of the way: each outcome becomes one action and one count, exactly once.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    counter::{Counter, counter_index},
    reason::Reason,
    service::Service,
};

use crate::{
    events,
    forward::Delivery,
    maps::{BACKEND_COUNTERS, COUNTERS, EGRESS},
};

/// What became of a packet.
pub enum Outcome {
    /// It is for no service.
    NotOurs,
    /// Nobody can tell whose it is, and the kernel might deliver it.
    Buried,
    /// A service's, and refused.
    Refused {
        /// The service.
        service: &'static Service,
        /// Why.
        reason: Reason,
    },
    /// A service's, and on its way.
    Delivered {
        /// The service.
        service: &'static Service,
        /// `Forwarded`, or why `mode = "enforce"` would have refused it.
        reason: Reason,
        /// How it leaves.
        delivery: Delivery,
    },
}

/// The index that counts what is for no service.
const NO_SERVICE: u32 = 0;

/// Counts a frame of `bytes` that came in, and gives the driver's action for it.
#[inline(always)]
pub fn conclude(ctx: &XdpContext, bytes: u64, outcome: Outcome) -> u32 {
    let (service_index, reason, action) = match outcome {
        Outcome::NotOurs => (NO_SERVICE, Reason::NotOurs, xdp_action::XDP_PASS),
        Outcome::Buried => (NO_SERVICE, Reason::Unsupported, xdp_action::XDP_DROP),
        Outcome::Refused { service, reason } => {
            if let Reason::Internal = reason {
                events::internal(ctx, service.id);
            }
            (service.index, reason, xdp_action::XDP_DROP)
        }
        Outcome::Delivered { service, reason, delivery: Delivery::Host } => {
            (service.index, reason, xdp_action::XDP_PASS)
        }
        Outcome::Delivered { service, reason, delivery: Delivery::Send { ifindex, counter } } => {
            match send(ctx, ifindex) {
                Some(action) => {
                    count(BACKEND_COUNTERS.get_ptr_mut(counter), bytes);
                    (service.index, reason, action)
                }
                None => (service.index, Reason::NoBackend, xdp_action::XDP_DROP),
            }
        }
    };
    count(COUNTERS.get_ptr_mut(counter_index(service_index, reason)), bytes);
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
