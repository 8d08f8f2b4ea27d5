//! IPv6 extension headers (RFC 8200 §4): looked through only to tell whose packet is refused. A datagram behind them
//! would be delivered by the kernel, so none may pass unseen.

use aya_ebpf::bindings::xdp_md;
use network_types::ip::IpProto;

use super::PAYLOAD_AT_MASK;
use crate::packet::{Cursor, Frame};

/// What is behind extension headers.
pub enum Behind {
    /// No UDP.
    Other,
    /// UDP, in one packet.
    Datagram {
        /// Source and destination port.
        ports: [u16; 2],
    },
    /// A fragment, also one that is alone (RFC 6946), of UDP or of what cannot be told.
    Fragment {
        /// Those, in the first.
        ports: Option<[u16; 2]>,
    },
    /// More than is looked through, or than the frame holds.
    Unknown,
}

/// Extension headers that are looked through. RFC 8200 §4.1 allows seven, each of which the Internet drops more often
/// than not (RFC 7872).
const LOOKED_THROUGH: u32 = 6;
/// The shortest extension header.
const UNIT: usize = 8;

/// Whether an IPv6 packet goes on behind this header.
#[inline(always)]
pub fn is_extension(protocol: u8) -> bool {
    const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
    const ROUTING: u8 = IpProto::Ipv6Route as u8;
    const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
    const AUTHENTICATION: u8 = IpProto::Ah as u8;
    const DESTINATION: u8 = IpProto::Ipv6Opts as u8;
    const MOBILITY: u8 = IpProto::MobilityHeader as u8;
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY)
}

/// Looks through the extension headers from `at` on, the first of which is `protocol`.
#[inline(always)]
pub fn behind(frame: &Frame, at: Cursor, protocol: u8) -> Behind {
    let word = walk(frame.context(), at.offset_in(frame) as u32, protocol.into());
    let ports = [(word >> 16) as u16, word as u16];
    match word >> KIND_SHIFT {
        DATAGRAM => Behind::Datagram { ports },
        FIRST_FRAGMENT => Behind::Fragment { ports: Some(ports) },
        FRAGMENT => Behind::Fragment { ports: None },
        UNKNOWN => Behind::Unknown,
        _ => Behind::Other,
    }
}

const KIND_SHIFT: u32 = 32;
const OTHER: u64 = 0;
const DATAGRAM: u64 = 1;
const FIRST_FRAGMENT: u64 = 2;
const FRAGMENT: u64 = 3;
const UNKNOWN: u64 = 4;

/// [`behind`] in one word: kind, then ports. It is off the way of plain packets, and with a name for the linker and
/// numbers alone the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk(ctx: *mut xdp_md, at: u32, protocol: u32) -> u64 {
    let (mut at, mut protocol) = (Frame::at(ctx).start().skip(at as usize & PAYLOAD_AT_MASK), protocol as u8);
    let mut fragment = false;
    for _ in 0..LOOKED_THROUGH {
        if !is_extension(protocol) {
            break;
        }
        let Some([next, len, high, low]) = at.read::<[u8; 4]>(0) else {
            return UNKNOWN << KIND_SHIFT;
        };
        let len = match protocol {
            protocol if protocol == IpProto::Ipv6Frag as u8 => {
                fragment = true;
                // The offset in units of eight bytes, then two reserved bits and "more" (RFC 8200 §4.5).
                if high != 0 || low & !7 != 0 {
                    let unseen = next == IpProto::Udp as u8 || is_extension(next);
                    return if unseen { FRAGMENT << KIND_SHIFT } else { OTHER };
                }
                UNIT
            }
            // In words of four bytes, less two (RFC 4302 §2.2).
            protocol if protocol == IpProto::Ah as u8 => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * UNIT,
        };
        (at, protocol) = (at.skip(len), next);
    }
    if protocol != IpProto::Udp as u8 {
        return if is_extension(protocol) { UNKNOWN << KIND_SHIFT } else { OTHER };
    }
    match at.read::<[u16; 2]>(0) {
        None if fragment => FRAGMENT << KIND_SHIFT,
        None => UNKNOWN << KIND_SHIFT,
        Some([from, to]) => {
            let kind = if fragment { FIRST_FRAGMENT } else { DATAGRAM };
            kind << KIND_SHIFT | u64::from(from) << 16 | u64::from(to)
        }
    }
}
