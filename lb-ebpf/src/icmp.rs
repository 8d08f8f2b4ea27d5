//! ICMP errors about what a service's backends answered: to the backend of the session that they quote.
//!
//! A backend that answers clients by itself never sees them otherwise: they come to the service's address, which is this
//! node's. What ties an error to a session is the client that it quotes, which the flows know (docs/adr/0010).

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    flow::{Flow, FlowKey},
    live::Tables,
    nat::{Owner, Ports},
    scratch::Quote,
    service::{FORWARD_LOCAL, FORWARD_NAT, Service, ServiceKey},
};
use network_types::ip::IpProto;

use crate::{
    admit::Admitted,
    balance,
    forward::{self, Way},
    headers::{Ip, Ipv4, Ipv6, MORE_FRAGMENTS, PLAIN, v4_mapped},
    maps::{FLOWS, NAT_PORTS, SCRATCH},
    packet::{Cursor, Frame},
    parse::IP_AT_MASK,
    service,
    verdict::Outcome,
};

/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;

/// The service whose datagram an ICMP message quotes, and the message's way to the backend that sent it. If there is none,
/// what becomes of it instead.
#[inline(always)]
pub fn error(
    frame: &Frame,
    (ip, v6): (Cursor, bool),
    tables: Tables,
) -> Result<(&'static Service, Way), Outcome> {
    if quote(frame.context(), ip.offset_in(frame) as u32, v6.into()) == 0 {
        return Err(Outcome::NotOurs);
    }
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Outcome::NotOurs)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let quote = unsafe { &mut (*scratch).quote };
    if quote.from.port_be == 0 {
        return Err(Outcome::NotOurs); // Port 0 stands for ports that cannot be read.
    }
    match service::find(tables, &quote.from) {
        Some(service) => to_backend(frame, (ip, v6), tables, service, quote).ok_or(Outcome::NotOurs),
        None => Err(to_client(frame, (ip, v6), tables)),
    }
}

#[inline(always)]
fn to_backend(
    frame: &Frame,
    (ip, v6): (Cursor, bool),
    tables: Tables,
    service: &'static Service,
    quote: &mut Quote,
) -> Option<(&'static Service, Way)> {
    if service.forward == FORWARD_LOCAL {
        return None;
    }
    quote.to.service_index = service.index as u16;
    // SAFETY: copied out here and now.
    let Flow { session_id, backend_id, .. } = *unsafe { FLOWS.get(&quote.to) }?;
    let session = Admitted { session_id, backend_id };
    let backend = balance::for_session(tables, service, session).ok()?;
    let owner = Owner::session(service.id, session.session_id);
    let way = forward::untouched(frame, (ip, v6), service, owner, false, backend).ok()?;
    Some((service, if service.forward == FORWARD_NAT { Way::Requoted(backend) } else { way }))
}

/// An error about what left a port of this node, on a backend's side.
#[inline(always)]
fn to_client(frame: &Frame, ip: (Cursor, bool), tables: Tables) -> Outcome {
    if Ports::from_word(NAT_PORTS.load()).is_none() {
        return Outcome::NotOurs;
    }
    forward::requoted_to_client(frame, ip, tables)
}

/// Reads what an ICMP error quotes into the scratch. Returns 1 if it quotes a datagram from the address that it came to.
/// With a name for the linker: looked at by the verifier once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quote(ctx: *mut xdp_md, ip_at: u32, v6: u32) -> u32 {
    let ip = Frame::at(ctx).start().skip(ip_at as usize & IP_AT_MASK);
    let quoted = match v6 {
        0 => quoted::<Ipv4>(ip),
        _ => quoted::<Ipv6>(ip),
    };
    let (Some(quoted), Some(scratch)) = (quoted, SCRATCH.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    unsafe { (*scratch).quote = quoted };
    1
}

#[inline(always)]
fn quoted<I: Ip>(ip: Cursor) -> Option<Quote> {
    let [.., to] = I::read(ip)?.addresses();
    let icmp = ip.skip(I::LEN);
    let quoted = icmp.skip(ICMP_LEN);
    let header = I::read(quoted)?;
    let datagram = header.protocol() == IpProto::Udp as u8 && is_plain::<I>(quoted);
    let [from, client_be] = header.addresses();
    let own = from[0] == to[0] && from[1] == to[1] && from[2] == to[2] && from[3] == to[3];
    // In the table, a v4-mapped address is an IPv4 service's; on the wire there is none.
    let mapped = I::V6 && from[0] == 0 && from[1] == 0 && from[2] == v4_mapped(0)[2];
    if !is_error::<I>(icmp.read(0)?) || !datagram || !own || mapped {
        return None;
    }
    let [port, client_port_be] = quoted.read(I::LEN)?;
    Some(Quote {
        from: ServiceKey::v6(from, port),
        to: FlowKey { client_be, client_port_be, service_index: 0 },
    })
}

/// Unreachable, too big, time exceeded, parameter problem (RFC 792, RFC 4443).
#[inline(always)]
const fn is_error<I: Ip>(kind: u8) -> bool {
    if I::V6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 11 | 12) }
}

/// Whether its ports follow an IP header.
#[inline(always)]
fn is_plain<I: Ip>(at: Cursor) -> bool {
    if I::V6 {
        return true;
    }
    let Some(header) = Ipv4::read(at) else { return false };
    header.vihl() == PLAIN && header.fragment() & (MORE_FRAGMENTS - 1) == 0
}
