//! The IPv4 header.

use lb_common::{checksum::Checksum, nat::COOKIE_MASK_V4, reason::Reason};
use network_types::eth::EtherType;

use super::{Address, ECN, Ip, halves, v4_mapped, word};
use crate::{
    packet::Cursor,
    wire::{DONT_FRAGMENT, FRAGMENT_OFFSET, protocol},
};

/// An IPv4 header without options (RFC 791 §3.1).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Ipv4(pub [u32; 5]);

impl Ipv4 {
    /// Version and header length.
    #[inline(always)]
    pub const fn version_ihl(&self) -> u8 {
        self.0[0].to_ne_bytes()[0]
    }

    /// Flags and offset, in host order.
    #[inline(always)]
    pub const fn fragment(&self) -> u16 {
        u16::from_be(halves(self.0[1])[1])
    }

    /// Identification, in network byte order.
    #[inline(always)]
    pub const fn identification_be(&self) -> u16 {
        halves(self.0[1])[0]
    }

    /// Whether it is not a fragment and must not be fragmented, so its identification has no meaning (RFC 6864 §4.1).
    #[inline(always)]
    const fn is_atomic(&self) -> bool {
        const RESERVED: u16 = 1 << 15;
        self.fragment() & !RESERVED == DONT_FRAGMENT
    }

    /// Source address, in network order.
    #[inline(always)]
    pub const fn source_be(&self) -> u32 {
        self.0[3]
    }

    /// Destination address, in network order.
    #[inline(always)]
    pub const fn destination_be(&self) -> u32 {
        self.0[4]
    }

    /// Computes its checksum.
    #[inline(always)]
    pub fn fill_checksum(&mut self) {
        let [ttl_protocol, _] = halves(self.0[2]);
        self.0[2] = word(ttl_protocol, 0);
        let sum = self.0.iter().fold(Checksum::new(), |sum, word| sum.add_u32(*word));
        self.0[2] = word(ttl_protocol, sum.field());
    }

    /// Updates the checksum for a change.
    #[inline(always)]
    fn sum(&mut self, change: impl FnOnce(Checksum) -> Checksum) {
        let [ttl_protocol, checksum] = halves(self.0[2]);
        self.0[2] = word(ttl_protocol, change(Checksum::of_field(checksum)).field());
    }
}

impl Ip for Ipv4 {
    const LEN: usize = size_of::<Self>();
    const V6: bool = false;
    const ETHER_TYPE: u16 = EtherType::Ipv4 as u16;

    #[inline(always)]
    fn read(at: Cursor) -> Option<Self> {
        at.read_words(0).map(Self)
    }

    #[inline(always)]
    fn write(&self, at: Cursor, offset: usize) -> Option<()> {
        at.write_words(offset, &self.0)
    }

    #[inline(always)]
    fn packet_len(&self) -> u32 {
        u16::from_be(halves(self.0[0])[1]).into()
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.0[2].to_ne_bytes()[1]
    }

    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        self.0[0].to_ne_bytes()[1]
    }

    #[inline(always)]
    fn sender_can_react(&self) -> bool {
        // An ICMP error is sent only for the first fragment of a packet (RFC 1122 §3.2.2).
        let whole = self.fragment() & DONT_FRAGMENT != 0 && self.fragment() & FRAGMENT_OFFSET == 0;
        // No ICMP error is sent if the source is not one host: this network, loopback, multicast, broadcast.
        whole && !matches!(self.source_be().to_ne_bytes()[0], 0 | 127 | 224..)
    }

    #[inline(always)]
    fn addresses(&self) -> [Address; 2] {
        [v4_mapped(self.source_be()), v4_mapped(self.destination_be())]
    }

    #[inline(always)]
    fn shorten(&mut self, by: u16) {
        let [first, old] = halves(self.0[0]);
        let new = (u16::from_be(old) - by).to_be();
        self.0[0] = word(first, new);
        self.sum(|sum| sum.subtract(old).add(new));
    }

    #[inline(always)]
    fn decrement_ttl(&mut self) -> Result<(), Reason> {
        let [ttl, protocol, c, d] = self.0[2].to_ne_bytes();
        if ttl <= 1 {
            return Err(Reason::HopLimit);
        }
        let [old, new] = [u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([ttl - 1, protocol])];
        self.0[2] = word(new, u16::from_ne_bytes([c, d]));
        self.sum(|sum| sum.subtract(old).add(new));
        Ok(())
    }

    #[inline(always)]
    fn set_ecn(&mut self, ecn: u8) {
        let [version_ihl, class, c, d] = self.0[0].to_ne_bytes();
        let class_new = class & !ECN | ecn;
        let [old, new] =
            [u16::from_ne_bytes([version_ihl, class]), u16::from_ne_bytes([version_ihl, class_new])];
        self.0[0] = word(new, u16::from_ne_bytes([c, d]));
        self.sum(|sum| sum.subtract(old).add(new));
    }

    #[inline(always)]
    fn cookie(&self) -> Option<u32> {
        self.is_atomic().then_some(u16::from_be(halves(self.0[1])[0]).into())
    }

    #[inline(always)]
    fn set_cookie(&mut self, cookie: u32) {
        if !self.is_atomic() {
            return;
        }
        let [old, fragment] = halves(self.0[1]);
        let new = ((cookie & COOKIE_MASK_V4) as u16).to_be();
        self.0[1] = word(new, fragment);
        self.sum(|sum| sum.subtract(old).add(new));
    }

    #[inline(always)]
    fn rewrite_addresses(&mut self, [[.., source], [.., destination]]: [Address; 2]) {
        let [.., old_source, old_destination] = self.0;
        self.sum(|sum| {
            sum.subtract_u32(old_source).subtract_u32(old_destination).add_u32(source).add_u32(destination)
        });
        (self.0[3], self.0[4]) = (source, destination);
    }

    #[inline(always)]
    fn sum_of_header(&self) -> Checksum {
        self.0.iter().fold(Checksum::new(), |sum, word| sum.add_u32(*word))
    }

    #[inline(always)]
    fn sum_of_pseudo_header(&self) -> Checksum {
        Checksum::new()
            .add_u32(self.source_be())
            .add_u32(self.destination_be())
            .add(u16::from(protocol::UDP).to_be())
            .add((self.packet_len() as u16 - Self::LEN as u16).to_be())
    }

    #[inline(always)]
    fn sum_of_packet(&self) -> Checksum {
        // The sum of the header is zero too. ICMP has no pseudo-header (RFC 792).
        if self.protocol() != protocol::UDP {
            return Checksum::new();
        }
        Checksum::new()
            .subtract_u32(self.source_be())
            .subtract_u32(self.destination_be())
            .subtract(u16::from(protocol::UDP).to_be())
            .subtract((self.packet_len() as u16 - Self::LEN as u16).to_be())
    }
}
