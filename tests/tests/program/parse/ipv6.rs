//! Specific to IPv6: extension headers, and datagrams that must have a checksum.

use lb_common::reason::Reason;
use lb_tests::model::{
    case::Case,
    fixture::{self, Fixture},
    packet::{FRAGMENT_HEADER, Family, Icmp, Packet, Transport, UdpChecksum, fragment_header},
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// An extension header of eight bytes times `units`: options of padding.
fn options(number: u8, units: u8) -> (u8, Vec<u8>) {
    let len = usize::from(units) * 8;
    (number, [&[0, units - 1, 1, (len - 4) as u8][..], &vec![0; len - 4]].concat())
}

/// An authentication header (RFC 4302 §2) with a check value of 12 bytes.
fn authentication() -> (u8, Vec<u8>) {
    (AUTHENTICATION, [&[0, 4, 0, 0][..], &[7; 20]].concat())
}

fn atomic_fragment() -> (u8, Vec<u8>) {
    (FRAGMENT_HEADER, fragment_header(0, 77))
}

fn with(extensions: Vec<(u8, Vec<u8>)>) -> Packet {
    Packet { extensions, ..Packet::default().over(Family::V6) }
}

fn to_53(packet: Packet) -> Packet {
    let mut to = packet.to;
    to.set_port(53);
    Packet { to, ..packet }
}

/// Extension headers before a packet of no service.
pub fn not_ours() -> Vec<Case> {
    let pass = |name: &str, packet: Packet| Case::not_ours(name, Fixture::default(), &packet);
    let hop_by_hop = || with(vec![options(HOP_BY_HOP, 1)]);
    let protocol = |protocol| Packet { protocol: Some(protocol), ..hop_by_hop() };
    let listener_report = Icmp { kind: 143, code: 0, rest: [0, 0, 0, 1] };
    vec![
        pass("hop-by-hop options, another port", to_53(hop_by_hop())),
        pass("hop-by-hop options, TCP", protocol(6)),
        pass("hop-by-hop options, ESP", protocol(ESP)),
        pass("hop-by-hop options, no next header", protocol(NO_NEXT_HEADER)),
        pass(
            "hop-by-hop options, a multicast listener report",
            Packet { transport: Transport::Icmp(listener_report), ..hop_by_hop() },
        ),
        pass("ESP", Packet { protocol: Some(ESP), ..with(vec![]) }),
        pass("no next header", Packet { protocol: Some(NO_NEXT_HEADER), ..with(vec![]) }),
        pass("an atomic fragment, another port", to_53(with(vec![atomic_fragment()]))),
        pass("an atomic fragment of TCP", Packet { protocol: Some(6), ..with(vec![atomic_fragment()]) }),
        pass(
            "a datagram without a checksum, another port",
            to_53(Packet { udp_checksum: UdpChecksum::None, ..with(vec![]) }),
        ),
        pass("six extension headers, another port", to_53(with(vec![options(DESTINATION, 1); 6]))),
    ]
}

/// Packets that no service accepts.
pub fn refused() -> Vec<Case> {
    let drop = |name: &str, packet: Packet, reason| Case::refused(name, Fixture::default(), &packet, reason);
    let unsupported = |name: &str, packet| drop(name, packet, Reason::Unsupported);
    let fragment = |name: &str, packet| drop(name, packet, Reason::Fragment);
    let later = |of| (FRAGMENT_HEADER, [&[of], &fragment_header(8, 77)[1..]].concat());
    let beyond = |number| (number, [0, 200].into_iter().chain([0; 6]).collect::<Vec<u8>>());
    vec![
        unsupported("hop-by-hop options", with(vec![options(HOP_BY_HOP, 1)])),
        unsupported("hop-by-hop options of 24 bytes", with(vec![options(HOP_BY_HOP, 3)])),
        unsupported("a routing header", with(vec![options(ROUTING, 1)])),
        unsupported("destination options", with(vec![options(DESTINATION, 2)])),
        unsupported("an authentication header", with(vec![authentication()])),
        unsupported("a mobility header", with(vec![options(MOBILITY, 1)])),
        unsupported(
            "hop-by-hop and destination options and an authentication header",
            with(vec![options(HOP_BY_HOP, 2), options(DESTINATION, 1), authentication()]),
        ),
        unsupported("extension headers under two tags", with(vec![options(DESTINATION, 1)]).tagged(2)),
        unsupported("extension headers under three tags", with(vec![options(DESTINATION, 1)]).tagged(3)),
        unsupported("six extension headers", with(vec![options(DESTINATION, 1); 6])),
        unsupported("seven extension headers", with(vec![options(DESTINATION, 1); 7])),
        unsupported("seven extension headers, of any port", to_53(with(vec![options(DESTINATION, 1); 7]))),
        unsupported("an extension header that reaches beyond the frame", with(vec![beyond(DESTINATION)])),
        unsupported("the same, of any port", to_53(with(vec![beyond(DESTINATION)]))),
        fragment("an atomic fragment", with(vec![atomic_fragment()])),
        fragment(
            "an atomic fragment behind hop-by-hop options",
            with(vec![options(HOP_BY_HOP, 1), atomic_fragment()]),
        ),
        fragment(
            "an atomic fragment with destination options in it",
            with(vec![atomic_fragment(), options(DESTINATION, 1)]),
        ),
        fragment("a later fragment, of any port", to_53(with(vec![later(17)]))),
        fragment(
            "a later fragment that begins with destination options",
            Packet { protocol: Some(DESTINATION), ..with(vec![later(DESTINATION)]) },
        ),
        drop(
            "a datagram without a checksum",
            Packet { udp_checksum: UdpChecksum::None, ..with(vec![]) },
            Reason::Malformed,
        ),
        drop("a jumbogram's length, 0", Packet { ip_len: Some(0), ..with(vec![]) }, Reason::Malformed),
    ]
}

/// A packet to a service's IPv4 address in IPv4-mapped form is for no service: such packets are not valid on the
/// wire.
#[test]
fn a_mapped_address_is_not_the_services() -> anyhow::Result<()> {
    let std::net::IpAddr::V4(v4) = fixture::SERVICE.ip() else { anyhow::bail!("an IPv4 service") };
    let to = std::net::SocketAddr::new(v4.to_ipv6_mapped().into(), fixture::SERVICE.port());
    let packet = Packet { to, ..Packet::default().over(Family::V6) };
    crate::check_each(&[Case::not_ours("v4-mapped", Fixture::default(), &packet)])
}
