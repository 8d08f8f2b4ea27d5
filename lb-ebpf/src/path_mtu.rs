//! Path-MTU replies: a packet that does not fit the path to its backend is answered with the size that does, if its
//! sender can react (RFC 1191, RFC 8201).
//!
//! The source of the message is the address that the client sent to. It leaves on the path on which the packet arrived,
//! and is written into the frame of the packet. It embeds as much of the packet as RFC 1812 §4.3.2.3 and RFC 4443 §3.2
//! allow, in sizes that the kernel can sum, and is never longer than the packet.

use lb_common::{
    checksum::Checksum,
    reason::{Reason, ReasonCode},
    scratch::{ICMP_COST_NS, Scratch, TransmitDescriptor},
    service::Service,
};

use crate::{
    clock,
    forward::{
        descriptor::ip_at,
        head::{self, L2Header},
    },
    headers::{Ip, Ipv4, Ipv6, Udp, word},
    maps::CONTROL,
    outcome::{Delivery, Outcome},
    packet::{Frame, SUM_MAX},
    run::Run,
    scratch::Mailboxes,
    shared::Shared,
    subprogram::subprogram,
    wire::{DONT_FRAGMENT, HOP_LIMIT, ICMP_LEN, IPV4_VERSION_IHL, protocol},
};

/// The bytes of the packet that a message embeds. IPv4: a message has at most 576 bytes with all headers, and less for
/// a short packet. IPv6: as much as fits into the message. The packet is longer than 1240 bytes, because every link has
/// an MTU of at least 1280 and outer headers need 40.
const EMBEDDED_V4: usize = 544;
const EMBEDDED_V4_SHORT: usize = 64;
const EMBEDDED_V6: usize = 1184;
/// Traffic class of messages: network control (RFC 1812 §4.3.2.5).
const TRAFFIC_CLASS: u8 = 0xc0;
/// The minimum MTU of IPv6 (RFC 8200 §5). A message must not report less.
const LEAST_V6: u32 = 1280;

/// Answers a packet that was too big. Its transmit descriptor has the size that fits.
#[inline(always)]
pub fn answer(run: &mut Run, service: &Service) -> Outcome {
    let ifindex = run.frame.ingress();
    let service = service.index;
    match path_mtu_reply(&run.frame, &mut run.mailboxes) {
        Ok(true) => Outcome::Delivered {
            service,
            reason: Reason::TooBig.into(),
            delivery: Delivery::Back { ifindex },
        },
        _ => Outcome::Refused { service, reason: Reason::TooBig.into() },
    }
}

subprogram! {
    /// Turns a frame into a message to its sender. False: no message is possible, and the frame must be dropped.
    fn path_mtu_reply() -> bool = replied;
}

#[inline(always)]
fn replied(frame: &Frame, mailboxes: &mut Mailboxes) -> Result<bool, ReasonCode> {
    let control = Shared::value(&CONTROL).ok_or(Reason::Internal)?;
    let Scratch { transmit, icmp_budget, .. } = mailboxes.open()?;
    // The message embeds the packet as it was received.
    transmit.stripped = 0;
    // Called last, so that a packet that is not answered costs no budget.
    let may_send = || icmp_budget.take(clock::now(control).kernel_ns, ICMP_COST_NS);
    let made = match transmit.v6 {
        0 => fragmentation_needed(frame, transmit, may_send),
        _ => packet_too_big(frame, transmit, may_send),
    };
    Ok(made.is_some())
}

