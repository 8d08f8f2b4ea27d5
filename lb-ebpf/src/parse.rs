//! Step 1: Ethernet, VLAN tags, IPv4, UDP. Lengths are hostile until compared.

use lb_common::{reason::Reason, service::ServiceKey, token::Source};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{IpProto, Ipv4Hdr},
    udp::UdpHdr,
    vlan::VlanHdr,
};

use crate::packet::{Cursor, Frame};

/// A packet that may be for a service.
pub struct Packet {
    /// The service it would be for.
    pub to: ServiceKey,
    /// Its sender; the port is 0 where it cannot be read.
    pub from: Source,
    /// Its IP header.
    ip: Cursor,
    /// Why no service can take it, as far as is known before its lengths are read.
    refused: Option<Reason>,
}

/// A whole UDP datagram in one frame, behind a plain IP header and at most two VLAN tags.
#[derive(Clone, Copy)]
pub struct Datagram {
    /// Its IP header.
    pub ip: Cursor,
    /// Bytes of its payload by IP and UDP lengths, which agree. The frame holds all of them.
    pub payload_len: u16,
}

/// From the IP header to the payload.
const PAYLOAD: usize = Ipv4Hdr::LEN + UdpHdr::LEN;
/// VLAN tags that are understood.
const TAGS_MAX: usize = 2;
/// VLAN tags that are looked through, so that a service's packet under more than two is refused under its own name.
const TAGS_LOOKED_THROUGH: usize = 4;
/// An IP header without options, in 32-bit words.
const IHL_PLAIN: u8 = 5;
/// More fragments (RFC 791 §3.1) among the fragment field's flags.
const MORE_FRAGMENTS: u8 = 1;

/// Why nobody's packet was found in a frame.
pub enum Unread {
    /// It can be no service's.
    NotOurs,
    /// It is under more tags than are looked through. The kernel takes off any number of priority tags (VLAN 0, IEEE
    /// 802.1Q-2022 §6.9.1) and delivers what is below: passed on, they would be a way around the filter.
    Buried,
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
    if ether_type != u16::from(EtherType::Ipv4) {
        return Err(Unread::NotOurs);
    }
    ipv4(ip, tags).ok_or(Unread::NotOurs)
}

/// Customer and service tags (IEEE 802.1Q-2022 §9.5).
#[inline(always)]
fn is_tag(ether_type: u16) -> bool {
    ether_type == u16::from(EtherType::Ieee8021q) || ether_type == u16::from(EtherType::Ieee8021ad)
}

#[inline(always)]
fn ipv4(ip: Cursor, tags: usize) -> Option<Packet> {
    let header = ip.read::<Ipv4Hdr>(0)?;
    if header.proto != u8::from(IpProto::Udp) {
        return None;
    }
    let ihl = header.vihl & 0xf;
    let plain = header.vihl == 4 << 4 | IHL_PLAIN;
    let first = header.frag_offset() == 0;
    let udp = ip.skip(if plain { Ipv4Hdr::LEN } else { usize::from(ihl) * 4 });
    let ports = if first && ihl >= IHL_PLAIN { udp.read::<[u16; 2]>(0) } else { None };
    if let Some([_, 0]) = ports {
        return None; // Port 0 stands for ports that cannot be read, and is no service's.
    }

    let refused = if !first || header.frag_flags() & MORE_FRAGMENTS != 0 {
        Some(Reason::Fragment)
    } else if ports.is_none() || header.vihl >> 4 != 4 {
        Some(Reason::Malformed)
    } else if !plain || tags > TAGS_MAX {
        Some(Reason::Unsupported)
    } else {
        None
    };
    // Without ports, the address entry tells whether the packet was meant to slip past a service.
    let [from_port, to_port] = ports.unwrap_or_default();
    Some(Packet {
        to: ServiceKey::v4(u32::from_ne_bytes(header.dst_addr), to_port),
        from: Source { v6: false, address: u32::from_ne_bytes(header.src_addr).into(), port: from_port },
        ip,
        refused,
    })
}

impl Packet {
    /// The datagram, if all lengths agree. Trailing bytes after it are Ethernet's padding.
    #[inline(always)]
    pub fn datagram(&self) -> Result<Datagram, Reason> {
        if let Some(reason) = self.refused {
            return Err(reason);
        }
        let total_len = self.ip.read::<Ipv4Hdr>(0).ok_or(Reason::Malformed)?.tot_len();
        let udp_len = self.ip.read::<UdpHdr>(Ipv4Hdr::LEN).ok_or(Reason::Malformed)?.len();
        if total_len < PAYLOAD as u16
            || !self.ip.holds(total_len)
            || udp_len != total_len - Ipv4Hdr::LEN as u16
        {
            return Err(Reason::Malformed);
        }
        Ok(Datagram { ip: self.ip, payload_len: total_len - PAYLOAD as u16 })
    }
}

impl Datagram {
    /// Its payload.
    #[inline(always)]
    pub fn payload(&self) -> Cursor {
        self.ip.skip(PAYLOAD)
    }
}
