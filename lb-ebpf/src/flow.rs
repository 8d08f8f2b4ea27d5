//! Where a client's session goes, remembered for the ICMP errors that quote what its backend answers.

use lb_common::{
    flow::FlowKey,
    scratch::{Arrival, Scratch},
    service::FORWARD_LOCAL,
};

use crate::{
    headers::{Address, Ip, Ipv4, Ipv6, Udp},
    maps::FLOWS,
    packet::{Cursor, Frame},
    parse::IP_AT_MASK,
};

/// Remembers the admission in the scratch for the client of the datagram there. This host's own stack needs no help.
#[inline(always)]
pub fn remember(frame: &Frame, scratch: &mut Scratch) {
    let Arrival { ip_at, v6, forward, service_index, .. } = scratch.arrival;
    if forward == FORWARD_LOCAL {
        return;
    }
    let ip = frame.start().skip(ip_at as usize & IP_AT_MASK);
    let from = match v6 {
        0 => from::<Ipv4>(ip),
        _ => from::<Ipv6>(ip),
    };
    let Some((client_be, client_port_be)) = from else { return };
    let key = &mut scratch.quote.to;
    *key = FlowKey { client_be, client_port_be, service_index: service_index as u16 };
    // What cannot be remembered costs a client an ICMP error.
    let _ = FLOWS.insert(&*key, &scratch.tracked.session.admission, 0);
}

#[inline(always)]
fn from<I: Ip>(ip: Cursor) -> Option<(Address, u16)> {
    Some((I::read(ip)?.addresses()[0], Udp::read(ip, I::LEN)?.ports_be()[0]))
}
