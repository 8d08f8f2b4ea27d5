//! The service of a frame, and the content of the frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{reason::Reason, service::Service};

use crate::model::{
    fixture::Fixture,
    packet::{
        ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHERNET_LEN, FRAGMENT_HEADER, Family, IPV4_LEN, IPV6_LEN, Packet,
        TAG_8021AD, TAG_8021Q, TAG_LEN, UDP, UDP_LEN, UdpChecksum,
    },
};

/// IPv6 extension headers that may precede the transport header: hop-by-hop options, routing, fragment, authentication,
/// destination options, mobility.
const EXTENSIONS: [u8; 6] = [0, 43, FRAGMENT_HEADER, AUTHENTICATION, 60, 135];
const AUTHENTICATION: u8 = 51;
/// Maximum number of extension headers that are parsed.
const EXTENSIONS_LOOKED_THROUGH: usize = 6;

/// A frame with the IP header of a UDP packet, as far as it can be parsed.
pub struct Parsed<'a> {
    frame: &'a [u8],
    ip_at: usize,
    family: Family,
    /// Source and destination port, if this is the start of a datagram and the frame contains them.
    ports: Option<(u16, u16)>,
    /// The reason for a refusal.
    refused: Option<Reason>,
}

/// Whether a frame has more VLAN tags than are parsed.
pub fn is_buried(frame: &[u8]) -> bool {
    (0..5).all(|tags| is_tag(frame, tags))
}

/// Whether a frame has more than this many VLAN tags.
fn is_tag(frame: &[u8], tags: usize) -> bool {
    matches!(be16(frame, ETHERNET_LEN - 2 + TAG_LEN * tags), Some(TAG_8021Q | TAG_8021AD))
}

/// Two bytes of a header.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The position and the family of a complete IP header, and the number of VLAN tags before it.
pub fn ip(frame: &[u8]) -> Option<(Family, usize, usize)> {
    let tags = (0..5).find(|tags| !is_tag(frame, *tags))?;
    let ip_at = ETHERNET_LEN + TAG_LEN * tags;
    let family = match be16(frame, ip_at - 2)? {
        ETHER_TYPE_IPV4 => Family::V4,
        ETHER_TYPE_IPV6 => Family::V6,
        _ => return None,
    };
    (frame.len() >= ip_at + family.header_len()).then_some((family, ip_at, tags))
}

/// Source and destination of an IP header.
pub fn addresses(family: Family, ip: &[u8]) -> [IpAddr; 2] {
    match family {
        Family::V4 => {
            [12, 16].map(|at| Ipv4Addr::from(*ip[at..].first_chunk::<4>().expect("in the header")).into())
        }
        Family::V6 => {
            [8, 24].map(|at| Ipv6Addr::from(*ip[at..].first_chunk::<16>().expect("in the header")).into())
        }
    }
}

/// Reads the L2 header into a packet, and the fields of the IP header except addresses and lengths.
pub fn read_into(packet: &mut Packet, frame: &[u8], ip_at: usize) {
    let word = |at| be16(frame, at).expect("in the frame");
    let ip = &frame[ip_at..];
    packet.destination_mac = *frame.first_chunk().expect("in the frame");
    packet.source_mac = *frame[6..].first_chunk().expect("in the frame");
    packet.tags = (12..ip_at - 2).step_by(TAG_LEN).map(|at| (word(at), word(at + 2))).collect();
    match packet.family() {
        Family::V4 => {
            packet.traffic_class = ip[1];
            packet.id = word(ip_at + 4);
            packet.fragment = word(ip_at + 6);
            packet.ttl = ip[8];
            let right = be16(&packet.ip_packet(), 10).expect("in the header");
            packet.ip_checksum_off_by = difference(word(ip_at + 10), right);
        }
        Family::V6 => {
            let first = u32::from_be_bytes([ip[0], ip[1], ip[2], ip[3]]);
            packet.version = Some(ip[0] >> 4);
            packet.traffic_class = (first >> 20) as u8;
            packet.flow_label = first & 0xf_ffff;
            packet.ttl = ip[7];
        }
    }
}

