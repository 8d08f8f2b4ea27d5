//! `forward = "ipip"` and `"gue"`: the packet is encapsulated, and sent to the backend's address.
//!
//! The outer header is that of RFC 2003 or RFC 2473. Its traffic class and ECN are the packet's own (RFC 6040 §4.1),
//! and the packet's hop limit is decremented, as by any router. GUE is variant 1 (draft-ietf-intarea-gue §4): the
//! packet follows the UDP header, and its first four bits are its IP version.

use lb_common::{
    backend::Backend,
    decap::GUE_PORT,
    reason::{Reason, ReasonCode},
    scratch::TransmitDescriptor,
};

use super::{
    descriptor::{backend_at, check_mtu, ip_at},
    head::{self, L2Header},
};
use crate::{
    headers::{Ip, Ipv4, Ipv6, word},
    packet::Frame,
    scratch::Mailboxes,
    subprogram::subprogram,
    wire::{DONT_FRAGMENT, HOP_LIMIT, IPV4_VERSION_IHL, protocol},
};

/// The length of an outer IPv4 header, and of one with a UDP header after it, in words.
const IPV4: usize = Ipv4::LEN / 4;
const IPV4_UDP: usize = IPV4 + 2;
/// The length of an outer IPv6 header, and of one with a UDP header after it, in words.
const IPV6: usize = Ipv6::LEN / 4;
const IPV6_UDP: usize = IPV6 + 2;

/// The first of the dynamic ports (RFC 6335). The hash of a session fills its low bits.
const SOURCE_PORTS: u16 = 0xc000;

subprogram! {
    /// Sends the packet inside an IP packet.
    pub fn ipip(backend: u32) -> () = encapsulated::<IPV4, IPV6>;
    /// Sends the packet inside a UDP datagram.
    pub fn gue(backend: u32) -> () = encapsulated::<IPV4_UDP, IPV6_UDP>;
}

/// Encapsulates with outer headers of `V4` or `V6` words, by the IP version of the backend.
#[inline(always)]
fn encapsulated<const V4: usize, const V6: usize>(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    backend: u32,
) -> Result<(), ReasonCode> {
    let backend = backend_at(backend)?;
    let transmit = &mut mailboxes.open()?.transmit;
    match (transmit.v6 != 0, backend.v6) {
        (false, 0) => inside::<Ipv4, V4>(frame, transmit, backend, Ipv4::ETHER_TYPE, outer_v4),
        (false, _) => inside::<Ipv4, V6>(frame, transmit, backend, Ipv6::ETHER_TYPE, outer_v6),
        (true, 0) => Err(Reason::NoBackend.into()), // The configuration does not allow it.
        (true, _) => inside::<Ipv6, V6>(frame, transmit, backend, Ipv6::ETHER_TYPE, outer_v6),
    }
}

/// Writes the frame with outer headers of the type `ether_type`, which `outer` makes.
#[inline(always)]
fn inside<I: Ip, const N: usize>(
    frame: &Frame,
    transmit: &mut TransmitDescriptor,
    backend: &Backend,
    ether_type: u16,
    outer: fn(&I, &TransmitDescriptor, &Backend) -> [u32; N],
) -> Result<(), ReasonCode> {
    check_mtu(transmit, backend, N * 4)?;
    let l2 = L2Header::of(frame, ip_at(transmit))?.toward(frame, backend);
    let (mut ip, udp) = head::own::<I>(frame, transmit)?;
    ip.decrement_ttl()?;
    let outer = outer(&ip, transmit, backend);
    head::write(frame, transmit, &l2, ether_type, outer, ip, udp)
}

/// Outer headers, as words in memory order. No router may fragment the packet, so it needs no identification (RFC 6864
/// §4.1).
#[inline(always)]
fn outer_v4<I: Ip, const N: usize>(ip: &I, transmit: &TransmitDescriptor, backend: &Backend) -> [u32; N] {
    let mut words = [0; N];
    let inner = transmit.len - transmit.stripped;
    let [high, low] = ((inner + N as u32 * 4) as u16).to_be_bytes();
    let protocol = if N == IPV4 { protocol::IPV4 } else { protocol::UDP };
    let mut outer = Ipv4([
        u32::from_ne_bytes([IPV4_VERSION_IHL, ip.traffic_class(), high, low]),
        word(0, DONT_FRAGMENT.to_be()),
        u32::from_ne_bytes([HOP_LIMIT, protocol, 0, 0]),
        backend.source_be[3] | transmit.spread & backend.spread_be,
        backend.address_be[3],
    ]);
    outer.fill_checksum();
    words[..IPV4].copy_from_slice(&outer.0);
    if N == IPV4_UDP {
        // Without a UDP checksum: the IP headers and the inner datagram have their own checksums.
        let udp = udp(transmit, inner);
        (words[N - 2], words[N - 1]) = (udp[0], udp[1]);
    }
    words
}

/// Outer headers, as words in memory order. The flow label spreads packets over equal paths (RFC 6438).
#[inline(always)]
fn outer_v6<I: Ip, const N: usize>(ip: &I, transmit: &TransmitDescriptor, backend: &Backend) -> [u32; N] {
    let mut words = [0; N];
    let inner = transmit.len - transmit.stripped;
    let label = transmit.spread & 0xf_ffff;
    let payload_len = inner + (N - IPV6) as u32 * 4;
    let protocol = match N {
        IPV6 if I::V6 => protocol::IPV6,
        IPV6 => protocol::IPV4,
        _ => protocol::UDP,
    };
    let [high, low] = (payload_len as u16).to_be_bytes();
    words[0] = (6 << 28 | u32::from(ip.traffic_class()) << 20 | label).to_be();
    words[1] = u32::from_ne_bytes([high, low, protocol, HOP_LIMIT]);
    words[2] = backend.source_be[0];
    words[3] = backend.source_be[1];
    words[4] = backend.source_be[2];
    words[5] = backend.source_be[3] | transmit.spread & backend.spread_be;
    words[6] = backend.address_be[0];
    words[7] = backend.address_be[1];
    words[8] = backend.address_be[2];
    words[9] = backend.address_be[3];
    if N == IPV6_UDP {
        let udp = udp(transmit, inner);
        (words[N - 2], words[N - 1]) = (udp[0], udp[1]);
        // A tunnel may omit the checksum if its payload has none (RFC 6935).
        if transmit.has_checksum != 0 {
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
fn udp(transmit: &TransmitDescriptor, inner: u32) -> [u32; 2] {
    let [a, b] = (SOURCE_PORTS | transmit.spread as u16 & !SOURCE_PORTS).to_be_bytes();
    let [c, d] = GUE_PORT.to_be_bytes();
    let [e, f] = ((inner + 8) as u16).to_be_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, 0, 0])]
}
