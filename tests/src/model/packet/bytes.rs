//! The bytes of a packet on the wire.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;

use super::{
    ETHERNET_LEN, FRAGMENT_HEADER, Family, IPV4_LEN, IPV6_LEN, Icmp, MORE_FRAGMENTS, Packet, TAG_LEN,
    Transport, UDP, UDP_LEN, UdpChecksum,
};

/// Mask of the fragment offset in IPv4's field of flags and offset (RFC 791 §3.1).
const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Packet {
    /// The bytes of the frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = [self.destination_mac, self.source_mac].concat();
        for (identifier, id) in &self.tags {
            frame.extend(identifier.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(self.ether_type.unwrap_or(self.family().ether_type()).to_be_bytes());
        frame.extend(self.ip_packet());
        frame.extend(&self.padding);
        frame
    }

    /// The bytes of the IP packet in it.
    pub fn ip_packet(&self) -> Vec<u8> {
        let transport = self.transport();
        let len = transport.len() + self.payload.len();
        let header = match self.family() {
            Family::V4 => self.ipv4_header(len),
            Family::V6 => self.ipv6_headers(len),
        };
        [&header, &transport, &self.payload].map(|part| &part[..]).concat()
    }

    /// Offset of its IP header.
    pub fn ip_offset(&self) -> usize {
        ETHERNET_LEN + TAG_LEN * self.tags.len()
    }

    /// Offset of its UDP or ICMP header.
    pub fn transport_offset(&self) -> usize {
        let extensions: usize = self.ipv6_extensions().iter().map(|(_, bytes)| bytes.len()).sum();
        let after_ip = match self.family() {
            Family::V4 => self.options.len(),
            Family::V6 => extensions,
        };
        self.ip_offset() + self.family().header_len() + after_ip
    }

    /// Offset of its payload.
    pub fn payload_offset(&self) -> usize {
        self.transport_offset() + self.transport().len()
    }

    /// The checksum in its UDP header.
    pub fn udp_checksum_field(&self) -> u16 {
        let header = self.transport();
        u16::from_be_bytes([header[6], header[7]])
    }

    fn protocol(&self) -> u8 {
        self.protocol.unwrap_or_else(|| match self.transport {
            Transport::Udp => UDP,
            Transport::Icmp(_) => self.family().icmp(),
            Transport::Nothing => panic!("a packet without a transport header names its protocol"),
        })
    }

    /// The value of the length field of the IP header, for the bytes after its fixed part.
    fn ip_len(&self, after: usize) -> [u8; 2] {
        let after = self.ip_len.unwrap_or_else(|| i32::try_from(after).expect("a test frame"));
        let field = match self.family() {
            Family::V4 => after + IPV4_LEN as i32,
            Family::V6 => after,
        };
        u16::try_from(field).expect("16 bits hold a length").to_be_bytes()
    }

    fn ipv4_header(&self, after: usize) -> Vec<u8> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (self.from.ip(), self.to.ip()) else {
            panic!("{} and {} are of two families", self.from, self.to);
        };
        assert!(self.options.len().is_multiple_of(4), "IP options come in words of four bytes");
        let words = u8::try_from((IPV4_LEN + self.options.len()) / 4).expect("at most 40 bytes of options");
        let mut header = vec![self.version.unwrap_or(4) << 4 | self.ihl.unwrap_or(words), self.traffic_class];
        header.extend(self.ip_len(self.options.len() + after));
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(from.octets());
        header.extend(to.octets());
        header.extend(&self.options);
        let sum =
            Sum16BitWords::new().add_slice(&header).add_2bytes((!self.ip_checksum_off_by).to_be_bytes());
        // etherparse sums words in memory order.
        header[10..12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        header
    }

    fn ipv6_headers(&self, after: usize) -> Vec<u8> {
        let (IpAddr::V6(from), IpAddr::V6(to)) = (self.from.ip(), self.to.ip()) else {
            panic!("{} and {} are of two families", self.from, self.to);
        };
        let extensions = self.ipv6_extensions();
        let mut numbers = extensions.iter().map(|(number, _)| *number).chain([self.protocol()]);
        let mut next = || numbers.next().expect("one more than there are extension headers");
        let first_word = u32::from(self.version.unwrap_or(6)) << 28
            | u32::from(self.traffic_class) << 20
            | self.flow_label;
        let extensions_len: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum();

        let mut headers = first_word.to_be_bytes().to_vec();
        headers.extend(self.ip_len(extensions_len + after));
        headers.extend([next(), self.ttl]);
        headers.extend(from.octets());
        headers.extend(to.octets());
        assert_eq!(headers.len(), IPV6_LEN);
        for (_, bytes) in &extensions {
            let number = next();
            headers.extend(bytes.iter().enumerate().map(|(at, byte)| if at == 0 { number } else { *byte }));
        }
        headers
    }

    /// The extension headers, including the fragment header of a fragment.
    fn ipv6_extensions(&self) -> Vec<(u8, Vec<u8>)> {
        let mut extensions = self.extensions.clone();
        if self.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
            let offset = (self.fragment & FRAGMENT_OFFSET) << 3;
            let more = u16::from(self.fragment & MORE_FRAGMENTS != 0);
            extensions.push((FRAGMENT_HEADER, fragment_header(offset | more, self.id)));
        }
        extensions
    }

    fn transport(&self) -> Vec<u8> {
        match self.transport {
            Transport::Udp => self.udp_header(),
            Transport::Icmp(icmp) => self.icmp_header(icmp),
            Transport::Nothing => Vec::new(),
        }
    }

    fn udp_header(&self) -> Vec<u8> {
        let true_len = u16::try_from(UDP_LEN + self.payload.len()).expect("a test frame");
        let len = self.udp_len.unwrap_or(true_len);
        let ports = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        let pseudo_header = self.pseudo_header(self.protocol.unwrap_or(UDP), len.into());
        let sum =
            pseudo_header.clone().add_slice(&ports).add_2bytes(len.to_be_bytes()).add_slice(&self.payload);
        let checksum = match self.udp_checksum {
            UdpChecksum::Right => sum.to_ones_complement_with_no_zero(),
            UdpChecksum::None => 0,
            UdpChecksum::Partial => !pseudo_header.ones_complement(),
            UdpChecksum::Exactly(checksum) => checksum.to_be(),
            UdpChecksum::OffBy(summand) => {
                sum.add_2bytes((!summand).to_be_bytes()).to_ones_complement_with_no_zero()
            }
        };
        [&ports[..], &len.to_be_bytes(), &checksum.to_ne_bytes()].concat()
    }

    fn icmp_header(&self, Icmp { kind, code, rest }: Icmp) -> Vec<u8> {
        let sum = match self.family() {
            Family::V4 => Sum16BitWords::new(),
            Family::V6 => {
                let len = ICMP_LEN + self.payload.len();
                self.pseudo_header(super::ICMPV6, u32::try_from(len).expect("a test frame"))
            }
        };
        let sum = sum.add_2bytes([kind, code]).add_4bytes(rest).add_slice(&self.payload);
        [&[kind, code][..], &sum.ones_complement().to_ne_bytes(), &rest].concat()
    }

    /// RFC 768, RFC 8200 §8.1.
    fn pseudo_header(&self, protocol: u8, len: u32) -> Sum16BitWords {
        let sum = Sum16BitWords::new().add_2bytes([0, protocol]).add_4bytes(len.to_be_bytes());
        [self.from.ip(), self.to.ip()].into_iter().fold(sum, |mut sum, address| match address {
            IpAddr::V4(v4) => sum.add_4bytes(v4.octets()),
            IpAddr::V6(v6) => sum.add_16bytes(v6.octets()),
        })
    }
}

