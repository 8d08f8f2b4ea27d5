//! Frames from their fields: the defaults make a valid packet of the default [`World`](crate::world::World), and a
//! test names only what differs.
//!
//! Checksums are computed in full by `etherparse`, which shares no code with the program's changes by difference.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::checksum::Sum16BitWords;
use lb_common::token::{Header, header};

use crate::world;

/// EtherType of IPv4.
pub const ETHER_TYPE_IPV4: u16 = 0x0800;
/// Tag protocol identifier of a customer tag (802.1Q).
pub const TAG_8021Q: u16 = 0x8100;
/// Tag protocol identifier of a service tag (802.1ad).
pub const TAG_8021AD: u16 = 0x88a8;
/// Bytes of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of a VLAN tag.
pub const TAG_LEN: usize = 4;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// What follows the token of the default packet.
pub const APPLICATION_DATA: &[u8] = b"Hello, backend!";

/// A frame as it is to be on the wire.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The network card it is for.
    pub destination_mac: [u8; 6],
    /// The network card it is from.
    pub source_mac: [u8; 6],
    /// VLAN tags, the outermost first: protocol identifier, and VLAN id with priority.
    pub tags: Vec<(u16, u16)>,
    /// The EtherType after all tags.
    pub ether_type: u16,
    /// IP version.
    pub version: u8,
    /// Length of the IP header in 32-bit words; `None`: as it is.
    pub ihl: Option<u8>,
    /// IP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Length by the IP header; `None`: as it is.
    pub total_len: Option<u16>,
    /// Flags and offset (RFC 791 §3.1).
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// IP protocol.
    pub protocol: u8,
    /// By how much the IP header's checksum is wrong.
    pub ip_checksum_off_by: u16,
    /// The client.
    pub from: SocketAddrV4,
    /// The service.
    pub to: SocketAddrV4,
    /// Length by the UDP header; `None`: as it is.
    pub udp_len: Option<u16>,
    /// The UDP header's checksum.
    pub udp_checksum: UdpChecksum,
    /// The datagram's payload: a token header and the application's data.
    pub payload: Vec<u8>,
    /// Bytes after the IP packet, as Ethernet pads short frames.
    pub padding: Vec<u8>,
}

/// A fragment that is not the last (RFC 791 §3.1).
pub const MORE_FRAGMENTS: u16 = 1 << 13;
/// A packet that no router may fragment.
pub const DONT_FRAGMENT: u16 = 1 << 14;

/// The checksum of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpChecksum {
    /// As RFC 768 asks.
    Right,
    /// Zero: there is none.
    None,
    /// Wrong by this one's-complement summand.
    OffBy(u16),
}

impl Default for Packet {
    /// A datagram with the default token.
    fn default() -> Self {
        Self::with_token(&world::token())
    }
}

impl Packet {
    /// The default packet with this token.
    pub fn with_token(token: &Header) -> Self {
        Self::with_payload([&token.to_bytes()[..], APPLICATION_DATA].concat())
    }

    /// The default packet with this payload in place of token and data.
    pub fn with_payload(payload: Vec<u8>) -> Self {
        Self {
            destination_mac: world::BALANCER_MAC,
            source_mac: world::ROUTER_MAC,
            tags: Vec::new(),
            ether_type: ETHER_TYPE_IPV4,
            version: 4,
            ihl: None,
            options: Vec::new(),
            total_len: None,
            fragment: DONT_FRAGMENT,
            ttl: 57,
            protocol: UDP,
            ip_checksum_off_by: 0,
            from: world::CLIENT,
            to: world::SERVICE,
            udp_len: None,
            udp_checksum: UdpChecksum::Right,
            payload,
            padding: Vec::new(),
        }
    }

    /// The same under this many VLAN tags, of both kinds.
    pub fn tagged(mut self, tags: u16) -> Self {
        let outer = [TAG_8021AD, TAG_8021Q];
        self.tags = (0..tags).map(|tag| (outer[usize::from(tag % 2)], 100 + tag)).collect();
        self
    }

    /// The same without the token that its payload begins with.
    pub fn stripped(mut self) -> Self {
        self.payload.drain(..header::LEN);
        self
    }

    /// Where its IP header begins.
    pub fn ip_offset(&self) -> usize {
        ETHERNET_LEN + TAG_LEN * self.tags.len()
    }

    /// Where its payload begins.
    pub fn payload_offset(&self) -> usize {
        self.ip_offset() + IPV4_LEN + self.options.len() + UDP_LEN
    }

    /// The bytes of the frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = [self.destination_mac, self.source_mac].concat();
        for (identifier, id) in &self.tags {
            frame.extend(identifier.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(self.ether_type.to_be_bytes());
        frame.extend(self.ip_header());
        frame.extend(self.udp_header());
        frame.extend(&self.payload);
        frame.extend(&self.padding);
        frame
    }

    fn ip_header(&self) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4), "IP options come in words of four bytes");
        let len = IPV4_LEN + self.options.len();
        let ihl = self.ihl.unwrap_or_else(|| u8::try_from(len / 4).expect("at most 40 bytes of options"));
        let true_total_len = u16::try_from(len + UDP_LEN + self.payload.len()).expect("a test frame");
        let mut header = vec![self.version << 4 | ihl, 0];
        header.extend(self.total_len.unwrap_or(true_total_len).to_be_bytes());
        header.extend(0xbeef_u16.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.from.ip().octets());
        header.extend(self.to.ip().octets());
        header.extend(&self.options);
        let sum =
            Sum16BitWords::new().add_slice(&header).add_2bytes((!self.ip_checksum_off_by).to_be_bytes());
        // etherparse sums words as they lie in memory.
        header[10..12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        header
    }

    fn udp_header(&self) -> Vec<u8> {
        let true_len = u16::try_from(UDP_LEN + self.payload.len()).expect("a test frame");
        let len = self.udp_len.unwrap_or(true_len).to_be_bytes();
        let ports = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        let sum = Sum16BitWords::new()
            .add_4bytes(self.from.ip().octets())
            .add_4bytes(self.to.ip().octets())
            .add_2bytes([0, self.protocol])
            .add_2bytes(len)
            .add_slice(&ports)
            .add_2bytes(len)
            .add_slice(&self.payload);
        let checksum = match self.udp_checksum {
            UdpChecksum::Right => sum.to_ones_complement_with_no_zero(),
            UdpChecksum::None => 0,
            UdpChecksum::OffBy(summand) => {
                sum.add_2bytes((!summand).to_be_bytes()).to_ones_complement_with_no_zero()
            }
        };
        [&ports[..], &len, &checksum.to_ne_bytes()].concat()
    }
}

/// The address of the client with this number, for tests with many.
pub fn client(number: u16) -> SocketAddrV4 {
    let [high, low] = number.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(198, 18, high, low), 40_000)
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn default_packets_are_valid() {
        for tags in 0..3 {
            let packet = Packet::default().tagged(tags);
            let frame = packet.bytes();
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            assert_eq!(sliced.link_exts.len(), usize::from(tags));
            let ip = sliced.net.as_ref().and_then(|net| net.ipv4_ref()).unwrap().header();
            assert_eq!(ip.to_header().calc_header_checksum(), ip.header_checksum());
            let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("{sliced:?}") };
            let expected =
                udp.to_header().calc_checksum_ipv4_raw(ip.source(), ip.destination(), udp.payload()).unwrap();
            assert_eq!(udp.checksum(), expected);
            assert_eq!(udp.payload(), packet.payload);
            assert_eq!(frame[packet.payload_offset()..], packet.payload);
        }
    }
}
