//! Frames from their fields: the defaults make a valid packet of the default
//! [`Fixture`](crate::model::fixture::Fixture), and a test names only the fields that differ.
//!
//! `etherparse` computes checksums in full; it shares no code with the program's incremental updates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::token::{Header, header, mint::ProofToken};

pub use bytes::fragment_header;
pub use family::Family;

use crate::model::fixture;

mod bytes;
mod family;

/// EtherType of IPv4.
pub const ETHER_TYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHER_TYPE_IPV6: u16 = 0x86dd;
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
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_LEN: usize = 40;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Next header number of a fragment header (RFC 8200 §4.5).
pub const FRAGMENT_HEADER: u8 = 44;

/// The payload after the token of the default packet.
pub const APPLICATION_DATA: &[u8] = b"Hello, backend!";

/// A frame with its fields. Its family is that of `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Destination MAC address.
    pub destination_mac: [u8; 6],
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// VLAN tags, the outermost first: protocol identifier, and VLAN id with priority.
    pub tags: Vec<(u16, u16)>,
    /// The EtherType after all tags; `None`: the correct one.
    pub ether_type: Option<u16>,
    /// IP version; `None`: the correct one.
    pub version: Option<u8>,
    /// Length of the IPv4 header in 32-bit words; `None`: the correct one.
    pub ihl: Option<u8>,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: the protocol number and the bytes of each. The first byte, the next header, is filled
    /// in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Type of service or traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label of IPv6.
    pub flow_label: u32,
    /// Identification of IPv4, or of IPv6's fragment header.
    pub id: u16,
    /// Value of the length field: bytes after the fixed part of the IP header; `None`: the correct one.
    pub ip_len: Option<i32>,
    /// Flags and offset as in IPv4 (RFC 791 §3.1). For IPv6, a fragment header is added if this is a fragment.
    pub fragment: u16,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IP protocol or next header before the payload; `None`: the correct one.
    pub protocol: Option<u8>,
    /// Error of the checksum in the IPv4 header.
    pub ip_checksum_off_by: u16,
    /// The client.
    pub from: SocketAddr,
    /// The service.
    pub to: SocketAddr,
    /// The header between IP header and payload.
    pub transport: Transport,
    /// Length in the UDP header; `None`: the correct one.
    pub udp_len: Option<u16>,
    /// The checksum in the UDP header.
    pub udp_checksum: UdpChecksum,
    /// The payload of the datagram: a token header and the data of the application.
    pub payload: Vec<u8>,
    /// Bytes after the IP packet, as Ethernet pads short frames.
    pub padding: Vec<u8>,
}

/// A fragment that is not the last (RFC 791 §3.1).
pub const MORE_FRAGMENTS: u16 = 1 << 13;
/// A packet that no router may fragment.
pub const DONT_FRAGMENT: u16 = 1 << 14;

/// A header between IP header and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP, with the ports of `from` and `to`.
    Udp,
    /// ICMP or ICMPv6.
    Icmp(Icmp),
    /// None: the payload follows the IP header.
    Nothing,
}

/// The header of an ICMP message (RFC 792, RFC 4443 §2.1). Its checksum is correct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The four bytes after the checksum.
    pub rest: [u8; 4],
}

/// The checksum of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpChecksum {
    /// As RFC 768 requires.
    Right,
    /// Zero: there is none.
    None,
    /// The sum of the pseudo-header, as a sender leaves it if its network card computes the checksum.
    Partial,
    /// Wrong by this one's-complement summand.
    OffBy(u16),
    /// This value, in host order.
    Exactly(u16),
}

impl Default for Packet {
    /// A datagram with the default token, over IPv4.
    fn default() -> Self {
        Self::with_token(&fixture::token())
    }
}

impl Packet {
    /// The default packet with this token.
    pub fn with_token(token: &Header) -> Self {
        Self::with_payload([&token.to_bytes()[..], APPLICATION_DATA].concat())
    }

    /// The default packet with this PROOF token and sequence number, made this many milliseconds after the token was
    /// issued.
    pub fn with_proof(token: &ProofToken, seq: u32, ts_ms: u32) -> Self {
        Self::with_token(&token.header(seq, ts_ms, APPLICATION_DATA))
    }

    /// The default packet with this payload instead of token and data.
    pub fn with_payload(payload: Vec<u8>) -> Self {
        Self {
            destination_mac: fixture::BALANCER_MAC,
            source_mac: fixture::ROUTER_MAC,
            tags: Vec::new(),
            ether_type: None,
            version: None,
            ihl: None,
            options: Vec::new(),
            extensions: Vec::new(),
            traffic_class: 0xba,
            flow_label: 0xb_eef5,
            id: 0xbeef,
            ip_len: None,
            fragment: DONT_FRAGMENT,
            ttl: 57,
            protocol: None,
            ip_checksum_off_by: 0,
            from: fixture::CLIENT,
            to: fixture::SERVICE,
            transport: Transport::Udp,
            udp_len: None,
            udp_checksum: UdpChecksum::Right,
            payload,
            padding: Vec::new(),
        }
    }

    /// An ICMP message to a service's address that quotes the first `len` bytes of an IP packet.
    pub fn icmp_error(message: Icmp, quoted: &[u8], len: usize) -> Self {
        Self {
            fragment: 0,
            from: fixture::ICMP_ROUTER,
            transport: Transport::Icmp(message),
            ..Self::with_payload(quoted[..len.min(quoted.len())].to_vec())
        }
    }

