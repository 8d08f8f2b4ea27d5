//! Step 10, its end: strip, rewrite, send.

use lb_common::{
    backend::Backend,
    checksum::Checksum,
    reason::Reason,
    service::Service,
    token::{Header, header},
};
use network_types::{ip::Ipv4Hdr, udp::UdpHdr, vlan::VlanHdr};

use crate::{packet::Frame, parse::Datagram, token::Token};

/// How a packet leaves the program.
pub enum Delivery {
    /// On to this host's stack.
    Host,
    /// Back out of its interface, to the backend with this counter.
    Transmit {
        /// Where the backend's counter stands.
        counter: u32,
    },
}

/// Bytes that stripping takes off.
const STRIPPED: u16 = header::LEN as u16;
/// Bytes of a MAC address.
const MAC_LEN: usize = 6;
/// The longest EtherType with its tags before it.
const TAGS_LEN_MAX: usize = 2 * VlanHdr::LEN + 2;
/// The longest headers that stripping moves.
const HEADERS_MAX: usize = 2 * MAC_LEN + TAGS_LEN_MAX + Ipv4Hdr::LEN + UdpHdr::LEN;
// Headers move forward over the token, and never onto themselves.
const _: () = assert!(HEADERS_MAX <= header::LEN);

/// Passes a packet with a valid token to this host's stack.
#[inline(always)]
pub fn to_host(
    frame: &Frame,
    datagram: &Datagram,
    token: &Token,
    service: &Service,
) -> Result<Delivery, Reason> {
    if service.strips() {
        let addresses = frame.start().read(0).ok_or(Reason::Internal)?;
        strip(frame, datagram, token, addresses)?;
    }
    Ok(Delivery::Host)
}

/// Sends a packet with a valid token to a backend.
#[inline(always)]
pub fn to_backend(
    frame: &Frame,
    datagram: &Datagram,
    token: &Token,
    service: &Service,
    backend: &Backend,
) -> Result<Delivery, Reason> {
    reachable(frame, backend)?;
    if service.strips() {
        strip(frame, datagram, token, addresses(backend))?;
    } else {
        frame.start().write(0, addresses(backend)).ok_or(Reason::Internal)?;
    }
    Ok(Delivery::Transmit { counter: backend.counter })
}

/// Sends a packet to a backend as it is.
#[inline(always)]
pub fn untouched(frame: &Frame, backend: &Backend) -> Result<Delivery, Reason> {
    reachable(frame, backend)?;
    frame.start().write(0, addresses(backend)).ok_or(Reason::Internal)?;
    Ok(Delivery::Transmit { counter: backend.counter })
}

/// Only what is reached through the packet's own interface can be sent to: a MAC address means nothing elsewhere.
#[inline(always)]
fn reachable(frame: &Frame, backend: &Backend) -> Result<(), Reason> {
    if backend.ifindex == frame.ingress() { Ok(()) } else { Err(Reason::NoBackend) }
}

/// Destination and source MAC address, as they begin a frame.
type Addresses = [u16; 6];

#[inline(always)]
const fn addresses(backend: &Backend) -> Addresses {
    let [a, b, c, d, e, f] = backend.destination_mac;
    let [g, h, i, j, k, l] = backend.source_mac;
    [word(a, b), word(c, d), word(e, f), word(g, h), word(i, j), word(k, l)]
}

#[inline(always)]
const fn word(a: u8, b: u8) -> u16 {
    u16::from_ne_bytes([a, b])
}

/// Takes the token out: the headers move forward over it, shorter by it and with checksums to match, then the frame
/// begins where they do. Nothing may touch the frame afterwards.
#[inline(always)]
fn strip(frame: &Frame, datagram: &Datagram, token: &Token, addresses: Addresses) -> Result<(), Reason> {
    let mut ip: Ipv4Hdr = datagram.ip.read(0).ok_or(Reason::Internal)?;
    let mut udp: UdpHdr = datagram.ip.read(Ipv4Hdr::LEN).ok_or(Reason::Internal)?;
    shorten(&mut ip, &mut udp, &token.header()?);

    frame.start().write(header::LEN, addresses).ok_or(Reason::Internal)?;
    let tags = frame.start().skip(2 * MAC_LEN);
    let tags_len = datagram.ip.offset_in(frame) - 2 * MAC_LEN;
    // The EtherType and, with tags, what stands between: 2, 6 or 10 bytes.
    let mut at = 0;
    while at < TAGS_LEN_MAX && at < tags_len {
        let word: u16 = tags.read(at).ok_or(Reason::Internal)?;
        tags.write(header::LEN + at, word).ok_or(Reason::Internal)?;
        at += size_of::<u16>();
    }
    datagram.ip.write(header::LEN, ip).ok_or(Reason::Internal)?;
    datagram.ip.write(header::LEN + Ipv4Hdr::LEN, udp).ok_or(Reason::Internal)?;
    frame.take_off(STRIPPED).map_err(|()| Reason::Internal)
}

/// Both lengths lose the token, and both checksums what changed (RFC 1624).
#[inline(always)]
fn shorten(ip: &mut Ipv4Hdr, udp: &mut UdpHdr, token: &Header) {
    let (old, new) = (u16::from_ne_bytes(ip.tot_len), (ip.tot_len() - STRIPPED).to_be());
    ip.tot_len = new.to_ne_bytes();
    ip.check = Checksum::of_field(u16::from_ne_bytes(ip.check)).subtract(old).add(new).field().to_ne_bytes();

    let (old, new) = (u16::from_ne_bytes(udp.len), (udp.len() - STRIPPED).to_be());
    udp.len = new.to_ne_bytes();
    let field = u16::from_ne_bytes(udp.check);
    if field != 0 {
        // The length stands in the header and in the pseudo-header.
        let sum = Checksum::of_field(field).subtract(old).subtract(old).add(new).add(new);
        let sum = token.words().into_iter().fold(sum, Checksum::subtract_u64);
        udp.check = sum.udp_field().to_ne_bytes();
    }
}
