//! Step 10, its end: what of the packet leaves, and how. A file for each way to a backend.

mod encapsulate;
mod fragment;
pub mod head;
mod relay;
mod requote;
pub mod translate;

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    backend::Backend,
    balance,
    live::Tables,
    nat::Owner,
    reason::Reason,
    scratch::Load,
    service::{FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_NAT, Service},
    token::header,
};

use self::translate::Unsent;
use crate::{
    balance::Chosen,
    headers::{Ip, Ipv4, Ipv6, Udp},
    maps::{BACKENDS, SCRATCH},
    outline,
    packet::{Cursor, Frame},
    parse::{Datagram, IP_AT_MASK},
    verdict::Outcome,
};

/// How a packet leaves the program. (The host comes not first: 0 is `FORWARD_LOCAL`, too, for which LLVM would use the
/// one in place of the other, which the verifier of Linux 6.1 does not follow.)
pub enum Delivery {
    /// Out of this interface.
    Send {
        /// The interface.
        ifindex: u32,
        /// Where the backend's counter stands.
        counter: u32,
    },
    /// On to this host's stack.
    Host,
    /// Out of this interface, to a client.
    Back {
        /// The interface.
        ifindex: u32,
    },
}

/// Where a packet goes.
#[derive(Clone, Copy)]
pub enum Way {
    /// To a backend, as it is but for its MAC addresses.
    Relayed(Chosen),
    /// To a backend; its load is ready.
    Backend(Chosen),
    /// The same for an ICMP error, which quotes a translated answer.
    Requoted(Chosen),
    /// To this host's stack, as it is.
    Host,
    /// The same without its token; its load is ready.
    HostStripped,
}

/// The way of a datagram with a valid token to this host, without it.
#[inline(always)]
pub fn to_host(frame: &Frame, datagram: &Datagram, service: &Service) -> Result<Way, Reason> {
    load_datagram(frame, datagram, service, 0)?;
    Ok(Way::HostStripped)
}

/// The way of a datagram with a valid token to a backend.
#[inline(always)]
pub fn to_backend(
    frame: &Frame,
    datagram: &Datagram,
    service: &Service,
    session_id: u64,
    backend: Chosen,
) -> Result<Way, Reason> {
    if !service.strips() && relay::needs_no_more(frame, service, &backend) {
        return Ok(Way::Relayed(backend));
    }
    load_datagram(frame, datagram, service, session_id)?;
    Ok(Way::Backend(backend))
}

/// The way of a packet to a backend as it is, whatever it is, of a session or for whatever stands in its place, which owns
/// its translation. `summed` if its transport is UDP or ICMP with a checksum.
#[inline(always)]
pub fn untouched(
    frame: &Frame,
    (ip, v6): (Cursor, bool),
    service: &Service,
    owner: Owner,
    summed: bool,
    backend: Chosen,
) -> Result<Way, Reason> {
    if relay::needs_no_more(frame, service, &backend) {
        return Ok(Way::Relayed(backend));
    }
    let (len, least) = match v6 {
        false => (Ipv4::read(ip).map(|header| header.packet_len()), Ipv4::LEN),
        true => (Ipv6::read(ip).map(|header| header.packet_len()), Ipv6::LEN),
    };
    let len = len.filter(|len| *len >= least as u32 && frame.holds(ip, *len)).ok_or(Reason::Malformed)?;
    let load = load()?;
    load.ip_at = ip.offset_in(frame) as u32;
    load.len = len;
    load.stripped = 0;
    load.spread = balance::spread(owner.of);
    load.owner = owner;
    load.v6 = v6.into();
    load.summed = summed.into();
    Ok(Way::Backend(backend))
}

#[inline(always)]
fn load_datagram(frame: &Frame, datagram: &Datagram, service: &Service, session: u64) -> Result<(), Reason> {
    let headers = u32::from(datagram.ip_len) + Udp::LEN as u32;
    let load = load()?;
    load.ip_at = datagram.ip.offset_in(frame) as u32;
    load.len = headers + u32::from(datagram.payload_len);
    load.stripped = if service.strips() { header::LEN as u32 } else { 0 };
    load.spread = balance::spread(session);
    load.owner = Owner::session(service.id, session);
    load.v6 = u16::from(datagram.ip_len == Ipv6::LEN as u16);
    load.summed = datagram.summed.into();
    Ok(())
}

/// This CPU's packet on its way out.
#[inline(always)]
pub fn load() -> Result<&'static mut Load, Reason> {
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    Ok(unsafe { &mut (*scratch).load })
}

