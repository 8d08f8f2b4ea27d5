//! The flow of a client: the session that its packets belong to. Flows are for ICMP errors that embed an answer of the
//! client's backend. A client's address can be spoofed, so a flow stays with the session that is in use
//! (docs/adr/0010).

use lb_common::{
    flow::{Activity, Flow, FlowKey, is_bound},
    scratch::{FlowClaim, PacketMetadata},
    service::FORWARD_LOCAL,
    session::{Seen, Session},
};

use crate::{
    clock::Now,
    headers::{Address, Ip, Ipv4, Ipv6, Udp},
    maps::{FLOWS, SESSIONS, STATEFUL},
    packet::{Cursor, Frame},
    shared::{Shared, field},
    verifier::IP_AT_MASK,
};

/// Sets the flow of the packet's client to the session of an entry. False if the flow belongs to another session, whose
/// token is in use. The network stack of this host needs no flows.
#[inline(always)]
pub fn claim(
    frame: &Frame,
    packet: &PacketMetadata,
    flow: &mut FlowClaim,
    now: Now,
    entry: Shared<Session>,
) -> bool {
    if packet.forward == FORWARD_LOCAL {
        return true;
    }
    let ip = frame.start().skip(packet.ip_at as usize & IP_AT_MASK);
    let client = match packet.v6 {
        0 => client::<Ipv4>(ip),
        _ => client::<Ipv6>(ip),
    };
    let Some((client_be, client_port_be)) = client else { return true };
    let FlowClaim { key, claimed, held, .. } = flow;
    *key = FlowKey { client_be, client_port_be, service_index: packet.service_index as u16 };
    // If the entry now belongs to another token, that token's session gets the flow: an ICMP error can go to a wrong
    // backend of the service.
    let admission = field!(entry, admission).read();
    *claimed = Flow { owner: packet.token, stateful: packet.stateful.into(), ..Flow::unowned(&admission) };
    if let Some(found) = Shared::entry(&FLOWS, key) {
        found.copy_to(held);
        if held.session_id != claimed.session_id {
            if is_in_use(held, packet.client, now, entry) {
                return false;
            }
        } else if held.owner.fast_tag == claimed.owner.fast_tag && held.owner.nonce == claimed.owner.nonce {
            return true;
        }
    }
    // If the table cannot store the flow, ICMP errors about this client's answers do not reach its backend.
    let _ = FLOWS.insert(&*key, &*claimed, 0);
    true
}

/// Whether the token of a flow was used by this client so recently that no other session may take the flow. A token
/// that is bound to the client's address takes the flow from a token that is not. If the flow may be taken, its token
/// claims it again with its next datagram.
#[inline(always)]
fn is_in_use(held: &Flow, client: Seen, now: Now, entry: Shared<Session>) -> bool {
    let owner = match held.stateful {
        0 => Shared::entry(&SESSIONS, &held.owner),
        _ => Shared::entry(&STATEFUL, &held.owner).map(|entry| field!(entry, session)),
    };
    let Some(owner) = owner else { return false };
    let seen = field!(owner, seen);
    if seen.read() != client {
        return false;
    }
    let bound = |entry: Shared<Session>| is_bound(field!(entry, claims[0]).read());
    let in_use = field!(owner, admission.active).read().is_in_use(activity(owner, now));
    if in_use && (bound(owner) || !bound(entry)) {
        return true;
    }
    // If the entry now belongs to another token, that token claims its flow again.
    seen.write(Seen::default());
    false
}

/// The activity of an entry's token that is used now. Its sealed claims, which are effectively random, set the phase.
#[inline(always)]
pub fn activity(entry: Shared<Session>, now: Now) -> Activity {
    Activity::at(now.kernel_ns, field!(entry, claims[3]).read())
}

#[inline(always)]
fn client<I: Ip>(ip: Cursor) -> Option<(Address, u16)> {
    Some((I::read(ip)?.addresses()[0], Udp::read(ip, I::LEN)?.ports_be()[0]))
}
