//! `forward = "ipip"` and `"gue"`: the packet inside another, to the backend's address.
//!
//! The outer header is that of RFC 2003 or RFC 2473; traffic class and ECN are the packet's own (RFC 6040 §4.1), and its
//! hop limit loses one, as on any router. GUE is variant 1 (draft-ietf-intarea-gue §4): the packet follows the UDP
//! header, and its version tells what it is.

use lb_common::{backend::Backend, reason::Reason, scratch::Load};
use network_types::ip::IpProto;

use super::{
    fits,
    head::{self, Link},
    ip_at,
};
use crate::{
    headers::{Ip, Ipv4, Ipv6},
    packet::Frame,
};

/// An outer IPv4 header, and a UDP header behind it, in words.
const IPV4: usize = Ipv4::LEN / 4;
const IPV4_UDP: usize = IPV4 + 2;
/// An outer IPv6 header, and a UDP header behind it, in words.
const IPV6: usize = Ipv6::LEN / 4;
const IPV6_UDP: usize = IPV6 + 2;

/// Hop limit of outer headers, as Linux and the IANA have it.
const HOP_LIMIT: u8 = 64;
/// GUE's UDP port, by the IANA.
const GUE_PORT: u16 = 6080;
/// The first of the dynamic ports (RFC 6335), which a session's hash fills up.
const SOURCE_PORTS: u16 = 0xc000;

/// Sends a packet inside an IP packet.
#[inline(always)]
pub fn ipip(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    match (load.v6 != 0, backend.v6) {
        (false, 0) => v4::<Ipv4, IPV4>(frame, load, backend),
        (false, _) => v6::<Ipv4, IPV6>(frame, load, backend),
        (true, 0) => Err(Reason::NoBackend), // Refused by the configuration.
        (true, _) => v6::<Ipv6, IPV6>(frame, load, backend),
    }
}

/// Sends a packet inside a UDP datagram.
#[inline(always)]
pub fn gue(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    match (load.v6 != 0, backend.v6) {
        (false, 0) => v4::<Ipv4, IPV4_UDP>(frame, load, backend),
        (false, _) => v6::<Ipv4, IPV6_UDP>(frame, load, backend),
        (true, 0) => Err(Reason::NoBackend),
        (true, _) => v6::<Ipv6, IPV6_UDP>(frame, load, backend),
    }
}

#[inline(always)]
fn v4<I: Ip, const N: usize>(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    fits(load, backend, N * 4)?;
    let link = Link::of(frame, ip_at(load))?.toward(frame, backend);
    let (mut ip, udp) = head::own::<I>(frame, load)?;
    ip.age()?;
    let outer: [u32; N] = outer_v4(&ip, load, backend);
    head::write(frame, load, &link, Ipv4::ETHER_TYPE, outer, ip, udp)
}

#[inline(always)]
fn v6<I: Ip, const N: usize>(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    fits(load, backend, N * 4)?;
    let link = Link::of(frame, ip_at(load))?.toward(frame, backend);
    let (mut ip, udp) = head::own::<I>(frame, load)?;
    ip.age()?;
    let outer: [u32; N] = outer_v6(&ip, load, backend);
    head::write(frame, load, &link, Ipv6::ETHER_TYPE, outer, ip, udp)
}

/// In words as they lie in memory. No router may fragment it, so that it needs no identification (RFC 6864 §4.1).
#[inline(always)]
fn outer_v4<I: Ip, const N: usize>(ip: &I, load: &Load, backend: &Backend) -> [u32; N] {
    const DONT_FRAGMENT: u8 = 0x40;
    let mut words = [0; N];
    let inner = load.len - load.stripped;
    let [high, low] = ((inner + N as u32 * 4) as u16).to_be_bytes();
    let protocol = if N == IPV4 { IpProto::Ipv4 } else { IpProto::Udp };
    let mut outer = Ipv4([
        u32::from_ne_bytes([4 << 4 | IPV4 as u8, ip.traffic_class(), high, low]),
        u32::from_ne_bytes([0, 0, DONT_FRAGMENT, 0]),
        u32::from_ne_bytes([HOP_LIMIT, protocol as u8, 0, 0]),
        backend.source_be[3] | load.spread & backend.spread_be,
        backend.address_be[3],
    ]);
    outer.fill_checksum();
    words[..IPV4].copy_from_slice(&outer.0);
    if N == IPV4_UDP {
        // Without a checksum: the IP headers and the datagram inside have theirs.
        let udp = udp(load, inner);
        (words[N - 2], words[N - 1]) = (udp[0], udp[1]);
    }
    words
}

/// In words as they lie in memory. The flow label spreads packets over equal paths (RFC 6438).
#[inline(always)]
fn outer_v6<I: Ip, const N: usize>(ip: &I, load: &Load, backend: &Backend) -> [u32; N] {
    let mut words = [0; N];
    let inner = load.len - load.stripped;
    let label = load.spread & 0xf_ffff;
    let payload_len = inner + (N - IPV6) as u32 * 4;
    let protocol = match N {
        IPV6 if I::V6 => IpProto::Ipv6,
        IPV6 => IpProto::Ipv4,
        _ => IpProto::Udp,
    } as u8;
    let [high, low] = (payload_len as u16).to_be_bytes();
    words[0] = (6 << 28 | u32::from(ip.traffic_class()) << 20 | label).to_be();
    words[1] = u32::from_ne_bytes([high, low, protocol, HOP_LIMIT]);
    words[2] = backend.source_be[0];
    words[3] = backend.source_be[1];
    words[4] = backend.source_be[2];
    words[5] = backend.source_be[3] | load.spread & backend.spread_be;
    words[6] = backend.address_be[0];
    words[7] = backend.address_be[1];
    words[8] = backend.address_be[2];
    words[9] = backend.address_be[3];
    if N == IPV6_UDP {
        let udp = udp(load, inner);
        (words[N - 2], words[N - 1]) = (udp[0], udp[1]);
        // A tunnel may go without, where what is inside has none (RFC 6935).
        if load.summed != 0 {
            let mut sum =
                ip.sum_of_packet().add(u16::from_ne_bytes([high, low])).add(u16::from(protocol).to_be());
            let mut at = 2;
            while at < N {
                sum = sum.add_u32(words[at]);
                at += 1;
            }
            let [low, high] = sum.udp_field().to_ne_bytes();
            words[N - 1] |= u32::from_ne_bytes([0, 0, low, high]);
        }
    }
    words
}

/// A UDP header without checksum.
#[inline(always)]
fn udp(load: &Load, inner: u32) -> [u32; 2] {
    let [a, b] = (SOURCE_PORTS | load.spread as u16 & !SOURCE_PORTS).to_be_bytes();
    let [c, d] = GUE_PORT.to_be_bytes();
    let [e, f] = ((inner + 8) as u16).to_be_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, 0, 0])]
}
