//! What becomes of a packet that does not fit the way to its backend: its sender is told how much does, where it can
//! react (RFC 1191, RFC 8201).
//!
//! The message comes from the address that the client sent to, leaves the way the packet came, and is made of its frame.
//! It quotes as much as RFC 1812 §4.3.2.3 and RFC 4443 §3.2 allow, to the kernel's summing of four bytes at a time, and is
//! never longer than the packet.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    checksum::Checksum,
    reason::Reason,
    scratch::{ICMP_COST_NS, Load},
    service::Service,
};
use network_types::ip::IpProto;

use crate::{
    clock,
    forward::{
        Delivery,
        head::{self, Link},
        ip_at,
    },
    headers::{Ip, Ipv4, Ipv6, Udp, word},
    maps::{LIVE, SCRATCH},
    packet::{Frame, SUM_MAX},
    verdict::Outcome,
};

/// What is quoted: with its headers at most 576 bytes of an IPv4 packet, less of one that is shorter; and of an IPv6 packet,
/// which is longer than 1240 bytes where every link takes 1280 and outer headers 40, as much as fits it.
const QUOTED_V4: usize = 544;
const QUOTED_V4_SHORT: usize = 64;
const QUOTED_V6: usize = 1184;
/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;
/// Hop limit of messages.
const HOP_LIMIT: u8 = 64;
/// Traffic class of messages: network control (RFC 1812 §4.3.2.5).
const TRAFFIC_CLASS: u8 = 0xc0;
/// The least that every link takes (RFC 8200 §5): no sender may be told less.
const LEAST_V6: u32 = 1280;

/// Answers a packet that was too big, whose load says how much would not have been.
#[inline(always)]
pub fn answer(frame: &Frame, service: &Service) -> Outcome {
    let ifindex = frame.ingress();
    let service = service.index;
    match message(frame.context()) {
        1 => Outcome::Delivered {
            service,
            reason: Reason::TooBig.into(),
            delivery: Delivery::Back { ifindex },
        },
        _ => Outcome::Refused { service, reason: Reason::TooBig },
    }
}

/// Makes a frame a message to its sender. Returns 1 if it has become one; if not, it is to be dropped. With a name for the
/// linker: looked at by the verifier once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn message(ctx: *mut xdp_md) -> u32 {
    let (Some(live), Some(scratch)) = (LIVE.get(0), SCRATCH.get_ptr_mut(0)) else { return 0 };
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let scratch = unsafe { &mut *scratch };
    // The packet is quoted as it came.
    scratch.load.stripped = 0;
    let (load, budget) = (&scratch.load, &mut scratch.icmp);
    // Asked last: what is not answered costs nothing.
    let may_send = || budget.take(clock::now(live).kernel_ns, ICMP_COST_NS);
    let frame = Frame::at(ctx);
    let made = match load.v6 {
        0 => fragmentation_needed(&frame, load, may_send),
        _ => packet_too_big(&frame, load, may_send),
    };
    made.is_some().into()
}

