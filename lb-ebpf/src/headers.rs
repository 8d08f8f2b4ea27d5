//! The headers behind Ethernet: what of them is read, and what changes on the way.
//!
//! They are held in words. Copied in bytes, LLVM would keep pieces of them on the stack at any offset, and the verifier
//! wants each where it is aligned.

use lb_common::{
    checksum::Checksum,
    nat::{COOKIE_MASK_V4, COOKIE_MASK_V6},
    reason::Reason,
};
use network_types::{eth::EtherType, ip::IpProto};

use crate::packet::Cursor;

/// An IPv4 header without options (RFC 791 §3.1).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Ipv4(pub [u32; 5]);

/// An IPv6 header (RFC 8200 §3).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Ipv6(pub [u32; 10]);

/// A UDP header (RFC 768).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Udp(pub [u32; 2]);

/// The halves of a word, in memory order.
#[inline(always)]
const fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

/// A word from its halves, in memory order.
#[inline(always)]
pub const fn word(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// An IP header without options or extension headers.
pub trait Ip: Copy {
    /// Its bytes.
    const LEN: usize;
    /// Whether it is IPv6.
    const V6: bool;
    /// What says so in an Ethernet header, as it lies in memory.
    const ETHER_TYPE: u16;

    /// The header at a position.
    fn read(at: Cursor) -> Option<Self>;
    /// Puts it at an offset from a position.
    fn write(&self, at: Cursor, offset: usize) -> Option<()>;
    /// Bytes of the packet, this header included.
    fn packet_len(&self) -> u32;
    /// What follows the header.
    fn protocol(&self) -> u8;
    /// TOS or traffic class: DSCP and ECN.
    fn traffic_class(&self) -> u8;
    /// Whether a router that cannot send it on says so to its sender.
    fn sender_can_react(&self) -> bool;
    /// Source and destination, as words in memory order.
    fn addresses(&self) -> [Address; 2];

    /// The packet loses this many bytes.
    fn shorten(&mut self, by: u16);
    /// One router more has sent it on (RFC 1812 §5.3.1, RFC 8200 §3).
    ///
    /// # Errors
    /// `HopLimit`, where it was the last that might.
    fn age(&mut self) -> Result<(), Reason>;
    /// Its ECN becomes this, its DSCP stays (RFC 6040 §4.2).
    fn set_ecn(&mut self, ecn: u8);
    /// What [`Ip::set_cookie`] has put there; `None` where it can put nothing.
    fn cookie(&self) -> Option<u32>;
    /// The field that means nothing to whoever gets it becomes this, as far as it has room, where there is one.
    fn set_cookie(&mut self, cookie: u32);
    /// It gets other addresses.
    fn readdress(&mut self, addresses: [Address; 2]);
    /// The sum of its own bytes.
    fn sum_of_header(&self) -> Checksum;
    /// The sum of the pseudo-header of its payload, a UDP datagram (RFC 768, RFC 8200 §8.1).
    fn sum_of_pseudo_header(&self) -> Checksum;
    /// The sum of the whole packet, where its datagram's checksum is right: that of a datagram and its pseudo-header is
    /// then zero, so that the header tells all (as Linux has it, Documentation/networking/checksum-offloads.rst, LCO).
    fn sum_of_packet(&self) -> Checksum;
}

/// An address as its wire bytes lie in memory, an IPv4 address v4-mapped.
pub type Address = [u32; 4];

/// Whether two addresses are the same, word by word: BPF knows no `memcmp`.
#[inline(always)]
pub const fn same_address(a: &Address, b: &Address) -> bool {
    a[3] == b[3] && a[0] == b[0] && a[1] == b[1] && a[2] == b[2]
}

/// A sum that covers two addresses, after they have changed.
#[inline(always)]
pub fn readdressed(sum: Checksum, [a, b]: &[Address; 2], [c, d]: &[Address; 2]) -> Checksum {
    let sum = a.iter().chain(b).fold(sum, |sum, word| sum.subtract_u32(*word));
    c.iter().chain(d).fold(sum, |sum, word| sum.add_u32(*word))
}

/// An IPv4 address in the form of an IPv6 address (RFC 4291 §2.5.5.2).
#[inline(always)]
pub const fn v4_mapped(address_be: u32) -> Address {
    [0, 0, 0xffff_u32.to_be(), address_be]
}

const UDP: u8 = IpProto::Udp as u8;
/// The bits of a traffic class that are ECN (RFC 3168 §5).
const ECN: u8 = 0b11;

impl Ipv4 {
    /// Version and header length.
    #[inline(always)]
    pub const fn vihl(&self) -> u8 {
        self.0[0].to_ne_bytes()[0]
    }

    /// Flags and offset, in host order.
    #[inline(always)]
    pub const fn fragment(&self) -> u16 {
        u16::from_be(halves(self.0[1])[1])
    }

    /// Identification, as it lies in memory.
    #[inline(always)]
    pub const fn identification_be(&self) -> u16 {
        halves(self.0[1])[0]
    }

    /// Whether it is no fragment and becomes none, so that its identification means nothing (RFC 6864 §4.1).
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

    /// The checksum after a change.
    #[inline(always)]
    fn sum(&mut self, change: impl FnOnce(Checksum) -> Checksum) {
        let [ttl_protocol, checksum] = halves(self.0[2]);
        self.0[2] = word(ttl_protocol, change(Checksum::of_field(checksum)).field());
    }
}

/// An IPv4 header without options, as [`Ipv4::vihl`].
pub const PLAIN: u8 = 0x45;
/// Don't fragment, and more fragments, among [`Ipv4::fragment`].
pub const DONT_FRAGMENT: u16 = 1 << 14;
/// See [`DONT_FRAGMENT`].
pub const MORE_FRAGMENTS: u16 = 1 << 13;

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
        // Of a fragment, only the first is answered (RFC 1122 §3.2.2).
        let whole = self.fragment() & DONT_FRAGMENT != 0 && self.fragment() & (MORE_FRAGMENTS - 1) == 0;
        // Nor is what one host alone cannot have sent: from this network, loopback, groups, all.
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
    fn age(&mut self) -> Result<(), Reason> {
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
        let [vihl, class, c, d] = self.0[0].to_ne_bytes();
        let class_new = class & !ECN | ecn;
        let [old, new] = [u16::from_ne_bytes([vihl, class]), u16::from_ne_bytes([vihl, class_new])];
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
    fn readdress(&mut self, [[.., source], [.., destination]]: [Address; 2]) {
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
            .add(u16::from(UDP).to_be())
            .add((self.packet_len() as u16 - Self::LEN as u16).to_be())
    }

    #[inline(always)]
    fn sum_of_packet(&self) -> Checksum {
        // The header's own sum is zero, too. ICMP has no pseudo-header (RFC 792).
        if self.protocol() != UDP {
            return Checksum::new();
        }
        Checksum::new()
            .subtract_u32(self.source_be())
            .subtract_u32(self.destination_be())
            .subtract(u16::from(UDP).to_be())
            .subtract((self.packet_len() as u16 - Self::LEN as u16).to_be())
    }
}

impl Ipv6 {
    /// IP version.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.0[0].to_ne_bytes()[0] >> 4
    }
}

