//! Step 1: the service of a packet, and whether the packet can be parsed.

mod ipv6;

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{reason::Reason, service::Service};
use lb_tests::model::{
    case::{Case, both},
    fixture::{self, Fixture},
    packet::{
        ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, Family, Icmp, MORE_FRAGMENTS, Packet, TAG_8021AD, TAG_8021Q,
        Transport, UDP_LEN,
    },
};

use crate::matrix::case_groups;

case_groups! {
    not_ours_is_passed_on_untouched: "Packets for no service" => not_ours_cases();
    what_cannot_be_read_is_dropped: "Packets for a service that cannot be parsed safely" => refused_cases();
}

/// Two services at one address: a packet with a port belongs to the service of that port, and one without is counted
/// for the service with the lowest id.
#[test]
fn an_address_has_one_service_for_what_shows_no_port() -> Result<()> {
    let first = Service { id: 7, index: 9, ..fixture::service() };
    for family in Family::BOTH {
        let at = |port| family.twin_at(with_port(port));
        let fixture = Fixture {
            services: vec![(at(fixture::SERVICE.port()), fixture::service()), (at(99), first)],
            ..Fixture::default()
        };
        let of = |service: u32, packet: Packet, reason| {
            let mut case = Case::refused("two services", fixture.clone(), &packet.over(family), reason);
            case.expected.service = service;
            case
        };
        let to_99 = |packet| Packet { to: with_port(99), ..packet };
        let fragment = |fragment| Packet { fragment, ..Packet::default() };
        crate::check_each(&[
            of(fixture::SERVICE_INDEX, Packet::with_payload(vec![]), Reason::NoToken),
            of(9, to_99(Packet::with_payload(vec![])), Reason::NoToken),
            of(9, to_99(Packet::default()), Reason::InactiveKey),
            of(fixture::SERVICE_INDEX, fragment(MORE_FRAGMENTS), Reason::Fragment),
            of(9, to_99(fragment(MORE_FRAGMENTS)), Reason::Fragment),
            of(9, fragment(1), Reason::Fragment),
            of(9, to_99(fragment(1)), Reason::Fragment),
        ])?;
    }
    Ok(())
}

/// Packets for no service.
fn not_ours(family: Family) -> Vec<Case> {
    let pass = |name: &str, packet: Packet| Case::not_ours(name, Fixture::default(), &packet.over(family));
    let elsewhere = SocketAddr::from(([203, 0, 113, 11], fixture::SERVICE.port()));
    let other_port = SocketAddr::new(fixture::SERVICE.ip(), 53);
    vec![
        pass("another address", Packet { to: elsewhere, ..Packet::default() }),
        pass("another port of a service's address", Packet { to: other_port, ..Packet::default() }),
        pass("port 0 of a service's address", Packet { to: with_port(0), ..Packet::default() }),
        pass("TCP", Packet { protocol: Some(6), ..Packet::default() }),
        pass(
            "an echo request",
            Packet { transport: Transport::Icmp(ECHO[family as usize]), ..Packet::default() },
        ),
        pass("a fragment of TCP", Packet { protocol: Some(6), fragment: 7, ..Packet::default() }),
        pass(
            "a first fragment of TCP",
            Packet { protocol: Some(6), fragment: MORE_FRAGMENTS, ..Packet::default() },
        ),
        pass("ARP", Packet { ether_type: Some(0x0806), ..Packet::default() }),
        pass(
            "the other family by its EtherType",
            Packet { ether_type: Some(OTHER_TYPE[family as usize]), ..Packet::default() },
        ),
        pass("an LLC frame", Packet { ether_type: Some(0x0040), ..Packet::default() }),
        pass("under a QinQ tag of the old kind", Packet { tags: vec![(0x9100, 1)], ..Packet::default() }),
        pass(
            "another port, lengths that contradict each other",
            Packet { to: other_port, udp_len: Some(3), ..Packet::default() },
        ),
        pass(
            "another port, first fragment",
            Packet { to: other_port, fragment: MORE_FRAGMENTS, ..Packet::default() },
        ),
        pass("another address, fragment", Packet { to: elsewhere, fragment: 5, ..Packet::default() }),
        pass("no services", Packet::default())
            .with_fixture(Fixture { services: vec![], ..Fixture::default() }),
    ]
}

/// Echo requests of both families.
const ECHO: [Icmp; 2] =
    [Icmp { kind: 8, code: 0, rest: [0, 1, 0, 2] }, Icmp { kind: 128, code: 0, rest: [0, 1, 0, 2] }];
const OTHER_VERSION: [u8; 2] = [6, 4];
const OTHER_TYPE: [u16; 2] = [ETHER_TYPE_IPV6, ETHER_TYPE_IPV4];

