//! IP and UDP headers: access to their fields, and changes with checksum updates.
//!
//! A header is an array of words in memory order. If it were copied as bytes, LLVM would keep parts of it on the stack
//! at odd offsets, and the verifier requires aligned offsets.

mod ipv4;
mod ipv6;
mod udp;

pub use ipv4::Ipv4;
pub use ipv6::Ipv6;
use lb_common::{checksum::Checksum, reason::Reason};
pub use udp::Udp;

use crate::packet::Cursor;

/// The halves of a word, in memory order.
#[inline(always)]
pub(crate) const fn halves(word: u32) -> [u16; 2] {
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
    /// Its length in bytes.
    const LEN: usize;
    /// Whether it is IPv6.
    const V6: bool;
    /// Its EtherType, in network byte order.
    const ETHER_TYPE: u16;

    /// The header at a position.
    fn read(at: Cursor) -> Option<Self>;
    /// Writes it at an offset from a position.
    fn write(&self, at: Cursor, offset: usize) -> Option<()>;
    /// The length of the packet in bytes, this header included.
    fn packet_len(&self) -> u32;
    /// The protocol number of the payload.
    fn protocol(&self) -> u8;
    /// TOS or traffic class: DSCP and ECN.
    fn traffic_class(&self) -> u8;
    /// Whether a router that cannot forward the packet sends an ICMP error to its sender.
    fn sender_can_react(&self) -> bool;
    /// Source and destination, as words in memory order.
    fn addresses(&self) -> [Address; 2];

    /// Reduces the length of the packet.
    fn shorten(&mut self, by: u16);
    /// Decrements the time to live or hop limit, as each router does (RFC 1812 §5.3.1, RFC 8200 §3).
    ///
    /// # Errors
    /// `HopLimit`, if it would become 0.
    fn decrement_ttl(&mut self) -> Result<(), Reason>;
    /// Sets the ECN, and keeps the DSCP (RFC 6040 §4.2).
    fn set_ecn(&mut self, ecn: u8);
    /// The cookie that [`Ip::set_cookie`] wrote; `None` if the packet has no field for one.
    fn cookie(&self) -> Option<u32>;
    /// Writes a cookie into a field that no receiver uses: identification (16 bits) or flow label (20 bits). A fragment
    /// or a packet that may be fragmented uses its identification, and gets no cookie.
    fn set_cookie(&mut self, cookie: u32);
    /// Replaces source and destination.
    fn rewrite_addresses(&mut self, addresses: [Address; 2]);
    /// The sum of the header's bytes.
    fn sum_of_header(&self) -> Checksum;
    /// The sum of the pseudo-header of its payload, a UDP datagram (RFC 768, RFC 8200 §8.1).
    fn sum_of_pseudo_header(&self) -> Checksum;
    /// The sum of the whole packet, if the checksum of its datagram is correct: the sum of the datagram and its
    /// pseudo-header is then zero, so the header is enough (Documentation/networking/checksum-offloads.rst of Linux,
    /// "LCO").
    fn sum_of_packet(&self) -> Checksum;
}

/// An address in network byte order; an IPv4 address is v4-mapped.
pub type Address = [u32; 4];

/// Whether two addresses are equal, compared word by word: see `verifier`.
#[inline(always)]
pub const fn same_address(a: &Address, b: &Address) -> bool {
    a[3] == b[3] && a[0] == b[0] && a[1] == b[1] && a[2] == b[2]
}

/// A sum that covers two addresses, after their replacement.
#[inline(always)]
pub fn replace_addresses(sum: Checksum, [a, b]: &[Address; 2], [c, d]: &[Address; 2]) -> Checksum {
    let sum = a.iter().chain(b).fold(sum, |sum, word| sum.subtract_u32(*word));
    c.iter().chain(d).fold(sum, |sum, word| sum.add_u32(*word))
}

/// An IPv4 address in the form of an IPv6 address (RFC 4291 §2.5.5.2).
#[inline(always)]
pub const fn v4_mapped(address_be: u32) -> Address {
    [0, 0, 0xffff_u32.to_be(), address_be]
}

/// The bits of a traffic class that are ECN (RFC 3168 §5).
const ECN: u8 = 0b11;
