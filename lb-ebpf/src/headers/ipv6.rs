//! The IPv6 header.

use lb_common::{checksum::Checksum, nat::COOKIE_MASK_V6, reason::Reason};
use network_types::eth::EtherType;

use super::{Address, ECN, Ip, halves, word};
use crate::{packet::Cursor, wire::protocol};

/// An IPv6 header (RFC 8200 §3).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Ipv6(pub [u32; 10]);

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
        // No ICMP error is sent to a multicast address (RFC 4443 §2.4), the unspecified address or loopback.
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
    fn decrement_ttl(&mut self) -> Result<(), Reason> {
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
    fn rewrite_addresses(&mut self, [[a, b, c, d], [e, f, g, h]]: [Address; 2]) {
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
            .add(u16::from(protocol::UDP).to_be())
            .add(len)
    }

    #[inline(always)]
    fn sum_of_packet(&self) -> Checksum {
        // Addresses and length are in the header and in the pseudo-header (RFC 8200 §8.1), and cancel out. The other
        // fields remain.
        let [_, next_limit] = halves(self.0[1]);
        Checksum::new().add_u32(self.0[0]).add(next_limit).subtract(u16::from(self.protocol()).to_be())
    }
}