impl<'a> Parsed<'a> {
    /// `None` if it is for no service.
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let (family, ip_at, tags) = ip(frame)?;
        let mut parsed = Self { frame, ip_at, family, ports: None, refused: None };
        match family {
            Family::V4 => parsed.ipv4()?,
            Family::V6 => parsed.ipv6()?,
        }
        if tags > 2 {
            parsed.refuse(Reason::Unsupported);
        }
        Some(parsed)
    }

    /// The first reason is kept.
    fn refuse(&mut self, reason: Reason) {
        self.refused = self.refused.or(Some(reason));
    }

    fn ip(&self) -> &'a [u8] {
        &self.frame[self.ip_at..]
    }

    fn ports_at(&self, udp: usize) -> Option<(u16, u16)> {
        be16(self.ip(), udp).zip(be16(self.ip(), udp + 2))
    }

    fn ipv4(&mut self) -> Option<()> {
        let ip = self.ip();
        if ip[9] != UDP {
            return None;
        }
        let header_len = usize::from(ip[0] & 0xf) * 4;
        let offset = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff;
        if offset == 0 && header_len >= IPV4_LEN {
            self.ports = self.ports_at(header_len);
        }
        if offset != 0 || ip[6] & 0x20 != 0 {
            self.refuse(Reason::Fragment);
        }
        if self.ports.is_none() || ip[0] >> 4 != 4 {
            self.refuse(Reason::Malformed);
        }
        if header_len != IPV4_LEN {
            self.refuse(Reason::Unsupported);
        }
        Some(())
    }

    fn ipv6(&mut self) -> Option<()> {
        let ip = self.ip();
        if self.destination().to_canonical().is_ipv4() {
            return None; // v4-mapped
        }
        let (mut at, mut next) = (IPV6_LEN, ip[6]);
        let mut fragment = false;
        let mut seen = 0;
        while EXTENSIONS.contains(&next) {
            let Some(&[after, len, high, low]) = ip.get(at..).and_then(|bytes| bytes.first_chunk()) else {
                self.refuse(if fragment { Reason::Fragment } else { Reason::Unsupported });
                return Some(());
            };
            if seen == EXTENSIONS_LOOKED_THROUGH {
                self.refuse(if fragment { Reason::Fragment } else { Reason::Unsupported });
                return Some(());
            }
            seen += 1;
            at += match next {
                FRAGMENT_HEADER => 8,
                AUTHENTICATION => (usize::from(len) + 2) * 4,
                _ => (usize::from(len) + 1) * 8,
            };
            if next == FRAGMENT_HEADER {
                fragment = true;
                if u16::from_be_bytes([high, low]) >> 3 != 0 {
                    // After other extension headers, the content of a later fragment is unknown.
                    self.refuse(Reason::Fragment);
                    return (after == UDP || EXTENSIONS.contains(&after)).then_some(());
                }
            }
            next = after;
        }
        if next != UDP {
            return None;
        }
        self.ports = self.ports_at(at);
        if fragment {
            self.refuse(Reason::Fragment);
        } else if seen > 0 {
            self.refuse(Reason::Unsupported);
        }
        if self.ports.is_none() || ip[0] >> 4 != 6 {
            self.refuse(Reason::Malformed);
        }
        Some(())
    }

    fn destination(&self) -> IpAddr {
        addresses(self.family, self.ip())[1]
    }

    /// Whether it is IPv6.
    pub fn is_v6(&self) -> bool {
        self.family == Family::V6
    }

    /// The service it is for. Without ports, it is the service with the lowest id at this address.
    pub fn service(&self, fixture: &Fixture) -> Option<Service> {
        let to = self.destination();
        let is_for = |at: &SocketAddr| match self.ports {
            Some((_, port)) => *at == SocketAddr::new(to, port),
            None => at.ip() == to,
        };
        let services = fixture.services.iter().filter(|(at, _)| is_for(at)).map(|(_, service)| *service);
        services.min_by_key(|service| service.id)
    }

    /// The payload of a plain datagram whose lengths agree, and its sender.
    pub fn payload(&self) -> Result<(&'a [u8], SocketAddr), Reason> {
        if let Some(reason) = self.refused {
            return Err(reason);
        }
        let (from_port, _) = self.ports.ok_or(Reason::Malformed)?;
        let header_len = self.family.header_len();
        let len = match self.family {
            Family::V4 => usize::from(be16(self.ip(), 2).ok_or(Reason::Malformed)?),
            Family::V6 => usize::from(be16(self.ip(), 4).ok_or(Reason::Malformed)?) + IPV6_LEN,
        };
        let udp_len = be16(self.ip(), header_len + 4).ok_or(Reason::Malformed)?;
        let datagram = self.ip().get(header_len..len).ok_or(Reason::Malformed)?;
        if datagram.len() != usize::from(udp_len) || datagram.len() < UDP_LEN {
            return Err(Reason::Malformed);
        }
        if self.is_v6() && datagram[6..8] == [0, 0] {
            return Err(Reason::Malformed);
        }
        Ok((&datagram[UDP_LEN..], SocketAddr::new(addresses(self.family, self.ip())[0], from_port)))
    }

    /// The whole packet as fields; only for a packet that [`Parsed::payload`] accepts.
    pub fn whole(&self) -> Packet {
        let (payload, from) = self.payload().expect("a datagram");
        let (_, port) = self.ports.expect("a datagram");
        let udp_at = self.ip_at + self.family.header_len();
        let udp_checksum = match be16(self.frame, udp_at + 6) {
            Some(0) | None => UdpChecksum::None,
            Some(field) => UdpChecksum::Exactly(field),
        };
        let mut packet = Packet {
            from,
            to: SocketAddr::new(self.destination(), port),
            udp_checksum,
            padding: self.frame[udp_at + UDP_LEN + payload.len()..].to_vec(),
            ..Packet::with_payload(payload.to_vec())
        };
        read_into(&mut packet, self.frame, self.ip_at);
        let partial = Packet { udp_checksum: UdpChecksum::Partial, ..packet.clone() };
        if partial.udp_checksum_field() == packet.udp_checksum_field() { partial } else { packet }
    }

    /// The packet without its token. The checksum stays correct, wrong by the same difference, or partial.
    pub fn stripped(&self) -> Packet {
        let whole = self.whole();
        let udp_checksum = match whole.udp_checksum {
            UdpChecksum::Exactly(field) => {
                let right = Packet { udp_checksum: UdpChecksum::Right, ..whole.clone() };
                UdpChecksum::OffBy(difference(field, right.udp_checksum_field()))
            }
            other => other,
        };
        Packet { udp_checksum, ..whole }.stripped()
    }
}

/// Subtracts in the arithmetic of RFC 1071, modulo 65535.
fn difference(field: u16, right: u16) -> u16 {
    ((u32::from(field) + 0xffff - u32::from(right)) % 0xffff) as u16
}
