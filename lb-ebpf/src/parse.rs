//! Step 1: Ethernet, VLAN tags, IP, UDP. Lengths are hostile until compared.

mod extensions;

use lb_common::{reason::Reason, service::ServiceKey, session::Seen, token::Source};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::IpProto,
    vlan::VlanHdr,
};

use self::extensions::Behind;
use crate::{
    headers::{Address, Ip, Ipv4, Ipv6, MORE_FRAGMENTS, Udp, v4_mapped},
    packet::{Cursor, Frame},
};

/// A packet that may be for a service.
pub struct Packet {
    /// The service it would be for.
    pub to: ServiceKey,
    /// Its sender; the port is 0 where it cannot be read.
    pub from: Source,
    /// Its IP header.
    pub ip: Cursor,
    /// Why no service can take it, as far as is known before its lengths are read.
    refused: Option<Reason>,
}

/// A whole UDP datagram in one frame, behind a plain IP header and at most two VLAN tags.
#[derive(Clone, Copy)]
pub struct Datagram {
    /// Its IP header.
    pub ip: Cursor,
    /// Bytes of that.
    pub ip_len: u16,
    /// Whether it has a checksum.
    pub summed: bool,
    /// Bytes of its payload by IP and UDP lengths, which agree. The frame holds all of them.
    pub payload_len: u16,
}

/// VLAN tags that are understood.
const TAGS_MAX: usize = 2;
/// VLAN tags that are looked through, so that a service's packet under more than two is refused under its own name.
const TAGS_LOOKED_THROUGH: usize = 4;
/// Covers where an IP header may begin: behind 14 bytes and four tags.
pub const IP_AT_MASK: usize = 0x1f;
/// Covers where a payload may begin.
pub const PAYLOAD_AT_MASK: usize = 0x7f;
/// An IPv4 header without options, in 32-bit words.
const IHL_PLAIN: u8 = 5;

/// Why no datagram was found in a frame.
pub enum Unread {
    /// It can be no service's.
    NotOurs,
    /// It is under more tags than are looked through. The kernel takes off any number of priority tags (VLAN 0, IEEE
    /// 802.1Q-2022 §6.9.1) and delivers what is below: passed on, they would be a way around the filter.
    Buried,
    /// An ICMP message, whose IP header has no options.
    Icmp {
        /// That header.
        ip: Cursor,
        /// Whether it is IPv6.
        v6: bool,
    },
}

/// Reads what is needed to tell whose packet this is.
#[inline(always)]
pub fn packet(frame: &Frame) -> Result<Packet, Unread> {
    let start = frame.start();
    let mut ether_type = start.read::<EthHdr>(0).ok_or(Unread::NotOurs)?.ether_type;
    let mut ip = start.skip(EthHdr::LEN);
    let mut tags = 0;
    while is_tag(ether_type) && tags < TAGS_LOOKED_THROUGH {
        ether_type = ip.read::<VlanHdr>(0).ok_or(Unread::NotOurs)?.ether_type;
        ip = ip.skip(VlanHdr::LEN);
        tags += 1;
    }
    if is_tag(ether_type) {
        return Err(Unread::Buried);
    }
    let ip = frame.somewhere::<IP_AT_MASK>(ip);
    match ether_type {
        Ipv4::ETHER_TYPE => ipv4(ip, tags),
        Ipv6::ETHER_TYPE => ipv6(frame, ip, tags),
        _ => Err(Unread::NotOurs),
    }
}

/// Customer and service tags (IEEE 802.1Q-2022 §9.5).
#[inline(always)]
fn is_tag(ether_type: u16) -> bool {
    ether_type == u16::from(EtherType::Ieee8021q) || ether_type == u16::from(EtherType::Ieee8021ad)
}

#[inline(always)]
fn ipv4(ip: Cursor, tags: usize) -> Result<Packet, Unread> {
    let header = Ipv4::read(ip).ok_or(Unread::NotOurs)?;
    let (version, ihl) = (header.vihl() >> 4, header.vihl() & 0xf);
    let plain = (version, ihl) == (4, IHL_PLAIN);
    // Flags above it (RFC 791 §3.1).
    let first = header.fragment() & (MORE_FRAGMENTS - 1) == 0;
    let fragment = !first || header.fragment() & MORE_FRAGMENTS != 0;
    if header.protocol() != u8::from(IpProto::Udp) {
        let icmp = header.protocol() == u8::from(IpProto::Icmp) && plain && !fragment;
        return Err(if icmp { Unread::Icmp { ip, v6: false } } else { Unread::NotOurs });
    }
    let udp = ip.skip(if plain { Ipv4::LEN } else { usize::from(ihl) * 4 });
    let ports = if first && ihl >= IHL_PLAIN { udp.read::<[u16; 2]>(0) } else { None };
    let refused = if fragment {
        Some(Reason::Fragment)
    } else if ports.is_none() || version != 4 {
        Some(Reason::Malformed)
    } else if !plain || tags > TAGS_MAX {
        Some(Reason::Unsupported)
    } else {
        None
    };
    let from = Source { v6: false, address: header.source_be().into(), port: 0 };
    with_ports(ports, refused, ip, from, v4_mapped(header.destination_be()))
}

