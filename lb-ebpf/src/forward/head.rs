//! The headers of a frame that is sent: Ethernet header, VLAN tags, and all headers before the payload.

use core::mem::offset_of;

use lb_common::{
    backend::{Backend, TAGS_KEPT, TAGS_MAX, Tag},
    checksum::Checksum,
    reason::{Reason, ReasonCode},
    scratch::TransmitDescriptor,
};
use network_types::{eth::EthHdr, vlan::VlanHdr};

use super::descriptor::ip_at;
use crate::{
    headers::{Ip, Udp},
    packet::{Cursor, Frame},
    token,
    wire::MAC_ADDRESSES_LEN,
};

/// The L2 header: MAC addresses and VLAN tags.
#[derive(Clone, Copy)]
pub struct L2Header {
    addresses: Addresses,
    tags: [u32; TAGS_MAX],
    count: usize,
}

impl L2Header {
    /// The L2 header for the path to a backend, of a frame that was received with this L2 header.
    #[inline(always)]
    pub fn toward(&self, frame: &Frame, backend: &Backend) -> Self {
        let addresses = of_backend(backend);
        match backend.tag_count {
            TAGS_KEPT if backend.ifindex == frame.ingress() => {
                Self { addresses, tags: self.tags, count: self.count }
            }
            TAGS_KEPT => Self { addresses, tags: [0; TAGS_MAX], count: 0 },
            count => Self::new(addresses, &backend.tags, count.into()),
        }
    }

    /// An L2 header with the first `count` of these tags.
    #[inline(always)]
    pub fn new(addresses: Addresses, tags: &[Tag; TAGS_MAX], count: usize) -> Self {
        let word = |tag: &Tag| u32::from(tag.identifier_be) | u32::from(tag.control_be) << 16;
        Self { addresses, tags: [word(&tags[0]), word(&tags[1])], count }
    }

    /// The L2 header of the frame whose IP header is at `ip_at`. It must be read before the bytes after it: see
    /// `verifier`.
    #[inline(always)]
    pub fn of(frame: &Frame, ip_at: usize) -> Result<Self, ReasonCode> {
        let count = ip_at.wrapping_sub(EthHdr::LEN) / VlanHdr::LEN;
        if count > TAGS_MAX {
            return Err(Reason::Unsupported.into());
        }
        let start = frame.start();
        let addresses = start.read_words(0).ok_or(Reason::Internal)?;
        let tags = start.read_words(MAC_ADDRESSES_LEN).ok_or(Reason::Internal)?;
        Ok(Self { addresses, tags, count })
    }

    /// The MAC addresses, swapped.
    #[inline(always)]
    pub const fn addresses_back(&self) -> Addresses {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l]] = [
            self.addresses[0].to_ne_bytes(),
            self.addresses[1].to_ne_bytes(),
            self.addresses[2].to_ne_bytes(),
        ];
        [u32::from_ne_bytes([g, h, i, j]), u32::from_ne_bytes([k, l, a, b]), u32::from_ne_bytes([c, d, e, f])]
    }

    /// Its VLAN tags. Those beyond [`L2Header::tag_count`] have no meaning.
    #[inline(always)]
    pub fn tags(&self) -> [Tag; TAGS_MAX] {
        let tag = |word: u32| Tag { identifier_be: word as u16, control_be: (word >> 16) as u16 };
        [tag(self.tags[0]), tag(self.tags[1])]
    }

    /// The number of its tags.
    #[inline(always)]
    pub const fn tag_count(&self) -> u16 {
        self.count as u16
    }

    /// Whether it has `count` tags with the same VLAN ids as `tags`. Priorities are not compared, because switches
    /// change them (IEEE 802.1Q-2022 §6.9.3).
    #[inline(always)]
    pub fn is_in(&self, tags: &[Tag; TAGS_MAX], count: u16) -> bool {
        const VLAN_ID: u16 = 0x0fff_u16.to_be();
        const PRIORITY: u32 = !(0xffff | (VLAN_ID as u32) << 16);
        let other = Self::new(self.addresses, tags, count.into());
        let same = |tag: usize| self.tags[tag] | PRIORITY == other.tags[tag] | PRIORITY;
        self.count == other.count && (self.count < 1 || same(0)) && (self.count < 2 || same(1))
    }

    /// The L2 header of a reply.
    #[inline(always)]
    pub const fn back(self) -> Self {
        Self { addresses: self.addresses_back(), ..self }
    }

    /// Its length in a frame, bytes.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        EthHdr::LEN + (self.count & 3) * VlanHdr::LEN
    }
}

