//! ICMP errors of `forward = "nat"`: what they quote is rewritten to what their receiver knows (RFC 5508 §4).
//!
//! A router on a client's side quotes an answer as it left this node; the backend sent another. What a router on a backend's
//! side quotes left this node, too; the client sent another.

use lb_common::{
    backend::Backend,
    live::Tables,
    nat::{COOKIE_MASK_V4, COOKIE_MASK_V6, Ports},
    reason::Reason,
    scratch::{Load, WRONG_COOKIE_COST_NS},
};

use super::{
    head::{self, Link},
    ip_at,
    translate::{self, Unsent},
};
use crate::{
    admit,
    headers::{Address, Ip, Ipv4, Ipv6, Udp, readdressed},
    maps::{NAT_PORTS, SCRATCH},
    packet::Frame,
};

/// Bytes of an ICMP header, which is as long as UDP's and is taken for one where frames are written.
const ICMP_LEN: usize = Udp::LEN;

// Each direction is two functions, one after the other: what is quoted, then what is around it. Together they would exceed
// the stack. Between them, the scratch has the change of the sum as the load's `room`.

/// Makes an error about an answer quote what the backend sent; the scratch has its quote. `NotOurs` where the client has no
/// translation towards that backend, and the frame is as it was.
#[inline(always)]
pub fn for_backend(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let (key, wanted, quote) =
        unsafe { (&mut (*scratch).translation_key, &mut (*scratch).translation, &(*scratch).quote) };
    wanted.client_be = quote.to.client_be;
    wanted.client_port_be = quote.to.client_port_be;
    wanted.service_be = quote.from.address_be;
    wanted.service_port_be = quote.from.port_be as u16;
    wanted.owner = load.owner;
    (key.backend_be, key.backend_port_be) = (backend.address_be, backend.port_be);
    // An answer that comes too late is no session's, and so is not an error about it.
    wanted.used_at_ns = translate::now().ok_or(Reason::Internal)?;
    let node_port_be = translate::port::of_client().ok_or(Reason::NotOurs)?;
    let (addresses, ports) = ([&backend.address_be, &backend.source_be], [backend.port_be, node_port_be]);
    match load.v6 {
        0 => requote::<Ipv4>(frame, load, addresses, ports, |_| {}),
        _ => requote::<Ipv6>(frame, load, addresses, ports, |_| {}),
    }
}

/// Sends it.
#[inline(always)]
pub fn to_backend(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    let link = Link::of(frame, ip_at(load))?.toward(frame, backend);
    match load.v6 {
        0 => send::<Ipv4>(frame, load, &link, None, &backend.address_be),
        _ => send::<Ipv6>(frame, load, &link, None, &backend.address_be),
    }
}

/// Makes an error about what left a port of this node quote what its client sent, and leaves the translation in the
/// scratch. An error where there is none, or what is quoted has not the cookie of what left, and the frame is as it was.
#[inline(always)]
pub fn for_client(frame: &Frame, load: &mut Load, tables: Tables) -> Result<(), Unsent> {
    let from = Link::of(frame, ip_at(load)).map_err(|_| Unsent::Nobodys)?;
    let scratch = admit::scratch().map_err(|_| Unsent::Nobodys)?;
    let (key, found) = (&mut scratch.translation_key, &mut scratch.translation);
    let (quote, wrong_cookies) = (&scratch.quote, &mut scratch.wrong_cookies);
    let ports = Ports::from_word(NAT_PORTS.load()).ok_or(Unsent::Nobodys)?;
    if !ports.contain(u16::from_be(quote.from.port_be as u16)) {
        return Err(Unsent::Nobodys);
    }
    key.backend_be = quote.to.client_be;
    key.backend_port_be = quote.to.client_port_be;
    key.node_port_be = quote.from.port_be as u16;
    translate::read(frame, &from, key, &quote.from.address_be, found)?;
    let right = match load.v6 {
        0 => has_cookie::<Ipv4>(frame, load, found.cookie & COOKIE_MASK_V4),
        _ => has_cookie::<Ipv6>(frame, load, found.cookie & COOKIE_MASK_V6),
    };
    // Taken whatever the cookie is, and given back where it is right: behind too many guesses a right one does not count.
    let before = *wrong_cookies;
    let now_ns = translate::now().ok_or(Unsent::Nobodys)?;
    if !wrong_cookies.take(now_ns, WRONG_COOKIE_COST_NS) || !right {
        return Err(Unsent::Nobodys);
    }
    *wrong_cookies = before;
    translate::is_checked(found, tables)?;
    let addresses = [&found.client_be, &found.service_be];
    let ports = [found.client_port_be, found.service_port_be];
    // What the client has put where the cookie is, is not known any more.
    Ok(match load.v6 {
        0 => requote::<Ipv4>(frame, load, addresses, ports, |quoted| quoted.set_cookie(0)),
        _ => requote::<Ipv6>(frame, load, addresses, ports, |quoted| quoted.set_cookie(0)),
    }?)
}