/// ICMP type 3, code 4 (RFC 1191 §4).
#[inline(always)]
fn fragmentation_needed(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    may_send: impl FnOnce() -> bool,
) -> Option<()> {
    const HEADERS: usize = Ipv4::LEN + ICMP_LEN;
    const TYPE_AND_CODE: u16 = u16::from_ne_bytes([3, 4]);
    let l2 = L2Header::of(frame, ip_at(transmit)).ok()?.back();
    let (cause, udp) = head::own::<Ipv4>(frame, transmit).ok()?;
    let mtu = word(0, (transmit.mtu as u16).to_be());
    let at = frame.start().skip(ip_at(transmit));
    let long = transmit.len as usize >= HEADERS + EMBEDDED_V4;
    let (embedded, sum) = if long {
        let sum = at.sum::<SUM_MAX>(0, 0)?;
        (EMBEDDED_V4, at.sum::<{ EMBEDDED_V4 - SUM_MAX }>(SUM_MAX, sum)?)
    } else if transmit.len as usize >= HEADERS + EMBEDDED_V4_SHORT {
        (EMBEDDED_V4_SHORT, at.sum::<EMBEDDED_V4_SHORT>(0, 0)?)
    } else {
        return None;
    };
    let sum = Checksum::new().add_u32(sum).add(TYPE_AND_CODE).add_u32(mtu);
    if !cause.sender_can_react() || !may_send() {
        return None;
    }
    let [high, low] = ((HEADERS + embedded) as u16).to_be_bytes();
    let mut ip = Ipv4([
        u32::from_ne_bytes([IPV4_VERSION_IHL, TRAFFIC_CLASS, high, low]),
        word(0, DONT_FRAGMENT.to_be()),
        u32::from_ne_bytes([HOP_LIMIT, protocol::ICMP, 0, 0]),
        cause.destination_be(),
        cause.source_be(),
    ]);
    ip.fill_checksum();
    let [a, b, c, d, e] = ip.0;
    let outer = [a, b, c, d, e, word(TYPE_AND_CODE, sum.field()), mtu];
    put(frame, transmit, &l2, embedded, outer, cause, udp)
}

/// ICMPv6 type 2 (RFC 4443 §3.2).
#[inline(always)]
fn packet_too_big(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    may_send: impl FnOnce() -> bool,
) -> Option<()> {
    const HEADERS: usize = Ipv6::LEN + ICMP_LEN;
    const TYPE_AND_CODE: u16 = u16::from_ne_bytes([2, 0]);
    let l2 = L2Header::of(frame, ip_at(transmit)).ok()?.back();
    let (cause, udp) = head::own::<Ipv6>(frame, transmit).ok()?;
    let mtu = transmit.mtu.max(LEAST_V6).to_be();
    if (transmit.len as usize) < HEADERS + EMBEDDED_V6 {
        return None;
    }
    let at = frame.start().skip(ip_at(transmit));
    let sum = at.sum::<SUM_MAX>(SUM_MAX, at.sum::<SUM_MAX>(0, 0)?)?;
    let sum = at.sum::<{ EMBEDDED_V6 - 2 * SUM_MAX }>(2 * SUM_MAX, sum)?;
    let sum = Checksum::new().add_u32(sum).add(TYPE_AND_CODE).add_u32(mtu);
    if !cause.sender_can_react() || !may_send() {
        return None;
    }
    let payload_len = (ICMP_LEN + EMBEDDED_V6) as u16;
    let [high, low] = payload_len.to_be_bytes();
    let [[a, b, c, d], [e, f, g, h]] = cause.addresses();
    let addresses = [a, b, c, d, e, f, g, h];
    let sum = addresses.iter().fold(sum, |sum, word| sum.add_u32(*word));
    let sum = sum.add(payload_len.to_be()).add(u16::from(protocol::ICMPV6).to_be());
    let outer = [
        u32::from_ne_bytes([6 << 4 | TRAFFIC_CLASS >> 4, TRAFFIC_CLASS << 4, 0, 0]),
        u32::from_ne_bytes([high, low, protocol::ICMPV6, HOP_LIMIT]),
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
    put(frame, transmit, &l2, EMBEDDED_V6, outer, cause, udp)
}

/// Turns the frame into the message: truncates it after the embedded bytes, and writes headers before them.
#[inline(always)]
fn put<const N: usize, I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    l2: &L2Header,
    embedded: usize,
    outer: [u32; N],
    cause: I,
    udp: Udp,
) -> Option<()> {
    let frame = frame.cut_to((ip_at(transmit) + embedded) as u32).ok()?;
    head::write(&frame, transmit, l2, I::ETHER_TYPE, outer, cause, udp).ok()
}
