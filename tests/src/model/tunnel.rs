//! Encapsulated packets as a backend receives them from a balancer: an inner datagram, and outer headers that a test
//! can corrupt.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader, checksum::Sum16BitWords,
};

use crate::model::packet::{DONT_FRAGMENT, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, TAG_8021AD, TAG_8021Q};

/// The UDP port that receives GUE.
pub const GUE_PORT: u16 = 6080;
/// MAC address of the backend.
pub const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0xb, 1];
/// MAC address of the balancer.
pub const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 0xa, 1];
/// Addresses of the balancer, which a backend trusts.
pub const BALANCER: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 9, 0, 7), Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 7));
/// Addresses of the backend.
pub const BACKEND: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 8, 0, 1), Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, 1));

/// The encapsulation of the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An IP header.
    Ipip,
    /// IP and UDP headers, with or without a UDP checksum.
    Gue {
        /// Whether there is a checksum.
        summed: bool,
    },
}

/// A frame with an inner packet. A field that is `None` has its correct value.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Destination MAC address.
    pub destination_mac: [u8; 6],
    /// Number of VLAN tags.
    pub tags: u16,
    /// Outer source address; its family is that of the outer header.
    pub source: IpAddr,
    /// Its TOS or traffic class.
    pub class: u8,
    /// IP version.
    pub version: Option<u8>,
    /// The protocol number in the outer header.
    pub protocol: Option<u8>,
    /// IPv4 flags and fragment offset.
    pub fragment: u16,
    /// IPv4 options, or IPv6 extension headers.
    pub options: Vec<u8>,
    /// IPv4 total length, or IPv6 payload length.
    pub ip_len: Option<u16>,
    /// Whether the IPv4 header's checksum is wrong.
    pub ip_checksum_wrong: bool,
    /// The encapsulation of the inner packet.
    pub kind: Kind,
    /// The outer UDP destination port.
    pub port: u16,
    /// The outer UDP length.
    pub udp_len: Option<u16>,
    /// The inner packet.
    pub inner: Vec<u8>,
    /// Bytes after the outer packet.
    pub padding: Vec<u8>,
}

impl Tunnel {
    /// A packet of a balancer, with an outer header of this version.
    pub fn new(version: u8, kind: Kind, inner: Vec<u8>) -> Self {
        Self {
            destination_mac: BACKEND_MAC,
            tags: 0,
            source: if version == 4 { BALANCER.0.into() } else { BALANCER.1.into() },
            class: 0,
            version: None,
            protocol: None,
            fragment: DONT_FRAGMENT,
            options: Vec::new(),
            ip_len: None,
            ip_checksum_wrong: false,
            kind,
            port: GUE_PORT,
            udp_len: None,
            inner,
            padding: Vec::new(),
        }
    }

    /// The bytes of the frame.
    pub fn bytes(&self) -> Vec<u8> {
        let payload = match self.kind {
            Kind::Ipip => self.inner.clone(),
            Kind::Gue { summed } => [self.udp(summed), self.inner.clone()].concat(),
        };
        let payload = match self.source {
            IpAddr::V4(source) => [self.ipv4(source, payload.len()), payload].concat(),
            IpAddr::V6(source) => [self.ipv6(source, payload.len()), payload].concat(),
        };
        let ether_type = if self.source.is_ipv4() { ETHER_TYPE_IPV4 } else { ETHER_TYPE_IPV6 };
        [self.link(ether_type), payload, self.padding.clone()].concat()
    }

    /// The bytes of the frame after the outer headers were removed, with this inner packet.
    pub fn opened(&self, inner: &[u8]) -> Vec<u8> {
        let ether_type = if inner[0] >> 4 == 4 { ETHER_TYPE_IPV4 } else { ETHER_TYPE_IPV6 };
        [&self.link(ether_type), inner, &self.padding].concat()
    }

    fn link(&self, ether_type: u16) -> Vec<u8> {
        let mut link = [self.destination_mac, BALANCER_MAC].concat();
        for tag in 0..self.tags {
            let identifier = [TAG_8021AD, TAG_8021Q][usize::from(tag % 2)];
            link.extend([identifier.to_be_bytes(), (100 + tag).to_be_bytes()].concat());
        }
        link.extend(ether_type.to_be_bytes());
        link
    }