#[inline(always)]
fn ipv6(frame: &Frame, ip: Cursor, tags: usize) -> Result<Packet, Unread> {
    let header = Ipv6::read(ip).ok_or(Unread::NotOurs)?;
    let plain = header.protocol() == u8::from(IpProto::Udp);
    let (ports, mut refused) = if plain {
        let ports = ip.read::<[u16; 2]>(Ipv6::LEN);
        (ports, if ports.is_none() { Some(Reason::Malformed) } else { None })
    } else if header.protocol() == u8::from(IpProto::Ipv6Icmp) {
        return Err(Unread::Icmp { ip, v6: true });
    } else if extensions::is_extension(header.protocol()) {
        match extensions::behind(frame, ip.skip(Ipv6::LEN), header.protocol()) {
            Behind::Other => return Err(Unread::NotOurs),
            Behind::Datagram { ports } => (Some(ports), Some(Reason::Unsupported)),
            Behind::Fragment { ports } => (ports, Some(Reason::Fragment)),
            Behind::Unknown => (None, Some(Reason::Unsupported)),
        }
    } else {
        return Err(Unread::NotOurs);
    };
    if header.version() != 6 && refused.is_none() {
        refused = Some(Reason::Malformed);
    } else if tags > TAGS_MAX && refused.is_none() {
        refused = Some(Reason::Unsupported);
    }
    let [[a, b, ..], to] = header.addresses();
    if to == v4_mapped(to[3]) {
        return Err(Unread::NotOurs); // No such address is on the wire; in the table it is an IPv4 service's.
    }
    let from = Source { v6: true, address: u64::from(a) | u64::from(b) << 32, port: 0 };
    with_ports(ports, refused, ip, from, to)
}

/// Without ports, the address entry of the service table tells whether the packet was meant to slip past a service.
#[inline(always)]
fn with_ports(
    ports: Option<[u16; 2]>,
    refused: Option<Reason>,
    ip: Cursor,
    from: Source,
    to: Address,
) -> Result<Packet, Unread> {
    if let Some([_, 0]) = ports {
        return Err(Unread::NotOurs); // Port 0 stands for ports that cannot be read, and is no service's.
    }
    let [port, to_port] = ports.unwrap_or_default();
    Ok(Packet { to: ServiceKey::v6(to, to_port), from: Source { port, ..from }, ip, refused })
}

impl Packet {
    /// The datagram, if all lengths agree. Trailing bytes after it are Ethernet's padding.
    #[inline(always)]
    pub fn datagram(&self, frame: &Frame) -> Result<Datagram, Reason> {
        match self.refused {
            Some(reason) => Err(reason),
            None if self.from.v6 => self.measured::<Ipv6>(frame),
            None => self.measured::<Ipv4>(frame),
        }
    }

    #[inline(always)]
    fn measured<I: Ip>(&self, frame: &Frame) -> Result<Datagram, Reason> {
        let len = I::read(self.ip).ok_or(Reason::Malformed)?.packet_len();
        let udp = Udp::read(self.ip, I::LEN).ok_or(Reason::Malformed)?;
        let headers = (I::LEN + Udp::LEN) as u32;
        if len < headers || !frame.holds(self.ip, len) || u32::from(udp.datagram_len()) != len - I::LEN as u32
        {
            return Err(Reason::Malformed);
        }
        // IPv6 has no checksum of its own, so that its datagrams must have one (RFC 8200 §8.1).
        let summed = udp.is_summed();
        if I::V6 && !summed {
            return Err(Reason::Malformed);
        }
        Ok(Datagram { ip: self.ip, ip_len: I::LEN as u16, summed, payload_len: (len - headers) as u16 })
    }

    /// Whether it is one whole datagram behind a plain header, as far as is known before its lengths are read.
    #[inline(always)]
    pub const fn is_plain(&self) -> bool {
        self.refused.is_none()
    }

    /// Whether it is a fragment.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.refused == Some(Reason::Fragment)
    }

    /// Its sender, in a word.
    #[inline(always)]
    pub fn seen(&self) -> Seen {
        let low = match self.from.v6 {
            false => 0,
            true => self.ip.read::<u64>(SOURCE_LOW).unwrap_or_default(),
        };
        Seen::client([self.from.address, low], self.from.port)
    }
}

/// Where the second half of the source address is in an IPv6 header.
const SOURCE_LOW: usize = 16;

impl Datagram {
    /// Its payload.
    #[inline(always)]
    pub fn payload(&self, frame: &Frame) -> Cursor {
        frame.somewhere::<PAYLOAD_AT_MASK>(self.ip.skip(usize::from(self.ip_len) + Udp::LEN))
    }
}