/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;

/// A fragment header of IPv6 (RFC 8200 §4.5). 0: that of an atomic fragment.
pub fn fragment_header(offset_and_flags: u16, id: u16) -> Vec<u8> {
    let mut header = vec![0, 0];
    header.extend(offset_and_flags.to_be_bytes());
    header.extend(u32::from(id).to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;

    /// Verified with etherparse's own parser.
    #[test]
    fn default_packets_are_valid() {
        for family in Family::BOTH {
            for tags in 0..3 {
                let packet = Packet::default().over(family).tagged(tags);
                let frame = packet.bytes();
                let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
                assert_eq!(sliced.link_exts.len(), usize::from(tags));
                let net = sliced.net.as_ref().unwrap();
                let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("{sliced:?}") };
                let (header, payload) = (udp.to_header(), udp.payload());
                let expected = match family {
                    Family::V4 => {
                        let ip = net.ipv4_ref().unwrap().header().to_header();
                        assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
                        header.calc_checksum_ipv4(&ip, payload)
                    }
                    Family::V6 => {
                        let ip = net.ipv6_ref().unwrap().header().to_header();
                        header.calc_checksum_ipv6(&ip, payload)
                    }
                };
                assert_eq!(udp.checksum(), expected.unwrap());
                assert_eq!(payload, packet.payload);
                assert_eq!(frame[packet.payload_offset()..], packet.payload);
            }
        }
    }

    #[test]
    fn icmp_errors_are_valid() {
        for family in Family::BOTH {
            let quoted = Packet::default().over(family).ip_packet();
            let message = Icmp { kind: 3, code: 4, rest: [0, 0, 5, 0] };
            let packet = Packet::icmp_error(message, &quoted, 576).over(family);
            let frame = packet.bytes();
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            match sliced.transport {
                Some(TransportSlice::Icmpv4(icmp)) => {
                    let expected = icmp.header().icmp_type.calc_checksum(icmp.payload());
                    assert_eq!(icmp.checksum(), expected);
                    assert_eq!(icmp.payload(), quoted);
                }
                Some(TransportSlice::Icmpv6(icmp)) => {
                    let (IpAddr::V6(from), IpAddr::V6(to)) = (packet.from.ip(), packet.to.ip()) else {
                        panic!("{packet:?}");
                    };
                    assert!(icmp.is_checksum_valid(from.octets(), to.octets()));
                    assert_eq!(icmp.payload()[..], quoted[..]);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn extension_headers_announce_what_follows() {
        let packet = Packet {
            extensions: vec![(0, vec![9, 0, 1, 4, 0, 0, 0, 0])],
            fragment: MORE_FRAGMENTS | 3,
            ..Packet::default().over(Family::V6)
        };
        let ip = packet.ip_packet();
        assert_eq!((ip[6], ip[40], ip[48]), (0, FRAGMENT_HEADER, UDP));
        assert_eq!(ip[40..56], [44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 25, 0, 0, 0xbe, 0xef]);
        assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), ip.len() - IPV6_LEN);
        assert_eq!(packet.payload_offset(), ETHERNET_LEN + 64);
    }

    #[test]
    fn encapsulated_packets_are_valid() {
        for family in Family::BOTH {
            for outer in [family, Family::V6] {
                let inner = Packet::default().over(family).hop();
                let (from, to) = (outer_address(outer, 1), outer_address(outer, 2));
                let frame = inner.inside_ip(from, to).bytes();
                let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
                assert_eq!(sliced.net.unwrap().ip_payload_ref().unwrap().payload, inner.ip_packet());
                let frame = inner.inside_udp(from, 0xc001, to).bytes();
                let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("{sliced:?}") };
                assert_eq!((udp.source_port(), udp.destination_port()), (0xc001, 6080));
                assert_eq!(udp.payload(), inner.ip_packet());
                assert_eq!(udp.checksum() == 0, outer == Family::V4);
            }
        }
    }

    fn outer_address(family: Family, last: u8) -> IpAddr {
        family.twin(IpAddr::from([10, 0, 0, last]))
    }
}
