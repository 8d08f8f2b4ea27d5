//! All forwarding modes: the exact bytes sent, for each family, checksum, tag and interface.

use anyhow::Result;
use lb_common::{
    backend::{Backend, TAGS_KEPT, Tag},
    reason::Reason,
    service::{FLAG_OBSERVE, FLAG_STRIP, FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_LOCAL, Service},
};
use lb_tests::model::{
    case::{Case, check_all},
    fixture::{self, Fixture, OTHER_INTERFACE, SESSION},
    forwarding,
    packet::{Family, Packet, TAG_8021AD, TAG_8021Q, UdpChecksum},
    program::Program,
};

use crate::matrix::case_groups;

/// Mode, its name, and the families of service and backend.
pub const MODES: [(u8, &str, Family, Family); 8] = [
    (FORWARD_L2, "l2", Family::V4, Family::V4),
    (FORWARD_L2, "l2", Family::V6, Family::V6),
    (FORWARD_IPIP, "ipip", Family::V4, Family::V4),
    (FORWARD_IPIP, "ipip", Family::V6, Family::V6),
    (FORWARD_IPIP, "ipip to an IPv6 backend", Family::V4, Family::V6),
    (FORWARD_GUE, "gue", Family::V4, Family::V4),
    (FORWARD_GUE, "gue", Family::V6, Family::V6),
    (FORWARD_GUE, "gue to an IPv6 backend", Family::V4, Family::V6),
];
/// The modes that encapsulate.
const TUNNELS: std::ops::Range<usize> = 2..MODES.len();

/// A property of one in 65,536 correct checksums.
pub const AS_IF_PARTIAL: &str = "a right UDP checksum that equals the sum of its pseudo-header";

/// Flags of a service, by their effect on the token.
pub const FLAGS: [(u8, &str); 2] = [(FLAG_STRIP, "stripped"), (0, "unstripped")];

/// The packet is sent to the fixture's backend.
fn sent(name: impl Into<String>, fixture: Fixture, packet: &Packet) -> Case {
    let (service, backend) = (fixture.services[0].1, fixture.backends[0]);
    let inner = if service.strips() { packet.clone().stripped() } else { packet.clone() };
    let sent = forwarding::leaving(&inner, &service, &backend, SESSION, None);
    Case::sent(name, fixture, packet, &sent, &backend, Reason::Forwarded)
}

case_groups! {
    checksums: "Checksums, by forwarding mode" => checksum_cases();
    partial_checksums_in_generic_mode: "Partial checksums, on an interface in generic mode" => generic_cases();
    what_outer_headers_copy: "Fields that outer headers copy" => copied_cases();
    tags: "VLAN tags and interfaces" => tag_cases();
    refused: "Packets that no forwarding mode accepts" => refused_cases();
}

fn checksum_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (forward, mode, family, backend) in MODES {
        for (flags, strip) in FLAGS {
            for (checksum, udp_checksum) in [
                ("a right", UdpChecksum::Right),
                ("no", UdpChecksum::None),
                ("a wrong", UdpChecksum::OffBy(0x1234)),
                ("a partial", UdpChecksum::Partial),
            ] {
                if family == Family::V6 && udp_checksum == UdpChecksum::None {
                    continue;
                }
                let packet = Packet { udp_checksum, ..Packet::default().over(family) };
                let fixture = fixture::sending(forward, flags, fixture::backend_at(1, backend));
                cases.push(sent(format!("{checksum} UDP checksum, {strip}: {mode}"), fixture, &packet));
            }
            let packet = Packet::default().over(family).as_if_partial();
            let fixture = fixture::sending(forward, flags, fixture::backend_at(1, backend));
            cases.push(sent(format!("{AS_IF_PARTIAL}, {strip}: {mode}"), fixture, &packet));
        }
    }
    assert_eq!(cases.len(), 2 * (5 * 5 + 3 * 4));
    cases
}

