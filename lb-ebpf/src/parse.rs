//! Step 1: Ethernet, VLAN tags, IP, UDP. No length is used before it has been compared with the frame.

mod extensions;

use lb_common::{
    reason::{Reason, ReasonCode},
    service::ServiceKey,
    session::Seen,
    token::Source,
};
use network_types::{eth::EthHdr, vlan::VlanHdr};

use self::extensions::Behind;
use crate::{
    headers::{Address, Ip, Ipv4, Ipv6, Udp, v4_mapped},
    packet::{Cursor, Frame},
    run::Run,
    verifier::{IP_AT_MASK, PAYLOAD_AT_MASK},
    wire::{FRAGMENT_OFFSET, IPV4_IHL, MORE_FRAGMENTS, is_vlan_tag, protocol},
};

/// A UDP packet that may be for a service.
pub struct Packet {
    /// The address and port that it is sent to.
    pub to: ServiceKey,
    /// Its sender; the port is 0 if it cannot be read.
    pub from: Source,
    /// Its IP header.
    pub ip: Cursor,
    /// Its form.
    form: Form,
}

/// The form of a UDP packet. Services accept whole datagrams.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One whole datagram after a plain IP header.
    Whole,
    /// A fragment.
    Fragment,
    /// It has IP options, extension headers or too many VLAN tags.
    Unsupported,
    /// Its ports cannot be read, or its IP version contradicts its EtherType.
    Malformed,
}

/// A whole UDP datagram in one frame, after at most two VLAN tags and a plain IP header.
#[derive(Clone, Copy)]
pub struct Datagram {
    /// Its IP header.
    pub ip: Cursor,
    /// Bytes of its IP header.
    pub ip_len: u16,
    /// Whether it has a checksum.
    pub has_checksum: bool,
    /// Bytes of its payload. The lengths of IP and UDP agree, and the frame holds all of it.
    pub payload_len: u16,
}

/// The maximum number of VLAN tags of a service's datagram.
const TAGS_MAX: usize = 2;
/// The maximum number of VLAN tags that are parsed. It is greater than [`TAGS_MAX`], so that a service's packet with
/// too many tags is counted as refused for that service.
const TAGS_PARSED: usize = 4;

/// The reason why a frame has no UDP packet.
pub enum NoDatagram {
    /// It cannot be for a service.
    NotOurs,
    /// It has more VLAN tags than are parsed. The kernel removes any number of priority tags (VLAN 0, IEEE 802.1Q-2022
    /// §6.9.1) and delivers the rest. If such frames were passed, they would bypass the filter.
    TooManyVlanTags,
    /// It is an ICMP message after a plain IP header.
    Icmp {
        /// The IP header.
        ip: Cursor,
        /// Whether it is IPv6.
        v6: bool,
    },
}

/// Reads the addresses and ports of a packet.
#[inline(always)]
pub fn packet(run: &mut Run) -> Result<Packet, NoDatagram> {
    let start = run.frame.start();
    let mut ether_type = start.read::<EthHdr>(0).ok_or(NoDatagram::NotOurs)?.ether_type;
    let mut ip = start.skip(EthHdr::LEN);
    let mut tags = 0;
    while is_vlan_tag(ether_type) && tags < TAGS_PARSED {
        ether_type = ip.read::<VlanHdr>(0).ok_or(NoDatagram::NotOurs)?.ether_type;
        ip = ip.skip(VlanHdr::LEN);
        tags += 1;
    }
    if is_vlan_tag(ether_type) {
        return Err(NoDatagram::TooManyVlanTags);
    }
    let ip = run.frame.forget_offset::<IP_AT_MASK>(ip);
    match ether_type {
        Ipv4::ETHER_TYPE => ipv4(ip, tags),
        Ipv6::ETHER_TYPE => ipv6(run, ip, tags),
        _ => Err(NoDatagram::NotOurs),
    }
}

#[inline(always)]
fn ipv4(ip: Cursor, tags: usize) -> Result<Packet, NoDatagram> {
    let header = Ipv4::read(ip).ok_or(NoDatagram::NotOurs)?;
    let (version, ihl) = (header.version_ihl() >> 4, header.version_ihl() & 0xf);
    let plain = (version, ihl) == (4, IPV4_IHL);
    let first = header.fragment() & FRAGMENT_OFFSET == 0;
    let fragment = !first || header.fragment() & MORE_FRAGMENTS != 0;
    if header.protocol() != protocol::UDP {
        let icmp = header.protocol() == protocol::ICMP && plain && !fragment;
        return Err(if icmp { NoDatagram::Icmp { ip, v6: false } } else { NoDatagram::NotOurs });
    }
    let udp = ip.skip(if plain { Ipv4::LEN } else { usize::from(ihl) * 4 });
    let ports = if first && ihl >= IPV4_IHL { udp.read::<[u16; 2]>(0) } else { None };
    let form = if fragment {
        Form::Fragment
    } else if ports.is_none() || version != 4 {
        Form::Malformed
    } else if !plain || tags > TAGS_MAX {
        Form::Unsupported
    } else {
        Form::Whole
    };
    let from = Source { v6: false, address: header.source_be().into(), port: 0 };
    with_ports(ports, form, ip, from, v4_mapped(header.destination_be()))
}

