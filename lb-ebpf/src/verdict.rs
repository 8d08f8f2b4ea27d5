//! The end of the packet path: each outcome becomes exactly one action and one count.

use aya_ebpf::bindings::xdp_action;
use lb_common::{
    counter::{Counter, numbered_index},
    reason::{Reason, ReasonCode},
};

use crate::{
    maps::{BACKEND_COUNTERS, COUNTERS, EGRESS},
    outcome::{Delivery, Outcome},
    run::Run,
    shared::field,
};

/// The index that counts packets for no service.
const NO_SERVICE: u32 = 0;

/// The value that stands for no backend counter.
const NO_BACKEND: u32 = u32::MAX;

/// Counts the frame of a run, and returns the driver's action for it.
#[inline(always)]
pub fn conclude(run: &Run, outcome: Outcome) -> u32 {
    let code = ReasonCode::from;
    let (mut service, mut reason, mut action, mut backend) = match outcome {
        Outcome::NotOurs => (NO_SERVICE, code(Reason::NotOurs), xdp_action::XDP_PASS, NO_BACKEND),
        Outcome::Misdirected => (NO_SERVICE, code(Reason::NotOurs), xdp_action::XDP_DROP, NO_BACKEND),
        Outcome::TooManyVlanTags => (NO_SERVICE, code(Reason::Unsupported), xdp_action::XDP_DROP, NO_BACKEND),
        Outcome::Refused { reason, .. } if reason.is(Reason::NotOurs) => {
            (NO_SERVICE, reason, xdp_action::XDP_PASS, NO_BACKEND)
        }
        Outcome::Refused { service, reason } => (service, reason, xdp_action::XDP_DROP, NO_BACKEND),
        Outcome::Delivered { service, reason, delivery: Delivery::Host } => {
            (service, reason, xdp_action::XDP_PASS, NO_BACKEND)
        }
        Outcome::Delivered { service, reason, delivery: Delivery::Send { ifindex, counter } } => {
            match send(run, ifindex) {
                Some(action) => (service, reason, action, counter),
                None => (service, code(Reason::NoBackend), xdp_action::XDP_DROP, NO_BACKEND),
            }
        }
        Outcome::Delivered { service, reason, delivery: Delivery::Back { ifindex } } => {
            (service, reason, send(run, ifindex).unwrap_or(xdp_action::XDP_DROP), NO_BACKEND)
        }
    };
    // Last, after every table has been read.
    if tables_changed(run) {
        (service, reason) = (NO_SERVICE, code(Reason::TablesChanged));
        (action, backend) = (xdp_action::XDP_DROP, NO_BACKEND);
    }
    let bytes = run.frame.len();
    if backend != NO_BACKEND {
        count(BACKEND_COUNTERS.get_ptr_mut(backend), bytes);
    }
    count(COUNTERS.get_ptr_mut(numbered_index(service, reason.index())), bytes);
    action
}

/// Whether the daemon may have written to the run's tables since the run began. If so, all values that were read from
/// them are invalid.
#[inline(always)]
fn tables_changed(run: &Run) -> bool {
    run.tables.may_be_overwritten(field!(run.control, begun).read())
}

/// The action that sends the frame out of an interface; `None` if the daemon has not enabled sending from it.
#[inline(always)]
fn send(run: &Run, ifindex: u32) -> Option<u32> {
    if ifindex == run.frame.ingress() {
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
