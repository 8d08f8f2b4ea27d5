//! `tollgate decap`: removes the outer headers of `ipip` and `gue`, only in packets of the configured balancers.
//!
//! outer → trusted → inner → take off. A packet that is not decapsulated passes to the host's network stack unchanged,
//! unless RFC 6040 requires that it is dropped.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "`#[xdp]` writes a function without documentation around each program")]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    checksum::Checksum,
    counter::Counter,
    decap::{self, COUNTERS_MAX, GUE_PORT, Outcome, Settings},
};
use lb_ebpf::{
    headers::{Address, Ip, Ipv4, Ipv6, Udp},
    packet::{Cursor, Frame},
    wire::{FRAGMENT_OFFSET, IPV4_VERSION_IHL, MAC_ADDRESSES_LEN, MORE_FRAGMENTS, is_vlan_tag, protocol},
};
use network_types::{eth::EthHdr, vlan::VlanHdr};

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<Counter, { COUNTERS_MAX as usize }> = PerCpuArray::new();

/// Removes the outer headers of a balancer's tunnel packet, and passes the frame to the host's network stack. `frags`:
/// the program accepts frames in several buffers; the headers are in the first buffer.
#[xdp(frags)]
pub fn decap(ctx: XdpContext) -> u32 {
    let frame = Frame::of(&ctx);
    let outcome = open(&frame);
    if let Some(counter) = COUNTERS.get_ptr_mut(outcome.index()) {
        // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += frame.len();
        }
    }
    match outcome {
        Outcome::Ecn | Outcome::Internal => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

/// The outer headers of a tunnel packet.
struct Outer {
    /// The position of the outer IP header.
    ip: Cursor,
    /// The number of VLAN tags before it.
    tags: usize,
    /// The length of the outer headers in bytes. Options and extension headers are not included; packets that have them
    /// are not decapsulated.
    len: u16,
    /// The length of the packet in bytes, according to the outer IP header.
    packet_len: u32,
    /// Fields of the outer IP header. `is_plain`: no fragment, and no options or extension headers. `is_right`: the
    /// IPv4 checksum, or the IPv6 version, is correct.
    version: u32,
    source: Address,
    traffic_class: u8,
    is_plain: bool,
    is_right: bool,
    /// The encapsulation.
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The protocol number in the outer IP header gives the IP version of the inner packet.
    Ipip { inner: u8 },
    /// GUE variant 1 (draft-ietf-intarea-gue-09 §3.2): the inner packet itself gives its IP version.
    Gue,
}

/// The maximum number of VLAN tags before the outer IP header.
const TAGS_MAX: usize = 2;

#[inline(always)]
fn open(frame: &Frame) -> Outcome {
    let Some(outer) = outer(frame) else { return Outcome::Passed };
    let Some(settings) = SETTINGS.get(0) else { return Outcome::Passed };
    // In promiscuous mode, the interface also receives frames for other hosts. They pass unchanged.
    if frame.start().read(0) != Some(settings.mac) {
        return Outcome::Passed;
    }
    if !is_trusted(settings, &outer) {
        return Outcome::Foreign;
    }
    if !outer.is_plain {
        return Outcome::Unsupported;
    }
    match inner(frame, &outer) {
        Some(4) => take_off::<Ipv4>(frame, &outer),
        Some(_) => take_off::<Ipv6>(frame, &outer),
        None => Outcome::Malformed,
    }
}

/// Reads headers that can be the outer headers of a tunnel packet.
#[inline(always)]
fn outer(frame: &Frame) -> Option<Outer> {
    let start = frame.start();
    let mut ether_type = start.read::<EthHdr>(0)?.ether_type;
    let mut ip = start.skip(EthHdr::LEN);
    let mut tags = 0;
    while is_vlan_tag(ether_type) && tags < TAGS_MAX {
        ether_type = ip.read::<VlanHdr>(0)?.ether_type;
        ip = ip.skip(VlanHdr::LEN);
        tags += 1;
    }
    if ether_type == Ipv4::ETHER_TYPE {
        outer_v4(ip, tags)
    } else if ether_type == Ipv6::ETHER_TYPE {
        outer_v6(ip, tags)
    } else {
        None
    }
}

#[inline(always)]
fn outer_v4(ip: Cursor, tags: usize) -> Option<Outer> {
    let header = Ipv4::read(ip)?;
    let (offset, more) = (header.fragment() & FRAGMENT_OFFSET, header.fragment() & MORE_FRAGMENTS);
    let options = usize::from(header.version_ihl() & 0xf).checked_sub(Ipv4::LEN / 4)? * 4;
    let (kind, len) = match header.protocol() {
        protocol::IPV4 => (Kind::Ipip { inner: 4 }, Ipv4::LEN),
        // Only the first fragment contains the ports.
        protocol::UDP if offset == 0 && is_gue(ip.skip(Ipv4::LEN + options)) => {
            (Kind::Gue, Ipv4::LEN + Udp::LEN)
        }
        _ => return None,
    };
    let sum = header.0.into_iter().fold(Checksum::new(), Checksum::add_u32);
    Some(Outer {
        ip,
        tags,
        len: len as u16,
        packet_len: header.packet_len(),
        version: 4,
        source: [0, 0, 0, header.source_be()],
        traffic_class: header.traffic_class(),
        is_plain: header.version_ihl() == IPV4_VERSION_IHL && offset | more == 0,
        is_right: sum.field() == 0,
        kind,
    })
}

#[inline(always)]
fn outer_v6(ip: Cursor, tags: usize) -> Option<Outer> {
    let header = Ipv6::read(ip)?;
    let (kind, len, is_plain) = match header.protocol() {
        protocol::IPV4 => (Kind::Ipip { inner: 4 }, Ipv6::LEN, true),
        protocol::IPV6 => (Kind::Ipip { inner: 6 }, Ipv6::LEN, true),
        protocol::UDP if is_gue(ip.skip(Ipv6::LEN)) => (Kind::Gue, Ipv6::LEN + Udp::LEN, true),
        // Extension headers are not parsed, because Tollgate's balancers do not send them.
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION => {
            (Kind::Gue, Ipv6::LEN + Udp::LEN, false)
        }
        _ => return None,
    };
    let [source, _] = header.addresses();
    Some(Outer {
        ip,
        tags,
        len: len as u16,
        packet_len: header.packet_len(),
        version: 6,
        source,
        traffic_class: header.traffic_class(),
        is_plain,
        is_right: header.version() == 6,
        kind,
    })
}

/// Whether a UDP header is that of GUE. Its checksum is not verified; RFC 6935 allows tunnels without one. The outer
/// headers are not used after decapsulation, and the inner packet has its own checksums, which cover its addresses and
/// its payload. If corruption changes a source address into that of a balancer, the effect is the same as that of a
/// spoofed source address.
#[inline(always)]
fn is_gue(udp: Cursor) -> bool {
    Udp::read(udp, 0).is_some_and(|udp| udp.ports_be()[1] == GUE_PORT.to_be())
}

#[inline(always)]
fn is_trusted(settings: &Settings, outer: &Outer) -> bool {
    for source in &settings.sources {
        if source.version == 0 {
            return false;
        }
        if source.holds(outer.version, outer.source) {
            return true;
        }
    }
    false
}

/// The IP version of the inner packet, if all lengths are consistent. Bytes after the outer packet are Ethernet
/// padding, and bytes after the inner packet are padding of the tunnel. Both are ignored.
#[inline(always)]
fn inner(frame: &Frame, outer: &Outer) -> Option<u8> {
    let room = outer.packet_len.checked_sub(outer.len.into())?;
    if !outer.is_right || !frame.holds(outer.ip, outer.packet_len) {
        return None;
    }
    let ip = outer.ip.skip(outer.len.into());
    let first = ip.read::<u8>(0)?;
    let version = first >> 4;
    match outer.kind {
        Kind::Ipip { inner } if inner != version => return None,
        Kind::Ipip { .. } => {}
        Kind::Gue => {
            let udp = Udp::read(outer.ip.skip(usize::from(outer.len) - Udp::LEN), 0)?;
            if u32::from(udp.datagram_len()) != room + Udp::LEN as u32 {
                return None;
            }
        }
    }
    let (header_len, packet_len) = match version {
        4 => (u32::from(first & 0xf) * 4, Ipv4::read(ip)?.packet_len()),
        6 => (Ipv6::LEN as u32, Ipv6::read(ip)?.packet_len()),
        _ => return None,
    };
    let fits = header_len >= Ipv4::LEN as u32 && header_len <= packet_len && packet_len <= room;
    fits.then_some(version)
}

/// Copies a congestion mark to the inner packet, and removes the outer headers.
#[inline(always)]
fn take_off<I: Ip>(frame: &Frame, outer: &Outer) -> Outcome {
    let ip = outer.ip.skip(outer.len.into());
    let Some(mut header) = I::read(ip) else { return Outcome::Internal };
    let class = header.traffic_class();
    match decap::ecn(class, outer.traffic_class) {
        None => return Outcome::Ecn,
        Some(ecn) if ecn != class & 0b11 => {
            header.set_ecn(ecn);
            if header.write(ip, 0).is_none() {
                return Outcome::Internal;
            }
        }
        Some(_) => {}
    }
    if begin_at_inner(frame, outer, I::ETHER_TYPE).is_none() {
        return Outcome::Internal;
    }
    match outer.kind {
        Kind::Ipip { .. } => Outcome::Ipip,
        Kind::Gue => Outcome::Gue,
    }
}

/// Moves the start of the frame, and writes the L2 header before the inner packet. MAC addresses and tags are read
/// first: the outer headers can be shorter than the L2 header, so the old and the new L2 header can overlap.
#[inline(always)]
fn begin_at_inner(frame: &Frame, outer: &Outer, ether_type: u16) -> Option<()> {
    let start = frame.start();
    let addresses: [u32; MAC_ADDRESSES_LEN / 4] = start.read(0)?;
    // If the frame has fewer tags, the bytes after them are read but not used.
    let tags: [u32; TAGS_MAX] = start.read(MAC_ADDRESSES_LEN)?;
    let mut at = frame.take_off(outer.len.into()).ok()?.start();
    at.write(0, addresses)?;
    at = at.skip(MAC_ADDRESSES_LEN);
    if outer.tags >= 1 {
        at.write(0, tags[0])?;
        at = at.skip(VlanHdr::LEN);
    }
    if outer.tags == TAGS_MAX {
        at.write(0, tags[1])?;
        at = at.skip(VlanHdr::LEN);
    }
    at.write(0, ether_type)
}

/// The licence that lets a program call the kernel's GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program that can reach this.
    loop {}
}