    fn ipv4(&self, source: Ipv4Addr, payload: usize) -> Vec<u8> {
        let len = 20 + self.options.len();
        let vihl = self.version.unwrap_or(4) << 4 | u8::try_from(len / 4).expect("a header");
        let total = u16::try_from(len + payload).expect("a test frame");
        let mut header = vec![vihl, self.class];
        header.extend(self.ip_len.unwrap_or(total).to_be_bytes());
        header.extend([0, 0]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([64, self.protocol(), 0, 0]);
        header.extend(source.octets());
        header.extend(BACKEND.0.octets());
        header.extend(&self.options);
        let mut sum = Sum16BitWords::new().add_slice(&header);
        if self.ip_checksum_wrong {
            sum = sum.add_2bytes([0, 1]);
        }
        header[10..12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        header
    }

    fn ipv6(&self, source: Ipv6Addr, payload: usize) -> Vec<u8> {
        let first = u32::from(self.version.unwrap_or(6)) << 28 | u32::from(self.class) << 20 | 0x12345;
        let len = u16::try_from(self.options.len() + payload).expect("a test frame");
        let mut header = first.to_be_bytes().to_vec();
        header.extend(self.ip_len.unwrap_or(len).to_be_bytes());
        header.extend([self.protocol(), 64]);
        header.extend(source.octets());
        header.extend(BACKEND.1.octets());
        header.extend(&self.options);
        header
    }

    fn protocol(&self) -> u8 {
        self.protocol.unwrap_or(match self.kind {
            Kind::Gue { .. } => 17,
            Kind::Ipip if self.inner.first().is_some_and(|first| first >> 4 == 6) => 41,
            Kind::Ipip => 4,
        })
    }

    fn udp(&self, summed: bool) -> Vec<u8> {
        let (from, to) = (0xc123, self.port);
        let header = match (summed, self.source) {
            (false, _) => UdpHeader::without_ipv4_checksum(from, to, self.inner.len()),
            (true, IpAddr::V4(source)) => {
                UdpHeader::with_ipv4_checksum(from, to, &ipv4_header(source, BACKEND.0, 0, 0), &self.inner)
            }
            (true, IpAddr::V6(source)) => {
                UdpHeader::with_ipv6_checksum(from, to, &ipv6_header(source, BACKEND.1, 0, 0), &self.inner)
            }
        };
        let mut header = header.expect("a test frame").to_bytes();
        if let Some(len) = self.udp_len {
            header[4..6].copy_from_slice(&len.to_be_bytes());
        }
        header.to_vec()
    }
}

/// An IP packet with a UDP datagram. Both addresses are of one family.
pub fn datagram(from: SocketAddr, to: SocketAddr, class: u8, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len();
    match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            let ip = ipv4_header(*from.ip(), *to.ip(), class, len);
            let udp = UdpHeader::with_ipv4_checksum(from.port(), to.port(), &ip, payload);
            [&ip.to_bytes()[..], &udp.expect("a test packet").to_bytes(), payload].concat()
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            let ip = ipv6_header(*from.ip(), *to.ip(), class, len);
            let udp = UdpHeader::with_ipv6_checksum(from.port(), to.port(), &ip, payload);
            [&ip.to_bytes()[..], &udp.expect("a test packet").to_bytes(), payload].concat()
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, class: u8, payload: usize) -> Ipv4Header {
    let payload = u16::try_from(payload).expect("a test packet");
    let mut header =
        Ipv4Header::new(payload, 57, IpNumber::UDP, from.octets(), to.octets()).expect("it is short");
    header.dscp = IpDscp::try_new(class >> 2).expect("six bits");
    header.ecn = IpEcn::try_new(class & 3).expect("two bits");
    header.header_checksum = header.calc_header_checksum();
    header
}

fn ipv6_header(from: Ipv6Addr, to: Ipv6Addr, class: u8, payload: usize) -> Ipv6Header {
    Ipv6Header {
        traffic_class: class,
        flow_label: Ipv6FlowLabel::try_new(0x54321).expect("twenty bits"),
        payload_length: u16::try_from(payload).expect("a test packet"),
        next_header: IpNumber::UDP,
        hop_limit: 57,
        source: from.octets(),
        destination: to.octets(),
    }
}
