//! The beginning of a frame that leaves: Ethernet header, VLAN tags, and what comes between them and the payload.

use core::mem::offset_of;

use lb_common::{
    backend::{Backend, TAGS_KEPT, TAGS_MAX, Tag},
    checksum::Checksum,
    reason::Reason,
    scratch::Load,
    token::Header,
};
use network_types::{eth::EthHdr, vlan::VlanHdr};

use super::ip_at;
use crate::{
    headers::{Ip, Udp},
    packet::{Cursor, Frame},
};

/// Ethernet addresses and VLAN tags.
pub struct Link {
    addresses: Addresses,
    tags: [u32; TAGS_MAX],
    count: usize,
}

/// Bytes of the two addresses.
const ADDRESSES_LEN: usize = 12;

impl Link {
    /// As the way to a backend wants it, for a frame that came with this one.
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

    /// With these tags, as far as they count.
    #[inline(always)]
    pub fn new(addresses: Addresses, tags: &[Tag; TAGS_MAX], count: usize) -> Self {
        let word = |tag: &Tag| u32::from(tag.identifier_be) | u32::from(tag.control_be) << 16;
        Self { addresses, tags: [word(&tags[0]), word(&tags[1])], count }
    }

    /// As the frame has it, whose IP header is at `ip_at`. To be read before what lies behind it: from a check that the
    /// frame reaches further LLVM concludes that this one is not needed, and the verifier does not.
    #[inline(always)]
    pub fn of(frame: &Frame, ip_at: usize) -> Result<Self, Reason> {
        let count = ip_at.wrapping_sub(EthHdr::LEN) / VlanHdr::LEN;
        if count > TAGS_MAX {
            return Err(Reason::Unsupported);
        }
        let start = frame.start();
        let addresses = start.read_words(0).ok_or(Reason::Internal)?;
        let tags = start.read_words(ADDRESSES_LEN).ok_or(Reason::Internal)?;
        Ok(Self { addresses, tags, count })
    }

    /// From whom it came, to whom it came.
    #[inline(always)]
    pub const fn addresses_back(&self) -> Addresses {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l]] = [
            self.addresses[0].to_ne_bytes(),
            self.addresses[1].to_ne_bytes(),
            self.addresses[2].to_ne_bytes(),
        ];
        [u32::from_ne_bytes([g, h, i, j]), u32::from_ne_bytes([k, l, a, b]), u32::from_ne_bytes([c, d, e, f])]
    }

    /// Its tags, of which [`Link::tag_count`] count.
    #[inline(always)]
    pub fn tags(&self) -> [Tag; TAGS_MAX] {
        let tag = |word: u32| Tag { identifier_be: word as u16, control_be: (word >> 16) as u16 };
        [tag(self.tags[0]), tag(self.tags[1])]
    }

    /// How many of its tags count.
    #[inline(always)]
    pub const fn tag_count(&self) -> u16 {
        self.count as u16
    }

    /// Whether it has so many tags, of these VLANs. Priorities are not compared: switches change them (IEEE 802.1Q-2022
    /// §6.9.3).
    #[inline(always)]
    pub fn is_in(&self, tags: &[Tag; TAGS_MAX], count: u16) -> bool {
        const VLAN_ID: u16 = 0x0fff_u16.to_be();
        const PRIORITY: u32 = !(0xffff | (VLAN_ID as u32) << 16);
        let other = Self::new(self.addresses, tags, count.into());
        let same = |tag: usize| self.tags[tag] | PRIORITY == other.tags[tag] | PRIORITY;
        self.count == other.count && (self.count < 1 || same(0)) && (self.count < 2 || same(1))
    }

    /// The way that it came.
    #[inline(always)]
    pub const fn back(self) -> Self {
        Self { addresses: self.addresses_back(), ..self }
    }

    /// Its bytes in a frame.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        EthHdr::LEN + (self.count & 3) * VlanHdr::LEN
    }
}

/// Destination and source MAC address, as they begin a frame: words, of which fewer must be kept than of bytes.
pub type Addresses = [u32; 3];

/// Two MAC addresses that lie one behind the other.
///
/// # Safety
/// Six more bytes follow those pointed to.
#[inline(always)]
pub unsafe fn addresses(destination: *const [u8; 6]) -> Addresses {
    // SAFETY: twelve bytes, by the caller's word.
    unsafe { destination.cast::<Addresses>().read_unaligned() }
}

/// Those of the way to a backend.
#[inline(always)]
pub fn of_backend(backend: &Backend) -> Addresses {
    const _: () = assert!(offset_of!(Backend, source_mac) == offset_of!(Backend, destination_mac) + 6);
    // SAFETY: the source's follows the destination's.
    unsafe { addresses((&raw const *backend).cast::<u8>().add(offset_of!(Backend, destination_mac)).cast()) }
}

/// No outer header.
pub const NOTHING: [u32; 0] = [];

/// Gives the frame another beginning: link, outer headers, and the packet's own headers. What is stripped goes; nothing may touch `frame` afterwards. `ether_type` is that of the first IP header.
#[inline(always)]
pub fn write<const N: usize, I: Ip>(
    frame: &Frame,
    load: &Load,
    link: &Link,
    ether_type: u16,
    outer: [u32; N],
    ip: I,
    udp: Udp,
) -> Result<(), Reason> {
    let at = write_ip(frame, load, link, ether_type, outer, ip)?;
    udp.write(at, 4 * N + I::LEN).ok_or(Reason::Internal)
}

/// The same of a packet in which what follows its own IP header stays as it is. Returns where the first IP header is.
#[inline(always)]
pub fn write_ip<const N: usize, I: Ip>(
    frame: &Frame,
    load: &Load,
    link: &Link,
    ether_type: u16,
    outer: [u32; N],
    ip: I,
) -> Result<Cursor, Reason> {
    let len = link.len() + 4 * N;
    let frame = frame.take_off(ip_at(load) as i32 + load.stripped as i32 - len as i32)?;
    let start = frame.start();
    start.write_words(0, &link.addresses).ok_or(Reason::Internal)?;
    // Tags that do not count are written over by what follows: one way for the verifier, not three.
    start.write_words(ADDRESSES_LEN, &link.tags).ok_or(Reason::Internal)?;
    let at = start.skip(link.len() - size_of::<u16>());
    at.write(0, ether_type).ok_or(Reason::Internal)?;
    let at = start.skip(link.len());
    at.write_words(0, &outer).ok_or(Reason::Internal)?;
    ip.write(at, 4 * N).ok_or(Reason::Internal)?;
    Ok(at)
}

/// The packet's own headers, both shorter by the token where it is stripped, and both checksums changed by what goes
/// (RFC 1624). Where the packet is no datagram, what follows its IP header is taken for a UDP header, and stays.
#[inline(always)]
pub fn own<I: Ip>(frame: &Frame, load: &Load) -> Result<(I, Udp), Reason> {
    let at = frame.start().skip(ip_at(load));
    let mut ip = I::read(at).ok_or(Reason::Malformed)?;
    let mut udp = Udp::read(at, I::LEN).ok_or(Reason::Malformed)?;
    if load.stripped != 0 {
        let token = at.read(I::LEN + Udp::LEN).map(Header::again).ok_or(Reason::Internal)?;
        ip.shorten(load.stripped as u16);
        udp.shorten(load.stripped as u16);
        udp.sum(|sum| token.words().into_iter().fold(sum, Checksum::subtract_u64));
    }
    Ok((ip, udp))
}