/// Packets that leave the host are refused, in observe mode too; for this host's stack, a changed packet gets a
/// computed checksum.
fn generic_cases() -> Vec<Case> {
    let packet = |family| Packet { udp_checksum: UdpChecksum::Partial, ..Packet::default().over(family) };
    let mut cases = Vec::new();
    for (forward, mode, family, backend) in MODES {
        for (flags, strip) in FLAGS {
            let fixture = fixture::sending(forward, flags, fixture::backend_at(1, backend)).in_generic_mode();
            let name = |what: &str| format!("{what}, {strip}: {mode}");
            let right = Packet::default().over(family);
            cases.push(sent(name("a right UDP checksum"), fixture.clone(), &right));
            cases.push(sent(name(AS_IF_PARTIAL), fixture.clone(), &right.as_if_partial()));
            let partial = packet(family);
            cases.push(Case::refused(
                name("a partial UDP checksum"),
                fixture,
                &partial,
                Reason::PartialChecksum,
            ));
        }
        let junk = Packet { payload: vec![1; 33], ..packet(family) };
        let observing = fixture::sending(forward, FLAG_OBSERVE, fixture::backend_at(1, backend));
        let name = format!("observed, a partial UDP checksum: {mode}");
        cases.push(Case::refused(name, observing.in_generic_mode(), &junk, Reason::PartialChecksum));
    }
    for family in Family::BOTH {
        for (flags, strip) in FLAGS {
            let local = fixture::sending(FORWARD_LOCAL, flags, fixture::backend(1)).in_generic_mode();
            let partial = packet(family);
            let delivered = if flags == 0 { partial.clone() } else { partial.clone().completed().stripped() };
            let name = format!("a partial UDP checksum, {strip}: local");
            cases.push(Case::local(name, local, &partial, &delivered, Reason::Forwarded));
        }
    }
    cases
}

/// Frames with no, one and two tags, to backends that keep tags or have no, one or two tags, through the same or
/// another interface.
fn tag_cases() -> Vec<Case> {
    let tag = |identifier: u16, control: u16| Tag {
        identifier_be: identifier.to_be(),
        control_be: control.to_be(),
    };
    let (outer, inner) = (tag(TAG_8021AD, 3000), tag(TAG_8021Q, 0x6005));
    let none = Tag::default();
    let exits = [
        ("the same interface", fixture::LOOPBACK, TAGS_KEPT, [none, none]),
        ("the same interface untagged", fixture::LOOPBACK, 0, [none, none]),
        ("the same interface with a tag", fixture::LOOPBACK, 1, [inner, none]),
        ("the same interface with two tags", fixture::LOOPBACK, 2, [outer, inner]),
        ("another interface", OTHER_INTERFACE, TAGS_KEPT, [none, none]),
        ("another interface with a tag", OTHER_INTERFACE, 1, [inner, none]),
        ("another interface with two tags", OTHER_INTERFACE, 2, [outer, inner]),
    ];
    let mut cases = Vec::new();
    for (forward, mode, family, backend_family) in MODES {
        for (flags, strip) in FLAGS {
            for tag_count in 0..=2 {
                for (to, ifindex, kept, tags) in exits {
                    let backend =
                        Backend { ifindex, tag_count: kept, tags, ..fixture::backend_at(2, backend_family) };
                    let fixture = fixture::sending(forward, flags, backend);
                    let name = format!("{tag_count} tags, {strip}, to {to}: {mode}");
                    cases.push(sent(name, fixture, &Packet::default().over(family).tagged(tag_count)));
                }
            }
        }
    }
    cases
}

/// Fields that outer headers copy, and fields that they do not.
fn copied_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (forward, mode, family, backend) in &MODES[TUNNELS] {
        let mut add = |name: &str, packet: Packet| {
            let fixture = fixture::sending(*forward, FLAG_STRIP, fixture::backend_at(3, *backend));
            cases.push(sent(format!("{name}: {mode}"), fixture, &packet.over(*family)));
        };
        for ecn in 0..4 {
            add(&format!("ECN {ecn}"), Packet { traffic_class: 0x48 | ecn, ..Packet::default() });
        }
        add("traffic class 0", Packet { traffic_class: 0, ..Packet::default() });
        add("hop limit 255", Packet { ttl: 255, ..Packet::default() });
        add("hop limit 2", Packet { ttl: 2, ..Packet::default() });
        add("may be fragmented", Packet { fragment: 0, ..Packet::default() });
        add("padding", Packet { padding: vec![0xee; 7], ..Packet::default() });
        add("a wrong IP checksum", Packet { ip_checksum_off_by: 9, ..Packet::default() });
        add("no data", Packet::with_payload(fixture::token().to_bytes().to_vec()));
        let odd = [&fixture::token().to_bytes()[..], &[0xd7; 1201]].concat();
        add("much data", Packet::with_payload(odd));
    }
    cases
}