/// Sends a packet its way.
#[inline(always)]
pub fn send(frame: &Frame, way: Way, service: &Service) -> Result<Delivery, Reason> {
    let backend = match way {
        Way::Host => return Ok(Delivery::Host),
        Way::HostStripped => {
            sent(strip(frame.context()))?;
            return Ok(Delivery::Host);
        }
        Way::Relayed(backend) => {
            relay::readdress(frame, &backend)?;
            backend
        }
        Way::Requoted(backend) => {
            sent(requote_for_backend(frame.context(), backend.place))?;
            sent(error_to_backend(frame.context(), backend.place))?;
            backend
        }
        Way::Backend(backend) => {
            let (ctx, place) = (frame.context(), backend.place);
            sent(match service.forward {
                FORWARD_L2 => relay(ctx, place),
                FORWARD_IPIP => ipip(ctx, place),
                FORWARD_GUE => gue(ctx, place),
                FORWARD_NAT => match nat(ctx, place, 0) {
                    PORT_WANTED => match port_of_datagram(ctx, place) {
                        0 => nat(ctx, place, 1),
                        failed => failed,
                    },
                    code => code,
                },
                // A newer daemon's.
                _ => return Err(Reason::NoBackend),
            })?;
            backend
        }
    };
    Ok(Delivery::Send { ifindex: backend.ifindex, counter: backend.counter })
}

// Functions of their own: see `outline`.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn strip(ctx: *mut xdp_md) -> u32 {
    outline::code(load().and_then(|load| relay::strip(&Frame::at(ctx), load)))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn relay(ctx: *mut xdp_md, place: u32) -> u32 {
    outline::code(with(ctx, place, relay::send))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ipip(ctx: *mut xdp_md, place: u32) -> u32 {
    outline::code(with(ctx, place, encapsulate::ipip))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn gue(ctx: *mut xdp_md, place: u32) -> u32 {
    outline::code(with(ctx, place, encapsulate::gue))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nat(ctx: *mut xdp_md, place: u32, known: u32) -> u32 {
    match with(ctx, place, |frame, load, backend| translate::send(frame, load, backend, known != 0)) {
        Ok(true) => outline::code(Ok(())),
        Ok(false) => PORT_WANTED,
        Err(reason) => outline::code(Err(reason)),
    }
}

/// What `nat` returns where the port is to be looked for: not within it, for its stack would exceed the limit.
const PORT_WANTED: u32 = u32::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn port_of_datagram(ctx: *mut xdp_md, place: u32) -> u32 {
    outline::code(with(ctx, place, translate::port::of_datagram))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn requote_for_backend(ctx: *mut xdp_md, place: u32) -> u32 {
    outline::code(with(ctx, place, requote::for_backend))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn error_to_backend(ctx: *mut xdp_md, place: u32) -> u32 {
    outline::code(with(ctx, place, requote::to_backend))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn requote_for_client(ctx: *mut xdp_md, ip_at: u32, v6: u32, tables: u64) -> u32 {
    let Ok(load) = load() else { return translate::told(Err(Unsent::Nobodys)) };
    (load.ip_at, load.stripped, load.v6) = (ip_at, 0, v6 as u16);
    translate::told(requote::for_client(&Frame::at(ctx), load, Tables::from_word(tables)))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn error_to_client(ctx: *mut xdp_md) -> u32 {
    let Ok(load) = load() else { return translate::told(Err(Unsent::Nobodys)) };
    translate::told(requote::to_client(&Frame::at(ctx), load))
}

/// Sends an ICMP error about what left a port of this node to the client whose it was.
#[inline(always)]
pub fn requoted_to_client(frame: &Frame, (ip, v6): (Cursor, bool), tables: Tables) -> Outcome {
    let ip_at = ip.offset_in(frame) as u32;
    let requoted = translate::checked(tables, || {
        requote_for_client(frame.context(), ip_at, v6.into(), tables.to_word())
    });
    let told = match requoted {
        translate::SENT => error_to_client(frame.context()),
        other => other,
    };
    translate::outcome(frame, told, Reason::IcmpError)
}

#[inline(always)]
fn with<T>(
    ctx: *mut xdp_md,
    place: u32,
    send: impl FnOnce(&Frame, &mut Load, &Backend) -> Result<T, Reason>,
) -> Result<T, Reason> {
    let backend = BACKENDS.get(place).ok_or(Reason::NoBackend)?;
    send(&Frame::at(ctx), load()?, backend)
}

/// The result again.
#[inline(always)]
fn sent(code: u32) -> Result<(), Reason> {
    outline::result(
        code,
        [
            Reason::NotOurs,
            Reason::TooBig,
            Reason::HopLimit,
            Reason::NatPorts,
            Reason::Unsupported,
            Reason::Malformed,
            Reason::NoBackend,
        ],
    )
}

/// Where its IP header begins: behind Ethernet's and at most four tags, which the verifier does not know of a number out
/// of a map.
#[inline(always)]
pub const fn ip_at(load: &Load) -> usize {
    load.ip_at as usize & IP_AT_MASK
}

/// Whether a packet takes the way to a backend, with so many bytes of outer headers.
#[inline(always)]
fn fits(load: &mut Load, backend: &Backend, outer: usize) -> Result<(), Reason> {
    let most = u32::from(backend.mtu) + load.stripped;
    if load.len + outer as u32 <= most {
        return Ok(());
    }
    load.room = most.saturating_sub(outer as u32);
    Err(Reason::TooBig)
}
