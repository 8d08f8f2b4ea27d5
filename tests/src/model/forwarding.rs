//! The packet that a backend must receive: with or without its token, in the form of its forwarding mode.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::{
    backend::{Backend, TAGS_KEPT},
    balance,
    service::{FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_NAT, Service},
};

use crate::model::{
    fixture::LOOPBACK,
    packet::{Family, Packet},
};

/// The first source port of GUE: the hash of the session fills the lower 14 bits.
const GUE_SOURCE_PORTS: u16 = 0xc000;

/// The packet that leaves for a backend. For `nat`, `node_port` is the port that replaces the client's.
pub fn leaving(
    packet: &Packet,
    service: &Service,
    backend: &Backend,
    session: u64,
    node_port: Option<u16>,
) -> Packet {
    let packet = &packet.clone().completed();
    let spread = balance::spread(session);
    let (source, destination) = (source(backend, spread), address(backend.address_be));
    let mut sent = match service.forward {
        FORWARD_L2 => packet.clone(),
        FORWARD_IPIP => packet.clone().hop().inside_ip(source, destination),
        FORWARD_GUE => {
            let source_port = GUE_SOURCE_PORTS | spread as u16 & !GUE_SOURCE_PORTS;
            packet.clone().hop().inside_udp(source, source_port, destination)
        }
        FORWARD_NAT => Packet {
            from: SocketAddr::new(source, node_port.expect("a translated packet's port")),
            to: SocketAddr::new(destination, u16::from_be(backend.port_be)),
            ..packet.clone().hop()
        },
        other => panic!("no backend gets anything by forward = {other}"),
    };
    if matches!(service.forward, FORWARD_IPIP | FORWARD_GUE) && sent.family() == Family::V6 {
        sent.flow_label = spread & 0xf_ffff;
    }
    let Backend { destination_mac, source_mac, .. } = *backend;
    Packet { destination_mac, source_mac, tags: tags(packet, backend), ..sent }
}

/// The bytes of the outer headers.
pub fn outer_len(service: &Service, backend: &Backend) -> usize {
    let ip = if backend.v6 == 0 { Family::V4 } else { Family::V6 }.header_len();
    match service.forward {
        FORWARD_IPIP => ip,
        FORWARD_GUE => ip + crate::model::packet::UDP_LEN,
        _ => 0,
    }
}

fn tags(packet: &Packet, backend: &Backend) -> Vec<(u16, u16)> {
    match backend.tag_count {
        TAGS_KEPT if backend.ifindex == LOOPBACK => packet.tags.clone(),
        TAGS_KEPT => Vec::new(),
        count => {
            let tags = backend.tags.iter().take(count.into());
            tags.map(|tag| (u16::from_be(tag.identifier_be), u16::from_be(tag.control_be))).collect()
        }
    }
}

/// The outer source address: the hash of the session fills its free bits.
fn source(backend: &Backend, spread: u32) -> IpAddr {
    let [a, b, c, d] = backend.source_be;
    address([a, b, c, d | spread & backend.spread_be])
}

/// Converts an address from its form in maps.
pub fn address(words: [u32; 4]) -> IpAddr {
    let octets: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let octets = <[u8; 16]>::try_from(octets).expect("four words");
    Ipv6Addr::from(octets).to_canonical()
}
