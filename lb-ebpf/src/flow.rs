//! Where a client's session went, remembered for the ICMP errors that quote what its backend answers. A client's address is
//! anybody's to write: a flow stays with the session that is in use (docs/adr/0010).

use lb_common::{
    flow::{Activity, Flow, FlowKey, is_bound},
    scratch::{Arrival, Scratch},
    service::FORWARD_LOCAL,
    session::{Seen, Session, TrackedSession},
};

use crate::{
    clock::Now,
    headers::{Address, Ip, Ipv4, Ipv6, Udp},
    maps::{FLOWS, SESSIONS, TRACKED},
    packet::{Cursor, Frame},
    parse::IP_AT_MASK,
};

/// Makes the session of an entry, whose token's key is in the scratch, that of its client. False if it is another's, whose
/// token is in use. This host's own stack needs no help.
#[inline(always)]
pub fn claim(frame: &Frame, scratch: &mut Scratch, now: Now, entry: *const Session) -> bool {
    let Arrival { ip_at, v6, forward, service_index, tracked, .. } = scratch.arrival;
    if forward == FORWARD_LOCAL {
        return true;
    }
    let ip = frame.start().skip(ip_at as usize & IP_AT_MASK);
    let from = match v6 {
        0 => from::<Ipv4>(ip),
        _ => from::<Ipv6>(ip),
    };
    let Some((client_be, client_port_be)) = from else { return true };
    let key = &mut scratch.quote.to;
    *key = FlowKey { client_be, client_port_be, service_index: service_index as u16 };
    // SAFETY: the kernel's entry, to memory that stays allocated. If it has become another token's, that one's session gets
    // the flow: an ICMP error may go to a wrong backend of the service.
    let admission = unsafe { (&raw const (*entry).admission).read_volatile() };
    scratch.flow = Flow { owner: scratch.token, tracked: tracked.into(), ..Flow::unowned(&admission) };
    // SAFETY: copied out here and now.
    if let Some(held) = unsafe { FLOWS.get(&*key) } {
        scratch.held_flow = *held;
        let (held, flow) = (&scratch.held_flow, &scratch.flow);
        if held.session_id != flow.session_id {
            if is_in_use(held, scratch.arrival.seen, now, entry) {
                return false;
            }
        } else if held.owner.fast_tag == flow.owner.fast_tag && held.owner.nonce == flow.owner.nonce {
            return true;
        }
    }
    // What cannot be remembered costs a client an ICMP error.
    let _ = FLOWS.insert(&*key, &scratch.flow, 0);
    true
}

/// Whether a flow's token still comes from this client, and so recently that nobody else may take the flow. Who holds a token
/// that is bound to the client's address takes it from one that is not. If it may be taken, its token's next datagram claims it
/// again.
#[inline(always)]
fn is_in_use(held: &Flow, client: Seen, now: Now, entry: *const Session) -> bool {
    let owner = match held.tracked {
        0 => SESSIONS.get_ptr_mut(&held.owner),
        _ => TRACKED.get_ptr_mut(&held.owner).map(<*mut TrackedSession>::cast),
    };
    let Some(owner) = owner else { return false };
    // SAFETY: the kernel's entry, to memory that stays allocated; volatile, because it may be written to. If it becomes
    // another token's, that one claims its flow once more.
    unsafe {
        let seen = &raw mut (*owner).seen;
        if seen.read_volatile() != client {
            return false;
        }
        let active = (&raw const (*owner).admission.active).read_volatile();
        let bound = |entry: *const Session| is_bound((&raw const (*entry).claims[0]).read_volatile());
        let in_use = active.is_in_use(activity(owner, now));
        if in_use && (bound(owner) || !bound(entry)) {
            return true;
        }
        seen.write_volatile(Seen::default());
    }
    false
}

/// What a token that is used now has for its activity, by its entry. Its sealed claims are as good as random.
#[inline(always)]
pub fn activity(entry: *const Session, now: Now) -> Activity {
    // SAFETY: as above.
    Activity::at(now.kernel_ns, unsafe { (&raw const (*entry).claims[3]).read_volatile() })
}

#[inline(always)]
fn from<I: Ip>(ip: Cursor) -> Option<(Address, u16)> {
    Some((I::read(ip)?.addresses()[0], Udp::read(ip, I::LEN)?.ports_be()[0]))
}
