//! The UDP header.

use lb_common::checksum::Checksum;

use super::{Address, Ip, halves, replace_addresses, word};
use crate::packet::Cursor;

/// A UDP header (RFC 768).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Udp(pub [u32; 2]);

impl Udp {
    /// Its length in bytes.
    pub const LEN: usize = size_of::<Self>();

    /// The header at an offset from a position.
    #[inline(always)]
    pub fn read(at: Cursor, offset: usize) -> Option<Self> {
        at.read_words(offset).map(Self)
    }

    /// Writes it at an offset from a position.
    #[inline(always)]
    pub fn write(&self, at: Cursor, offset: usize) -> Option<()> {
        at.write_words(offset, &self.0)
    }

    /// Source and destination port, in network order.
    #[inline(always)]
    pub const fn ports_be(&self) -> [u16; 2] {
        halves(self.0[0])
    }

    /// The length of the datagram in bytes, this header included.
    #[inline(always)]
    pub const fn datagram_len(&self) -> u16 {
        u16::from_be(halves(self.0[1])[0])
    }

    /// Whether it has a checksum.
    #[inline(always)]
    pub const fn has_checksum(&self) -> bool {
        self.checksum_be() != 0
    }

    /// The checksum, in network order; 0: none.
    #[inline(always)]
    pub const fn checksum_be(&self) -> u16 {
        halves(self.0[1])[1]
    }

    /// Sets the checksum, in network order.
    #[inline(always)]
    pub const fn set_checksum_be(&mut self, checksum_be: u16) {
        self.0[1] = word(halves(self.0[1])[0], checksum_be);
    }

    /// Whether the checksum field contains only the sum of the pseudo-header: see `checksum` in the balancer's program.
    #[inline(always)]
    pub fn is_partial<I: Ip>(&self, ip: &I) -> bool {
        self.has_checksum() && ip.sum_of_pseudo_header().is_in(self.checksum_be())
    }

    /// Reduces the length of the datagram.
    #[inline(always)]
    pub fn shorten(&mut self, by: u16) {
        let [old, checksum] = halves(self.0[1]);
        let new = (u16::from_be(old) - by).to_be();
        self.0[1] = word(new, checksum);
        // The length is in the header and in the pseudo-header.
        self.sum(|sum| sum.subtract(old).subtract(old).add(new).add(new));
    }

    /// Updates the checksum for new addresses in the IP header, which it covers.
    #[inline(always)]
    pub fn rewrite_addresses(&mut self, old: &[Address; 2], new: &[Address; 2]) {
        self.sum(|sum| replace_addresses(sum, old, new));
    }

    /// The sum of the header's bytes.
    #[inline(always)]
    pub fn sum_of_header(&self) -> Checksum {
        Checksum::new().add_u32(self.0[0]).add_u32(self.0[1])
    }

    /// Updates the checksum of an ICMP header for a change of the bytes that it covers. ICMP and UDP headers have the
    /// same length.
    #[inline(always)]
    pub fn change_icmp(&mut self, change: impl FnOnce(Checksum) -> Checksum) {
        let [kind, checksum] = halves(self.0[0]);
        self.0[0] = word(kind, change(Checksum::of_field(checksum)).field());
    }

    /// Replaces the ports.
    #[inline(always)]
    pub fn set_ports(&mut self, source_be: u16, destination_be: u16) {
        let (old, new) = (self.0[0], word(source_be, destination_be));
        self.0[0] = new;
        self.sum(|sum| sum.subtract_u32(old).add_u32(new));
    }

    /// Updates the checksum, if there is one, for a change of the bytes that it covers.
    #[inline(always)]
    pub fn sum(&mut self, change: impl FnOnce(Checksum) -> Checksum) {
        let [len, checksum] = halves(self.0[1]);
        if checksum != 0 {
            self.0[1] = word(len, change(Checksum::of_field(checksum)).udp_field());
        }
    }
}
