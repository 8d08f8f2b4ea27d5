//! ICMP errors: the client that they quote, and what the backend of this client receives.

use std::net::SocketAddr;

use lb_common::service::{FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, Service};

use super::parse::{addresses, be16, ip, read_into};
use crate::model::{
    fixture::Fixture,
    packet::{Family, ICMP, ICMPV6, IPV6_LEN, Packet, Transport, UDP, UdpChecksum},
};

/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;

/// The service and the client that an ICMP error in this frame quotes; `None` if it is no error or quotes none.
pub fn quoted(fixture: &Fixture, frame: &[u8]) -> Option<(Service, SocketAddr)> {
    let (family, ip_at, _) = ip(frame)?;
    let header_len = family.header_len();
    let ip = &frame[ip_at..];
    let quoted = ip.get(header_len + ICMP_LEN..).filter(|quoted| quoted.len() >= header_len)?;
    let is_error = match family {
        Family::V4 => {
            let plain = ip[9] == ICMP && ip[0] == 0x45 && be16(ip, 6)? & 0x3fff == 0;
            plain && [3, 11, 12].contains(&ip[header_len])
        }
        Family::V6 => ip[6] == ICMPV6 && (1..=4).contains(&ip[header_len]),
    };
    let quotes_udp = match family {
        Family::V4 => quoted[9] == UDP && quoted[0] == 0x45 && be16(quoted, 6)? & 0x1fff == 0,
        Family::V6 => quoted[6] == UDP,
    };
    let ([_, to], [from, client]) = (addresses(family, ip), addresses(family, quoted));
    if !is_error || !quotes_udp || from != to {
        return None;
    }
    let from = SocketAddr::new(from, be16(quoted, header_len)?);
    let client = SocketAddr::new(client, be16(quoted, header_len + 2)?);
    let (_, service) = fixture.services.iter().find(|(at, _)| *at == from)?;
    let answers = [FORWARD_L2, FORWARD_IPIP, FORWARD_GUE].contains(&service.forward);
    answers.then_some((*service, client))
}

/// The whole message as fields, with its ICMP header as payload; `None` if the frame is shorter than the message.
pub fn message(frame: &[u8]) -> Option<Packet> {
    let (family, ip_at, _) = ip(frame)?;
    let ip = &frame[ip_at..];
    let len = match family {
        Family::V4 => usize::from(be16(ip, 2)?),
        Family::V6 => usize::from(be16(ip, 4)?) + IPV6_LEN,
    };
    let payload = ip.get(family.header_len()..len)?;
    let [from, to] = addresses(family, ip);
    let mut packet = Packet {
        from: SocketAddr::new(from, 0),
        to: SocketAddr::new(to, 0),
        transport: Transport::Nothing,
        protocol: Some(family.icmp()),
        // An outer UDP header then has no checksum either, because the program does not verify the inner one.
        udp_checksum: UdpChecksum::None,
        padding: ip[len..].to_vec(),
        ..Packet::with_payload(payload.to_vec())
    };
    read_into(&mut packet, frame, ip_at);
    Some(packet)
}