    /// The same packet over this family: IPv4 addresses become their twins.
    pub fn over(mut self, family: Family) -> Self {
        self.from = family.twin_at(self.from);
        self.to = family.twin_at(self.to);
        self
    }

    /// Its family.
    pub const fn family(&self) -> Family {
        Family::of(self.to.ip())
    }

    /// The same packet with this many VLAN tags, of both kinds.
    pub fn tagged(mut self, tags: u16) -> Self {
        let outer = [TAG_8021AD, TAG_8021Q];
        self.tags = (0..tags).map(|tag| (outer[usize::from(tag % 2)], 100 + tag)).collect();
        self
    }

    /// The same packet without the token at the start of its payload.
    pub fn stripped(mut self) -> Self {
        self.payload.drain(..header::LEN);
        self
    }

    /// The same packet with two more bytes, with which its correct checksum equals the sum of its pseudo-header.
    ///
    /// # Panics
    /// If it is not a UDP datagram.
    pub fn as_if_partial(mut self) -> Self {
        self.payload.extend([0; 2]);
        let at = self.payload.len() - 2;
        let partial = Self { udp_checksum: UdpChecksum::Partial, ..self.clone() }.udp_checksum_field();
        for word in 0..=u16::MAX {
            self.payload[at..].copy_from_slice(&word.to_be_bytes());
            if self.udp_checksum_field() == partial {
                return self;
            }
        }
        panic!("one of all words makes a UDP checksum what it is to be");
    }

    /// The same packet with its checksum computed, if that was left to a network card.
    pub fn completed(mut self) -> Self {
        if self.udp_checksum == UdpChecksum::Partial {
            self.udp_checksum = UdpChecksum::Right;
        }
        self
    }

    /// The same packet after one more hop.
    pub const fn hop(mut self) -> Self {
        self.ttl -= 1;
        self
    }

    /// A datagram in fragments. Its UDP header is in the first fragment and covers all of them. Each fragment but the
    /// last carries `len` bytes after its IP header, a multiple of eight.
    pub fn fragments(&self, len: usize) -> Vec<Self> {
        let (first, rest) = self.payload.split_at(len - UDP_LEN);
        let first = Self {
            fragment: MORE_FRAGMENTS,
            udp_len: Some((UDP_LEN + self.payload.len()) as u16),
            udp_checksum: match self.udp_checksum {
                UdpChecksum::None => UdpChecksum::None,
                _ => UdpChecksum::Exactly(self.udp_checksum_field()),
            },
            payload: first.to_vec(),
            ..self.clone()
        };
        let last = rest.len().div_ceil(len);
        let later = rest.chunks(len).zip(1..).map(|(payload, number)| Self {
            fragment: (number * len / 8) as u16 | if number < last { MORE_FRAGMENTS } else { 0 },
            transport: Transport::Nothing,
            protocol: Some(UDP),
            payload: payload.to_vec(),
            ..self.clone()
        });
        std::iter::once(first).chain(later).collect()
    }

    /// This packet as the payload of an IP packet (RFC 2003, RFC 2473): DSCP and ECN copied (RFC 6040 §4.1), the rest
    /// as the program sends it.
    pub fn inside_ip(&self, from: IpAddr, to: IpAddr) -> Self {
        Self {
            destination_mac: self.destination_mac,
            source_mac: self.source_mac,
            tags: self.tags.clone(),
            padding: self.padding.clone(),
            traffic_class: self.traffic_class,
            flow_label: 0,
            id: 0,
            ttl: OUTER_TTL,
            protocol: Some(self.family().encapsulated()),
            from: SocketAddr::new(from, 0),
            to: SocketAddr::new(to, 0),
            transport: Transport::Nothing,
            ..Self::with_payload(self.ip_packet())
        }
    }

    /// This packet as the payload of a UDP datagram (GUE variant 1). Over IPv4, the datagram has no checksum. Over
    /// IPv6, it has one that is correct if the checksums of this packet are, and none if this packet has none (RFC
    /// 6935).
    pub fn inside_udp(&self, from: IpAddr, source_port: u16, to: IpAddr) -> Self {
        let inside = |packet: &Self, udp_checksum| Self {
            protocol: None,
            from: SocketAddr::new(from, source_port),
            to: SocketAddr::new(to, GUE_PORT),
            transport: Transport::Udp,
            udp_checksum,
            ..packet.inside_ip(from, to)
        };
        if to.is_ipv4() || self.udp_checksum == UdpChecksum::None {
            return inside(self, UdpChecksum::None);
        }
        let mended = Self { ip_checksum_off_by: 0, udp_checksum: UdpChecksum::Right, ..self.clone() };
        let right = inside(&mended, UdpChecksum::Right).udp_checksum_field();
        inside(self, UdpChecksum::Exactly(right))
    }
}

/// Time to live of outer headers.
pub const OUTER_TTL: u8 = 64;
/// UDP port of GUE (IANA).
pub const GUE_PORT: u16 = 6080;

/// The address of the client with this number, for tests with many.
pub fn client(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::new(Ipv4Addr::new(198, 18, high, low).into(), 40_000)
}
