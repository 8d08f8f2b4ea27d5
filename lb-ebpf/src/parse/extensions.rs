//! IPv6 extension headers (RFC 8200 §4). They are parsed to find the service whose packet is refused. The kernel would
//! deliver a datagram that follows them, so such a datagram must not bypass the filter.

use lb_common::reason::ReasonCode;

use crate::{
    packet::{Cursor, Frame},
    run::Run,
    scratch::Mailboxes,
    subprogram::{Value, subprogram},
    verifier::PAYLOAD_AT_MASK,
    wire::protocol,
};

/// The payload after extension headers.
pub enum Behind {
    /// No UDP.
    Other,
    /// UDP, in one packet.
    Datagram {
        /// Source and destination port.
        ports: [u16; 2],
    },
    /// A fragment of UDP or of an unknown protocol. It can be the only fragment (RFC 6946).
    Fragment {
        /// Source and destination port, in the first fragment.
        ports: Option<[u16; 2]>,
    },
    /// More headers than are parsed, or than the frame holds.
    Unknown,
}

/// The maximum number of extension headers that are parsed. RFC 8200 §4.1 allows seven, but many networks drop packets
/// with any of them (RFC 7872).
const PARSED: u32 = 6;
/// The shortest extension header, bytes.
const UNIT: usize = 8;

/// Whether a protocol number is that of an extension header.
#[inline(always)]
pub fn is_extension(number: u8) -> bool {
    use protocol::{AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, MOBILITY, ROUTING};
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY)
}

/// Parses the extension headers from `at` on. `protocol` is the type of the first one.
#[inline(always)]
pub fn behind(run: &mut Run, at: Cursor, protocol: u8) -> Behind {
    let at = at.offset_in(&run.frame) as u32;
    parse_extensions(&run.frame, &mut run.mailboxes, at, protocol.into()).unwrap_or(Behind::Unknown)
}

subprogram! {
    /// Parses extension headers. It is a subprogram because plain packets do not need it.
    fn parse_extensions(at: u32, protocol: u32) -> Behind = parsed;
}

#[inline(always)]
fn parsed(frame: &Frame, _: &mut Mailboxes, at: u32, protocol: u32) -> Result<Behind, ReasonCode> {
    Ok(walk(frame.start().skip(at as usize & PAYLOAD_AT_MASK), protocol as u8))
}

#[inline(always)]
fn walk(mut at: Cursor, mut protocol: u8) -> Behind {
    let mut fragment = false;
    for _ in 0..PARSED {
        if !is_extension(protocol) {
            break;
        }
        let Some([next, len, high, low]) = at.read::<[u8; 4]>(0) else {
            return Behind::Unknown;
        };
        let len = match protocol {
            protocol::FRAGMENT => {
                fragment = true;
                // The offset in units of eight bytes, two reserved bits, and the M flag (RFC 8200 §4.5).
                if high != 0 || low & !7 != 0 {
                    let unseen = next == protocol::UDP || is_extension(next);
                    return if unseen { Behind::Fragment { ports: None } } else { Behind::Other };
                }
                UNIT
            }
            // The length in words of four bytes, minus 2 (RFC 4302 §2.2).
            protocol::AUTHENTICATION => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * UNIT,
        };
        (at, protocol) = (at.skip(len), next);
    }
    if protocol != protocol::UDP {
        return if is_extension(protocol) { Behind::Unknown } else { Behind::Other };
    }
    match at.read::<[u16; 2]>(0) {
        None if fragment => Behind::Fragment { ports: None },
        None => Behind::Unknown,
        Some(ports) if fragment => Behind::Fragment { ports: Some(ports) },
        Some(ports) => Behind::Datagram { ports },
    }
}

const KIND_SHIFT: u32 = 32;
const OTHER: u64 = 0;
const DATAGRAM: u64 = 1;
const FIRST_FRAGMENT: u64 = 2;
const FRAGMENT: u64 = 3;
const UNKNOWN: u64 = 4;

/// Encoded as the kind, then the ports.
impl Value for Behind {
    #[inline(always)]
    fn into_number(self) -> u64 {
        let (kind, [from, to]) = match self {
            Self::Other => (OTHER, [0, 0]),
            Self::Datagram { ports } => (DATAGRAM, ports),
            Self::Fragment { ports: Some(ports) } => (FIRST_FRAGMENT, ports),
            Self::Fragment { ports: None } => (FRAGMENT, [0, 0]),
            Self::Unknown => (UNKNOWN, [0, 0]),
        };
        kind << KIND_SHIFT | u64::from(from) << 16 | u64::from(to)
    }

    #[inline(always)]
    fn from_number(number: u64) -> Self {
        let ports = [(number >> 16) as u16, number as u16];
        match number >> KIND_SHIFT {
            DATAGRAM => Self::Datagram { ports },
            FIRST_FRAGMENT => Self::Fragment { ports: Some(ports) },
            FRAGMENT => Self::Fragment { ports: None },
            UNKNOWN => Self::Unknown,
            _ => Self::Other,
        }
    }
}