impl Ip for Ipv6 {
    const LEN: usize = size_of::<Self>();
    const V6: bool = true;
    const ETHER_TYPE: u16 = EtherType::Ipv6 as u16;

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
        Self::LEN as u32 + u32::from(u16::from_be(halves(self.0[1])[0]))
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.0[1].to_ne_bytes()[2]
    }

    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        (u32::from_be(self.0[0]) >> 20) as u8
    }

    #[inline(always)]
    fn sender_can_react(&self) -> bool {
        // Neither groups (RFC 4443 §2.4) nor the unspecified address and loopback.
        let [_, _, a, b, c, d, ..] = self.0;
        a.to_ne_bytes()[0] != 0xff && (a | b | c != 0 || u32::from_be(d) > 1)
    }

    #[inline(always)]
    fn addresses(&self) -> [Address; 2] {
        let [_, _, a, b, c, d, e, f, g, h] = self.0;
        [[a, b, c, d], [e, f, g, h]]
    }

    #[inline(always)]
    fn shorten(&mut self, by: u16) {
        let [len, rest] = halves(self.0[1]);
        self.0[1] = word((u16::from_be(len) - by).to_be(), rest);
    }

    #[inline(always)]
    fn age(&mut self) -> Result<(), Reason> {
        let [a, b, next, limit] = self.0[1].to_ne_bytes();
        if limit <= 1 {
            return Err(Reason::HopLimit);
        }
        self.0[1] = u32::from_ne_bytes([a, b, next, limit - 1]);
        Ok(())
    }

    #[inline(always)]
    fn set_ecn(&mut self, ecn: u8) {
        let rest = u32::from_be(self.0[0]) & !(u32::from(ECN) << 20);
        self.0[0] = (rest | u32::from(ecn) << 20).to_be();
    }

    #[inline(always)]
    fn cookie(&self) -> Option<u32> {
        Some(u32::from_be(self.0[0]) & COOKIE_MASK_V6)
    }

    #[inline(always)]
    fn set_cookie(&mut self, cookie: u32) {
        let rest = u32::from_be(self.0[0]) & !COOKIE_MASK_V6;
        self.0[0] = (rest | cookie & COOKIE_MASK_V6).to_be();
    }

    #[inline(always)]
    fn readdress(&mut self, [[a, b, c, d], [e, f, g, h]]: [Address; 2]) {
        self.0 = [self.0[0], self.0[1], a, b, c, d, e, f, g, h];
    }

    #[inline(always)]
    fn sum_of_header(&self) -> Checksum {
        self.0.iter().fold(Checksum::new(), |sum, word| sum.add_u32(*word))
    }

    #[inline(always)]
    fn sum_of_pseudo_header(&self) -> Checksum {
        let [_, len_next, addresses @ ..] = self.0;
        let [len, _] = halves(len_next);
        addresses
            .iter()
            .fold(Checksum::new(), |sum, word| sum.add_u32(*word))
            .add(u16::from(UDP).to_be())
            .add(len)
    }

    #[inline(always)]
    fn sum_of_packet(&self) -> Checksum {
        // Addresses and length stand in the header and in the pseudo-header (RFC 8200 §8.1): what is left.
        let [_, next_limit] = halves(self.0[1]);
        Checksum::new().add_u32(self.0[0]).add(next_limit).subtract(u16::from(self.protocol()).to_be())
    }
}