/// Destination and source MAC address, as at the start of a frame. Three words need fewer registers than twelve bytes.
pub type Addresses = [u32; 3];

/// Two MAC addresses that are adjacent in memory.
///
/// # Safety
/// The pointer must point to twelve readable bytes.
#[inline(always)]
pub unsafe fn addresses(destination: *const [u8; 6]) -> Addresses {
    // SAFETY: twelve bytes, as the caller guarantees.
    unsafe { destination.cast::<Addresses>().read_unaligned() }
}

/// The MAC addresses of the path to a backend.
#[inline(always)]
pub fn of_backend(backend: &Backend) -> Addresses {
    const _: () = assert!(offset_of!(Backend, source_mac) == offset_of!(Backend, destination_mac) + 6);
    // SAFETY: the source address follows the destination address.
    unsafe { addresses((&raw const *backend).cast::<u8>().add(offset_of!(Backend, destination_mac)).cast()) }
}

/// No outer header.
pub const NOTHING: [u32; 0] = [];

/// Writes the L2 header, outer headers, and the packet's own headers. Removes the bytes that are stripped. `frame` must
/// not be used afterwards. `ether_type` is that of the first IP header.
#[inline(always)]
pub fn write<const N: usize, I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    l2: &L2Header,
    ether_type: u16,
    outer: [u32; N],
    ip: I,
    udp: Udp,
) -> Result<(), ReasonCode> {
    let at = write_ip(frame, transmit, l2, ether_type, outer, ip)?;
    Ok(udp.write(at, 4 * N + I::LEN).ok_or(Reason::Internal)?)
}

/// As `write`, for a packet that is unchanged after its own IP header. Returns the position of the first IP header.
#[inline(always)]
pub fn write_ip<const N: usize, I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    l2: &L2Header,
    ether_type: u16,
    outer: [u32; N],
    ip: I,
) -> Result<Cursor, ReasonCode> {
    let len = l2.len() + 4 * N;
    let frame = frame.take_off(ip_at(transmit) as i32 + transmit.stripped as i32 - len as i32)?;
    let start = frame.start();
    start.write_words(0, &l2.addresses).ok_or(Reason::Internal)?;
    // Tags beyond the count are written too, and are then overwritten: so the verifier follows one path instead of
    // three.
    start.write_words(MAC_ADDRESSES_LEN, &l2.tags).ok_or(Reason::Internal)?;
    let at = start.skip(l2.len() - size_of::<u16>());
    at.write(0, ether_type).ok_or(Reason::Internal)?;
    let at = start.skip(l2.len());
    at.write_words(0, &outer).ok_or(Reason::Internal)?;
    ip.write(at, 4 * N).ok_or(Reason::Internal)?;
    Ok(at)
}

/// The packet's own headers. If the token is stripped, the lengths and the checksums of both headers are updated (RFC
/// 1624). If the packet is not a UDP datagram, the bytes after its IP header are read as if they were a UDP header, and
/// stay unchanged.
#[inline(always)]
pub fn own<I: Ip>(frame: &Frame, transmit: &TransmitDescriptor) -> Result<(I, Udp), ReasonCode> {
    let at = frame.start().skip(ip_at(transmit));
    let mut ip = I::read(at).ok_or(Reason::Malformed)?;
    let mut udp = Udp::read(at, I::LEN).ok_or(Reason::Malformed)?;
    if transmit.stripped != 0 {
        let token = token::header(at.skip(I::LEN + Udp::LEN))?;
        ip.shorten(transmit.stripped as u16);
        udp.shorten(transmit.stripped as u16);
        udp.sum(|sum| token.words().into_iter().fold(sum, Checksum::subtract_u64));
    }
    Ok((ip, udp))
}
