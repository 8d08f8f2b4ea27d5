//! Where a client's session goes, remembered for the ICMP errors that quote what its backend answers.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    flow::FlowKey,
    service::{FORWARD_LOCAL, Service},
};

use crate::{
    headers::{Address, Ip, Ipv4, Ipv6, Udp},
    maps::{FLOWS, SCRATCH},
    packet::{Cursor, Frame},
    parse::{IP_AT_MASK, Packet},
};

/// Remembers the admission in the scratch for the client of a datagram. This host's own stack needs no help.
#[inline(always)]
pub fn remember(frame: &Frame, packet: &Packet, service: &Service) {
    if service.forward != FORWARD_LOCAL {
        let ip_at = packet.ip.offset_in(frame) as u32;
        // What cannot be remembered costs a client an ICMP error.
        remember_flow(frame.context(), ip_at, packet.from.v6.into(), service.index);
    }
}

/// With a name for the linker: looked at by the verifier once. Returns 1 if it was remembered.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_flow(ctx: *mut xdp_md, ip_at: u32, v6: u32, service_index: u32) -> u32 {
    let ip = Frame::at(ctx).start().skip(ip_at as usize & IP_AT_MASK);
    let from = match v6 {
        0 => from::<Ipv4>(ip),
        _ => from::<Ipv6>(ip),
    };
    let (Some((client_be, client_port_be)), Some(scratch)) = (from, SCRATCH.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let (key, admission) = unsafe { (&mut (*scratch).quote.to, &(*scratch).session.admission) };
    *key = FlowKey { client_be, client_port_be, service_index: service_index as u16 };
    FLOWS.insert(&*key, admission, 0).is_ok().into()
}

#[inline(always)]
fn from<I: Ip>(ip: Cursor) -> Option<(Address, u16)> {
    Some((I::read(ip)?.addresses()[0], Udp::read(ip, I::LEN)?.ports_be()[0]))
}