/// Sends it.
#[inline(always)]
pub fn to_client(frame: &Frame, load: &mut Load) -> Result<(), Unsent> {
    let found = &admit::scratch().map_err(|_| Unsent::Nobodys)?.translation;
    let link = translate::to_client(found);
    Ok(match load.v6 {
        0 => send::<Ipv4>(frame, load, &link, Some(&found.service_be), &found.client_be),
        _ => send::<Ipv6>(frame, load, &link, Some(&found.service_be), &found.client_be),
    }?)
}

/// Whether what is quoted has this cookie.
#[inline(always)]
fn has_cookie<I: Ip>(frame: &Frame, load: &Load, cookie: u32) -> bool {
    let at = frame.start().skip(ip_at(load)).skip(I::LEN + ICMP_LEN);
    I::read(at).and_then(|quoted| quoted.cookie()) == Some(cookie)
}

/// Rewrites what is quoted, where it is, and changes its IP header besides.
#[inline(always)]
fn requote<I: Ip>(
    frame: &Frame,
    load: &mut Load,
    addresses: [&Address; 2],
    ports: [u16; 2],
    change: impl FnOnce(&mut I),
) -> Result<(), Reason> {
    let at = frame.start().skip(ip_at(load)).skip(I::LEN + ICMP_LEN);
    let mut quoted = I::read(at).ok_or(Reason::Malformed)?;
    let mut udp = Udp::read(at, I::LEN).ok_or(Reason::Malformed)?;
    let before = quoted.sum_of_header().join(udp.sum_of_header());
    let new = [*addresses[0], *addresses[1]];
    udp.readdress(&quoted.addresses(), &new);
    udp.set_ports(ports[0], ports[1]);
    quoted.readdress(new);
    change(&mut quoted);
    quoted.write(at, 0).ok_or(Reason::Malformed)?;
    udp.write(at, I::LEN).ok_or(Reason::Malformed)?;
    let changed = quoted.sum_of_header().join(udp.sum_of_header()).part(before);
    load.room = changed.field().into();
    Ok(())
}

/// Sends an error whose quote has been rewritten, from this address or from whoever sent it.
#[inline(always)]
fn send<I: Ip>(
    frame: &Frame,
    load: &Load,
    link: &Link,
    source: Option<&Address>,
    destination: &Address,
) -> Result<(), Reason> {
    let (mut ip, mut icmp) = head::own::<I>(frame, load)?;
    ip.age()?;
    let old = ip.addresses();
    let new = [*source.unwrap_or(&old[0]), *destination];
    icmp.change_icmp(|field| {
        let field = field.subtract(load.room as u16);
        // ICMPv6 covers the addresses (RFC 4443 §2.3).
        if I::V6 { readdressed(field, &old, &new) } else { field }
    });
    ip.readdress(new);
    head::write(frame, load, link, I::ETHER_TYPE, head::NOTHING, ip, icmp)
}