#[inline(always)]
fn ipv6(run: &mut Run, ip: Cursor, tags: usize) -> Result<Packet, NoDatagram> {
    let header = Ipv6::read(ip).ok_or(NoDatagram::NotOurs)?;
    let plain = header.protocol() == protocol::UDP;
    let (ports, mut form) = if plain {
        let ports = ip.read::<[u16; 2]>(Ipv6::LEN);
        (ports, if ports.is_none() { Form::Malformed } else { Form::Whole })
    } else if header.protocol() == protocol::ICMPV6 {
        return Err(NoDatagram::Icmp { ip, v6: true });
    } else if extensions::is_extension(header.protocol()) {
        match extensions::behind(run, ip.skip(Ipv6::LEN), header.protocol()) {
            Behind::Other => return Err(NoDatagram::NotOurs),
            Behind::Datagram { ports } => (Some(ports), Form::Unsupported),
            Behind::Fragment { ports } => (ports, Form::Fragment),
            Behind::Unknown => (None, Form::Unsupported),
        }
    } else {
        return Err(NoDatagram::NotOurs);
    };
    if header.version() != 6 && form == Form::Whole {
        form = Form::Malformed;
    } else if tags > TAGS_MAX && form == Form::Whole {
        form = Form::Unsupported;
    }
    let [[a, b, ..], to] = header.addresses();
    if to == v4_mapped(to[3]) {
        return Err(NoDatagram::NotOurs); // Not valid on the wire. In the table, it belongs to an IPv4 service.
    }
    let from = Source { v6: true, address: u64::from(a) | u64::from(b) << 32, port: 0 };
    with_ports(ports, form, ip, from, to)
}

/// If the ports cannot be read, the address entry of the service table tells whether the packet could bypass the
/// filter.
#[inline(always)]
fn with_ports(
    ports: Option<[u16; 2]>,
    form: Form,
    ip: Cursor,
    from: Source,
    to: Address,
) -> Result<Packet, NoDatagram> {
    if let Some([_, 0]) = ports {
        return Err(NoDatagram::NotOurs); // Port 0 means that the ports cannot be read. No service has port 0.
    }
    let [port, to_port] = ports.unwrap_or_default();
    Ok(Packet { to: ServiceKey::v6(to, to_port), from: Source { port, ..from }, ip, form })
}

impl Packet {
    /// The datagram, if services accept its form and all lengths agree. Bytes after the IP packet are Ethernet padding.
    #[inline(always)]
    pub fn datagram(&self, frame: &Frame) -> Result<Datagram, ReasonCode> {
        match self.form {
            Form::Whole if self.from.v6 => self.measured::<Ipv6>(frame),
            Form::Whole => self.measured::<Ipv4>(frame),
            Form::Fragment => Err(Reason::Fragment.into()),
            Form::Unsupported => Err(Reason::Unsupported.into()),
            Form::Malformed => Err(Reason::Malformed.into()),
        }
    }

    #[inline(always)]
    fn measured<I: Ip>(&self, frame: &Frame) -> Result<Datagram, ReasonCode> {
        let len = I::read(self.ip).ok_or(Reason::Malformed)?.packet_len();
        let udp = Udp::read(self.ip, I::LEN).ok_or(Reason::Malformed)?;
        let headers = (I::LEN + Udp::LEN) as u32;
        if len < headers || !frame.holds(self.ip, len) || u32::from(udp.datagram_len()) != len - I::LEN as u32
        {
            return Err(Reason::Malformed.into());
        }
        // IPv6 has no checksum of its own, so UDP over IPv6 must have one (RFC 8200 §8.1).
        let has_checksum = udp.has_checksum();
        if I::V6 && !has_checksum {
            return Err(Reason::Malformed.into());
        }
        let payload_len = (len - headers) as u16;
        Ok(Datagram { ip: self.ip, ip_len: I::LEN as u16, has_checksum, payload_len })
    }

    /// Whether it is one whole datagram after a plain header. Its lengths have not been compared.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.form == Form::Whole
    }

    /// Whether it is a fragment.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.form == Form::Fragment
    }

    /// Its sender, in one word.
    #[inline(always)]
    pub fn client(&self) -> Seen {
        let low = match self.from.v6 {
            false => 0,
            true => self.ip.read::<u64>(SOURCE_LOW).unwrap_or_default(),
        };
        Seen::client([self.from.address, low], self.from.port)
    }
}

/// The offset of the second half of the source address in an IPv6 header.
const SOURCE_LOW: usize = 16;

impl Datagram {
    /// Its payload.
    #[inline(always)]
    pub fn payload(&self, frame: &Frame) -> Cursor {
        frame.forget_offset::<PAYLOAD_AT_MASK>(self.ip.skip(usize::from(self.ip_len) + Udp::LEN))
    }
}
