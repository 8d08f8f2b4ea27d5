//! The end of the way: each outcome becomes one action and one count, exactly once.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    counter::{Counter, numbered_index},
    live::{Live, Tables},
    reason::Reason,
};

use crate::{
    admit, events,
    forward::Delivery,
    maps::{BACKEND_COUNTERS, COUNTERS, EGRESS},
    packet::Frame,
};

/// A reason, as far as counting goes: its number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counted(u8);

impl From<Reason> for Counted {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self(reason as u8)
    }
}

impl Counted {
    /// The same by way of the scratch, out of which the verifier does not know it: else it would look at all that follows
    /// once for each reason.
    #[inline(always)]
    pub fn whichever(reason: Reason) -> Result<Self, Reason> {
        let number = &raw mut admit::scratch()?.observed;
        // SAFETY: a field of this CPU's own value. Volatile, for LLVM would keep it as it was.
        unsafe {
            number.write_volatile(reason.index());
            Ok(Self(number.read_volatile() as u8))
        }
    }
}

/// What became of a packet.
pub enum Outcome {
    /// It is for no service.
    NotOurs,
    /// For a service's address, in a frame for another station that nothing behind this interface can reach.
    Misdirected,
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
        reason: Counted,
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

/// No backend's counter.
const NO_BACKEND: u32 = u32::MAX;

/// Counts a frame of `bytes` that came in, and gives the driver's action for it. `tables` are those that it was judged by.
#[inline(always)]
pub fn conclude(ctx: &XdpContext, bytes: u64, outcome: Outcome, (live, tables): (&Live, Tables)) -> u32 {
    let (mut service, Counted(mut reason), mut action, mut backend) = match outcome {
        Outcome::NotOurs => (NO_SERVICE, Reason::NotOurs.into(), xdp_action::XDP_PASS, NO_BACKEND),
        Outcome::Misdirected => (NO_SERVICE, Reason::NotOurs.into(), xdp_action::XDP_DROP, NO_BACKEND),
        Outcome::Buried => (NO_SERVICE, Reason::Unsupported.into(), xdp_action::XDP_DROP, NO_BACKEND),
        Outcome::Refused { service, reason } => (service, reason.into(), xdp_action::XDP_DROP, NO_BACKEND),
        Outcome::Delivered { service, reason, delivery: Delivery::Host } => {
            (service, reason, xdp_action::XDP_PASS, NO_BACKEND)
        }
        Outcome::Delivered { service, reason, delivery: Delivery::Send { ifindex, counter } } => {
            match send(ctx, ifindex) {
                Some(action) => (service, reason, action, counter),
                None => (service, Reason::NoBackend.into(), xdp_action::XDP_DROP, NO_BACKEND),
            }
        }
        Outcome::Delivered { service, reason, delivery: Delivery::Back { ifindex } } => {
            (service, reason, send(ctx, ifindex).unwrap_or(xdp_action::XDP_DROP), NO_BACKEND)
        }
    };
    // Last, so that every table has been read.
    if tables_changed(live, tables) {
        (service, Counted(reason)) = (NO_SERVICE, Reason::TablesChanged.into());
        (action, backend) = (xdp_action::XDP_DROP, NO_BACKEND);
    }
    if backend != NO_BACKEND {
        count(BACKEND_COUNTERS.get_ptr_mut(backend), bytes);
    }
    count(COUNTERS.get_ptr_mut(numbered_index(service, reason.into())), bytes);
    action
}

/// Whether these tables may have been written to since the packet came: nothing that they said holds then.
#[inline(always)]
fn tables_changed(live: &Live, tables: Tables) -> bool {
    // SAFETY: an aligned word of the map's value, which the daemon stores to while the program runs.
    tables.may_be_overwritten(unsafe { (&raw const live.begun).read_volatile() })
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