impl Udp {
    /// Its bytes.
    pub const LEN: usize = size_of::<Self>();

    /// The header at an offset from a position.
    #[inline(always)]
    pub fn read(at: Cursor, offset: usize) -> Option<Self> {
        at.read_words(offset).map(Self)
    }

    /// Puts it at an offset from a position.
    #[inline(always)]
    pub fn write(&self, at: Cursor, offset: usize) -> Option<()> {
        at.write_words(offset, &self.0)
    }

    /// Source and destination port, in network order.
    #[inline(always)]
    pub const fn ports_be(&self) -> [u16; 2] {
        halves(self.0[0])
    }

    /// Bytes of the datagram, this header included.
    #[inline(always)]
    pub const fn datagram_len(&self) -> u16 {
        u16::from_be(halves(self.0[1])[0])
    }

    /// Whether it has a checksum.
    #[inline(always)]
    pub const fn is_summed(&self) -> bool {
        self.checksum_be() != 0
    }

    /// The checksum, in network order; 0: there is none.
    #[inline(always)]
    pub const fn checksum_be(&self) -> u16 {
        halves(self.0[1])[1]
    }

    /// It gets this checksum, in network order.
    #[inline(always)]
    pub const fn set_checksum_be(&mut self, checksum_be: u16) {
        self.0[1] = word(halves(self.0[1])[0], checksum_be);
    }

    /// Whether the checksum field has the sum of the pseudo-header alone: see `checksum` of the balancer's program.
    #[inline(always)]
    pub fn is_partial<I: Ip>(&self, ip: &I) -> bool {
        self.is_summed() && ip.sum_of_pseudo_header().is_in(self.checksum_be())
    }

    /// The datagram loses this many bytes.
    #[inline(always)]
    pub fn shorten(&mut self, by: u16) {
        let [old, checksum] = halves(self.0[1]);
        let new = (u16::from_be(old) - by).to_be();
        self.0[1] = word(new, checksum);
        // The length stands in the header and in the pseudo-header.
        self.sum(|sum| sum.subtract(old).subtract(old).add(new).add(new));
    }

    /// Its IP header gets other addresses, which its checksum covers, too.
    #[inline(always)]
    pub fn readdress(&mut self, old: &[Address; 2], new: &[Address; 2]) {
        self.sum(|sum| readdressed(sum, old, new));
    }

    /// The sum of its own bytes.
    #[inline(always)]
    pub fn sum_of_header(&self) -> Checksum {
        Checksum::new().add_u32(self.0[0]).add_u32(self.0[1])
    }

    /// Where it is an ICMP header: the checksum after a change of what it covers.
    #[inline(always)]
    pub fn change_icmp(&mut self, change: impl FnOnce(Checksum) -> Checksum) {
        let [kind, checksum] = halves(self.0[0]);
        self.0[0] = word(kind, change(Checksum::of_field(checksum)).field());
    }

    /// It gets other ports.
    #[inline(always)]
    pub fn set_ports(&mut self, source_be: u16, destination_be: u16) {
        let (old, new) = (self.0[0], word(source_be, destination_be));
        self.0[0] = new;
        self.sum(|sum| sum.subtract_u32(old).add_u32(new));
    }

    /// The checksum after a change of what it covers, where there is one.
    #[inline(always)]
    pub fn sum(&mut self, change: impl FnOnce(Checksum) -> Checksum) {
        let [len, checksum] = halves(self.0[1]);
        if checksum != 0 {
            self.0[1] = word(len, change(Checksum::of_field(checksum)).udp_field());
        }
    }
}