fn refused_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut refused = |name: String, fixture: Fixture, packet: &Packet, reason| {
        cases.push(Case::refused(name, fixture, packet, reason));
    };
    for (forward, mode, family, backend) in &MODES[TUNNELS] {
        let backend = fixture::backend_at(1, *backend);
        for ttl in [0, 1] {
            let packet = Packet { ttl, ..Packet::default().over(*family) };
            let fixture = fixture::sending(*forward, FLAG_STRIP, backend);
            refused(format!("hop limit {ttl}: {mode}"), fixture, &packet, Reason::HopLimit);
        }
    }
    for (forward, mode, family, backend) in MODES {
        let nowhere = Backend { ifindex: OTHER_INTERFACE + 1, ..fixture::backend_at(1, backend) };
        let fixture = fixture::sending(forward, FLAG_STRIP, nowhere);
        let packet = Packet::default().over(family);
        let name = format!("to an interface that nothing may be sent out of: {mode}");
        refused(name, fixture, &packet, Reason::NoBackend);
    }
    for (forward, mode) in [(FORWARD_IPIP, "ipip"), (FORWARD_GUE, "gue")] {
        let fixture = fixture::sending(forward, FLAG_STRIP, fixture::backend_at(1, Family::V4));
        let packet = Packet::default().over(Family::V6);
        refused(format!("IPv6 to an IPv4 backend: {mode}"), fixture, &packet, Reason::NoBackend);
    }
    let newer = Fixture::with_service(Service { forward: 200, ..fixture::service() });
    refused(
        "a forwarding mode that the program does not know".into(),
        newer,
        &Packet::default(),
        Reason::NoBackend,
    );
    cases
}

/// Outer source addresses and GUE source ports vary between sessions, and are constant for each session.
#[test]
fn sources_spread() -> Result<()> {
    let mut cases = Vec::new();
    let mut outer = std::collections::BTreeSet::new();
    for (forward, mode, family, backend) in &MODES[TUNNELS] {
        let backend = Backend { spread_be: 0x3ff_u32.to_be(), ..fixture::backend_at(1, *backend) };
        // The bits that the hash fills are zero.
        let mut source_be = backend.source_be;
        source_be[3] &= !backend.spread_be;
        let fixture = fixture::sending(*forward, 0, Backend { source_be, ..backend });
        for session in 0..100 {
            let packet = Packet::with_token(&fixture::token_number(session)).over(*family);
            let service = fixture.services[0].1;
            let sent = forwarding::leaving(&packet, &service, &fixture.backends[0], session, None);
            outer.insert((mode, sent.from.ip()));
            let name = format!("{mode}, session {session}");
            cases.push(Case::sent(
                name,
                fixture.clone(),
                &packet,
                &sent,
                &fixture.backends[0],
                Reason::Forwarded,
            ));
        }
    }
    assert!(outer.len() > 6 * 80, "{} sources of 600 sessions", outer.len());
    check_all(&mut Program::load()?, &cases)
}

/// Every length up to the MTU passes.
#[test]
fn up_to_the_mtu() -> Result<()> {
    let mut cases = Vec::new();
    for (forward, mode, family, backend) in MODES {
        for (flags, strip) in FLAGS {
            let backend = Backend { ifindex: OTHER_INTERFACE, mtu: 400, ..fixture::backend_at(1, backend) };
            let fixture = fixture::sending(forward, flags, backend);
            let (service, token) = (fixture.services[0].1, fixture::token().to_bytes());
            for len in 0.. {
                let packet = Packet::with_payload([&token[..], &vec![0xd7; len]].concat()).over(family);
                let inner = if service.strips() { packet.clone().stripped() } else { packet.clone() };
                if inner.ip_packet().len() + forwarding::outer_len(&service, &backend) > 400 {
                    break;
                }
                cases.push(sent(format!("{mode}, {strip}, {len} bytes of data"), fixture.clone(), &packet));
            }
        }
    }
    assert!(cases.len() > 16 * 200, "{} lengths", cases.len());
    check_all(&mut Program::load()?, &cases)
}