/// ICMP type 3, code 4 (RFC 1191 §4).
#[inline(always)]
fn fragmentation_needed(frame: &Frame, load: &Load, may_send: impl FnOnce() -> bool) -> Option<()> {
    const HEADERS: usize = Ipv4::LEN + ICMP_LEN;
    const TYPE_AND_CODE: u16 = u16::from_ne_bytes([3, 4]);
    const DONT_FRAGMENT: u8 = 0x40;
    let link = Link::of(frame, ip_at(load)).ok()?.back();
    let (cause, udp) = head::own::<Ipv4>(frame, load).ok()?;
    let mtu = word(0, (load.room as u16).to_be());
    let at = frame.start().skip(ip_at(load));
    let long = load.len as usize >= HEADERS + QUOTED_V4;
    let (quoted, sum) = if long {
        let sum = at.sum::<SUM_MAX>(0, 0)?;
        (QUOTED_V4, at.sum::<{ QUOTED_V4 - SUM_MAX }>(SUM_MAX, sum)?)
    } else if load.len as usize >= HEADERS + QUOTED_V4_SHORT {
        (QUOTED_V4_SHORT, at.sum::<QUOTED_V4_SHORT>(0, 0)?)
    } else {
        return None;
    };
    let sum = Checksum::new().add_u32(sum).add(TYPE_AND_CODE).add_u32(mtu);
    if !cause.sender_can_react() || !may_send() {
        return None;
    }
    let [high, low] = ((HEADERS + quoted) as u16).to_be_bytes();
    let mut ip = Ipv4([
        u32::from_ne_bytes([4 << 4 | 5, TRAFFIC_CLASS, high, low]),
        u32::from_ne_bytes([0, 0, DONT_FRAGMENT, 0]),
        u32::from_ne_bytes([HOP_LIMIT, IpProto::Icmp as u8, 0, 0]),
        cause.destination_be(),
        cause.source_be(),
    ]);
    ip.fill_checksum();
    let [a, b, c, d, e] = ip.0;
    let outer = [a, b, c, d, e, word(TYPE_AND_CODE, sum.field()), mtu];
    put(frame, load, &link, quoted, outer, cause, udp)
}

/// ICMPv6 type 2 (RFC 4443 §3.2).
#[inline(always)]
fn packet_too_big(frame: &Frame, load: &Load, may_send: impl FnOnce() -> bool) -> Option<()> {
    const HEADERS: usize = Ipv6::LEN + ICMP_LEN;
    const TYPE_AND_CODE: u16 = u16::from_ne_bytes([2, 0]);
    let link = Link::of(frame, ip_at(load)).ok()?.back();
    let (cause, udp) = head::own::<Ipv6>(frame, load).ok()?;
    let mtu = load.room.max(LEAST_V6).to_be();
    if (load.len as usize) < HEADERS + QUOTED_V6 {
        return None;
    }
    let at = frame.start().skip(ip_at(load));
    let sum = at.sum::<SUM_MAX>(SUM_MAX, at.sum::<SUM_MAX>(0, 0)?)?;
    let sum = at.sum::<{ QUOTED_V6 - 2 * SUM_MAX }>(2 * SUM_MAX, sum)?;
    let sum = Checksum::new().add_u32(sum).add(TYPE_AND_CODE).add_u32(mtu);
    if !cause.sender_can_react() || !may_send() {
        return None;
    }
    let payload_len = (ICMP_LEN + QUOTED_V6) as u16;
    let [high, low] = payload_len.to_be_bytes();
    let [[a, b, c, d], [e, f, g, h]] = cause.addresses();
    let addresses = [a, b, c, d, e, f, g, h];
    let sum = addresses.iter().fold(sum, |sum, word| sum.add_u32(*word));
    let sum = sum.add(payload_len.to_be()).add((IpProto::Ipv6Icmp as u16).to_be());
    let outer = [
        u32::from_ne_bytes([6 << 4 | TRAFFIC_CLASS >> 4, TRAFFIC_CLASS << 4, 0, 0]),
        u32::from_ne_bytes([high, low, IpProto::Ipv6Icmp as u8, HOP_LIMIT]),
        e,
        f,
        g,
        h,
        a,
        b,
        c,
        d,
        word(TYPE_AND_CODE, sum.field()),
        mtu,
    ];
    put(frame, load, &link, QUOTED_V6, outer, cause, udp)
}

/// Makes the frame the message: cut off behind what is quoted, and with headers before it, back to where it came from.
#[inline(always)]
fn put<const N: usize, I: Ip>(
    frame: &Frame,
    load: &Load,
    link: &Link,
    quoted: usize,
    outer: [u32; N],
    cause: I,
    udp: Udp,
) -> Option<()> {
    let frame = frame.cut_to((ip_at(load) + quoted) as u32).ok()?;
    head::write(&frame, load, link, I::ETHER_TYPE, outer, cause, udp).ok()
}