/// Packets to a service that the service cannot accept.
fn refused(family: Family) -> Vec<Case> {
    let drop = |name: &str, packet: Packet, reason| {
        Case::refused(name, Fixture::default(), &packet.over(family), reason)
    };
    let to_53 = |packet| Packet { to: with_port(53), ..packet };
    let whole = u16::try_from(UDP_LEN + Packet::default().payload.len()).expect("small");
    let lengths = |ip_len, udp_len| Packet { ip_len, udp_len, ..Packet::default() };
    let fragment = |fragment| Packet { fragment, ..Packet::default() };
    // With more tags than the program parses, the service is unknown; the kernel removes any number of VLAN 0 tags.
    let buried = |name: &str, tags| {
        let mut case = drop(name, Packet { tags, ..Packet::default() }, Reason::Unsupported);
        case.expected.service = 0;
        case
    };
    vec![
        buried("five priority tags", vec![(TAG_8021Q, 0); 5]),
        buried("six VLAN tags", vec![(TAG_8021Q, 1); 6]),
        buried("twelve priority tags of a provider", vec![(TAG_8021AD, 0); 12]),
        drop("first fragment", fragment(MORE_FRAGMENTS), Reason::Fragment),
        drop("middle fragment", fragment(MORE_FRAGMENTS | 1), Reason::Fragment),
        drop("last fragment", fragment(0x1fff), Reason::Fragment),
        drop("last fragment, of any port", to_53(fragment(185)), Reason::Fragment),
        drop("a fragment of one byte", Packet { ip_len: Some(1), ..fragment(7) }, Reason::Fragment),
        drop("a fragment under two tags", fragment(7).tagged(2), Reason::Fragment),
        drop("a fragment under three tags", fragment(7).tagged(3), Reason::Fragment),
        drop("three VLAN tags", Packet::default().tagged(3), Reason::Unsupported),
        drop("four VLAN tags", Packet::default().tagged(4), Reason::Unsupported),
        drop(
            "the other family's IP version behind the EtherType",
            Packet { version: Some(OTHER_VERSION[family as usize]), ..Packet::default() },
            Reason::Malformed,
        ),
        drop("IP version 0", Packet { version: Some(0), ..Packet::default() }, Reason::Malformed),
        drop("an IP packet of its header alone", lengths(Some(0), None), Reason::Malformed),
        drop("an IP packet of its header and seven bytes", lengths(Some(7), Some(7)), Reason::Malformed),
        drop(
            "IP length one beyond the frame",
            lengths(Some(i32::from(whole) + 1), Some(whole + 1)),
            Reason::Malformed,
        ),
        drop(
            "IP length far beyond the frame",
            lengths(Some(i32::from(u16::MAX) - 20), Some(u16::MAX - 20)),
            Reason::Malformed,
        ),
        drop("UDP length 0", lengths(None, Some(0)), Reason::Malformed),
        drop("UDP length 7", lengths(None, Some(7)), Reason::Malformed),
        drop("UDP length one less than IP's", lengths(None, Some(whole - 1)), Reason::Malformed),
        drop("UDP length one more than IP's", lengths(None, Some(whole + 1)), Reason::Malformed),
        drop(
            "UDP length beyond IP's, in padding",
            Packet { udp_len: Some(whole + 8), padding: vec![0; 8], ..Packet::default() },
            Reason::Malformed,
        ),
    ]
}

/// Cases of IPv4 only.
fn refused_ipv4() -> Vec<Case> {
    let drop = |name: &str, packet: Packet, reason| Case::refused(name, Fixture::default(), &packet, reason);
    let to_53 = |packet| Packet { to: with_port(53), ..packet };
    let options = |words: usize| Packet { options: vec![1; 4 * words], ..Packet::default() };
    let short = |payload: &[u8]| Packet::with_payload(payload.to_vec());
    let ihl = |ihl| Packet { ihl: Some(ihl), ..Packet::default() };
    vec![
        drop(
            "a fragment with options",
            Packet { options: vec![1; 4], fragment: 7, ..Packet::default() },
            Reason::Fragment,
        ),
        drop("one word of options", options(1), Reason::Unsupported),
        drop("ten words of options", options(10), Reason::Unsupported),
        drop("options under a tag", options(2).tagged(1), Reason::Unsupported),
        drop("an IP header of no words", ihl(0), Reason::Malformed),
        drop("an IP header of four words", ihl(4), Reason::Malformed),
        drop("an IP header of four words, of any port", to_53(ihl(4)), Reason::Malformed),
        drop(
            "options that reach beyond the frame",
            Packet { ihl: Some(15), ip_len: Some(40), ..short(&[0; 20]) },
            Reason::Malformed,
        ),
        drop(
            "IP version 6 behind IPv4's EtherType",
            Packet { version: Some(6), ..Packet::default() },
            Reason::Malformed,
        ),
        drop("IP length 0", Packet { ip_len: Some(-20), ..Packet::default() }, Reason::Malformed),
    ]
}

fn with_port(port: u16) -> SocketAddr {
    SocketAddr::new(fixture::SERVICE.ip(), port)
}

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    [not_ours_cases(), refused_cases()].concat()
}

fn not_ours_cases() -> Vec<Case> {
    [both(not_ours), ipv6::not_ours()].concat()
}

fn refused_cases() -> Vec<Case> {
    [both(refused), refused_ipv4(), ipv6::refused()].concat()
}
