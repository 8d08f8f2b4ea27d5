//! The end of step 1: whether a frame is addressed to the interface that it arrived on (docs/adr/0013).

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    mac::{Mac, MacEntry},
    reason::Reason,
    service::{FLAG_OBSERVE, FORWARD_LOCAL, FORWARD_NAT, Service},
};
use lb_tests::model::{
    case::{Case, both, check_all},
    fixture::{self, BALANCER_MAC, Fixture, LOOPBACK, OTHER_INTERFACE, SERVICE_INDEX, SESSION, accepting},
    forwarding,
    packet::{Family, MORE_FRAGMENTS, Packet},
    program::{Program, Verdict},
};

use crate::{forwarding::MODES, matrix::case_groups};

/// The other balancer of the segment.
const OTHER_BALANCER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// The virtual router 10 of VRRP over IPv4 (RFC 9568 §7.3).
const VIRTUAL_ROUTER: [u8; 6] = [0, 0, 0x5e, 0, 1, 10];
/// Destinations that are not the address of a station, by name.
const GROUPS: [(&str, [u8; 6]); 4] = [
    ("broadcast", [0xff; 6]),
    ("IPv4 multicast", [0x01, 0, 0x5e, 0, 0, 1]),
    ("IPv6 multicast", [0x33, 0x33, 0, 0, 0, 1]),
    ("the own address with the group bit", [0x03, 0, 0, 0, 0, 1]),
];

case_groups! {
    frames_for_another_station_are_not_ours: "Frames for another station" => other_station_cases();
    frames_for_a_group_are_no_services: "Multicast and broadcast frames" => group_cases();
    every_address_of_the_interface_is_its_own: "Frames for each address of the interface" => own_cases();
}

/// Packets of clients and attackers, by name.
fn packets() -> Vec<(&'static str, Packet)> {
    vec![
        ("a valid token", Packet::default()),
        ("no token", Packet::with_payload(b"no token".to_vec())),
        ("a fragment", Packet { fragment: MORE_FRAGMENTS, ..Packet::default() }),
        ("a later fragment", Packet { fragment: 1, ..Packet::default() }),
        ("lengths that contradict each other", Packet { udp_len: Some(9), ..Packet::default() }),
        ("a valid token under two tags", Packet::default().tagged(2)),
        ("a valid token under three tags", Packet::default().tagged(3)),
    ]
}

/// Services of each kind, by mode: flags and forwarding mode.
fn services() -> Vec<(String, Fixture)> {
    let mut fixtures = vec![];
    for (flags, mode) in [(0, "enforce"), (FLAG_OBSERVE, "observe")] {
        for (forward, name) in [(MODES[0].0, "l2"), (FORWARD_LOCAL, "local"), (FORWARD_NAT, "nat")] {
            let service = Service { forward, flags, ..fixture::service() };
            fixtures.push((format!("{name} in {mode}"), Fixture::with_service(service)));
        }
    }
    fixtures
}

fn to(destination_mac: [u8; 6], packet: Packet) -> Packet {
    Packet { destination_mac, ..packet }
}

/// Dropped, and counted for no service, because no device above the interface has the address.
fn misdirected(name: impl Into<String>, fixture: Fixture, packet: &Packet) -> Case {
    let mut case = Case::refused(name, fixture, packet, Reason::NotOurs);
    case.expected.service = 0;
    case
}

fn other_station_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (mode, fixture) in services() {
        for (name, packet) in packets() {
            let packet = to(OTHER_BALANCER, packet);
            cases.push(misdirected(format!("{name}: {mode}"), fixture.clone(), &packet));
            let switched = Fixture { macs: accepting(&[BALANCER_MAC], true), ..fixture.clone() };
            let name = format!("{name}, where a bridge is behind the interface: {mode}");
            cases.push(Case::not_ours(name, switched, &packet));
        }
    }
    let mut elsewhere = Fixture::default();
    elsewhere.macs.insert(MacEntry {
        mac: Mac::new(OTHER_BALANCER),
        ifindex: OTHER_INTERFACE,
        passes: 0,
        generic: 0,
    });
    let packet = to(OTHER_BALANCER, Packet::default());
    cases.push(misdirected("a valid token for another interface of this host", elsewhere, &packet));
    // Every octet of the address is compared.
    for octet in 0..6 {
        let mut mac = BALANCER_MAC;
        mac[octet] ^= 0x40;
        let packet = to(mac, Packet::default());
        let name = format!("a valid token, octet {octet} of the address differs");
        cases.push(misdirected(name, Fixture::default(), &packet));
    }
    both(|_| cases.clone())
}

fn group_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (mode, fixture) in services() {
        let service = fixture.services[0].1;
        for (group, mac) in GROUPS {
            for (name, packet) in packets() {
                let packet = to(mac, packet);
                let name = format!("{name}, {group}: {mode}");
                // A bridge behind the interface changes nothing.
                let fixture =
                    Fixture { macs: accepting(&[BALANCER_MAC], group.starts_with("IP")), ..fixture.clone() };
                cases.push(if service.observes() && service.forward == FORWARD_LOCAL {
                    Case::local(name, fixture, &packet, &packet, Reason::Unsupported)
                } else {
                    Case::refused(name, fixture, &packet, Reason::Unsupported)
                });
            }
        }
    }
    both(|_| cases.clone())
}

fn own_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (forward, mode, family, backend) in MODES {
        let fixture = Fixture {
            macs: accepting(&[BALANCER_MAC, VIRTUAL_ROUTER], false),
            ..fixture::sending(forward, 0, fixture::backend_at(1, backend))
        };
        for (name, mac) in [("its own address", BALANCER_MAC), ("a virtual router's address", VIRTUAL_ROUTER)]
        {
            let packet = to(mac, Packet::default()).over(family);
            let (service, backend) = (fixture.services[0].1, fixture.backends[0]);
            let sent = forwarding::leaving(&packet, &service, &backend, SESSION, None);
            let name = format!("{name}: {mode}");
            cases.push(Case::sent(name, fixture.clone(), &packet, &sent, &backend, Reason::Forwarded));
        }
    }
    cases
}

/// Entries of one bucket are distinguished by address and interface.
#[test]
fn neighbours_in_a_bucket_are_told_apart() -> Result<()> {
    let mut program = Program::load()?;
    // With the first seed, such a small number of entries fits.
    let bucket = Mac::new(OTHER_BALANCER).bucket(LOOPBACK, 0);
    let elsewhere = (LOOPBACK + 1..).find(|ifindex| Mac::new(OTHER_BALANCER).bucket(*ifindex, 0) == bucket);
    let alike = (0..=u16::MAX).map(|last| {
        let [high, low] = last.to_be_bytes();
        [0x02, 0, 0, 0x99, high, low]
    });
    let alike = alike.into_iter().find(|mac| Mac::new(*mac).bucket(LOOPBACK, 0) == bucket);
    let mut fixture = Fixture::default();
    fixture.macs.extend([
        MacEntry {
            mac: Mac::new(OTHER_BALANCER),
            ifindex: elsewhere.context("an interface")?,
            passes: 0,
            generic: 0,
        },
        MacEntry { mac: Mac::new(alike.context("an address")?), ifindex: LOOPBACK, passes: 0, generic: 0 },
    ]);
    let packet = to(OTHER_BALANCER, Packet::default());
    misdirected("an address of its bucket", fixture, &packet).check(&mut program)
}

/// Before the daemon has published the interface's addresses, nothing passes.
#[test]
fn without_any_address_everything_is_dropped() -> Result<()> {
    let mut program = Program::load()?;
    let elsewhere = MacEntry { mac: Mac::new(BALANCER_MAC), ifindex: OTHER_INTERFACE, passes: 0, generic: 0 };
    let others = MacEntry { mac: Mac::OTHERS, passes: 1, generic: 0, ..elsewhere };
    for macs in [[].into(), [elsewhere, others].into()] {
        let mut cases = Vec::new();
        for (mode, fixture) in services() {
            let fixture = Fixture { macs: Clone::clone(&macs), ..fixture };
            for (name, packet) in packets() {
                let case =
                    Case::refused(format!("{name}: {mode}"), fixture.clone(), &packet, Reason::Internal);
                cases.push(case);
            }
            let other = Packet { to: ([203, 0, 113, 99], 7777).into(), ..Packet::default() };
            cases.push(Case::not_ours("for no service", fixture.clone(), &other));
        }
        check_all(&mut program, &both(|_| cases.clone()))?;
    }
    Ok(())
}

/// The maximum number of addresses, on interfaces with indices of all sizes: each interface accepts its own addresses,
/// and no other's.
#[test]
fn a_full_table() -> Result<()> {
    let mut program = Program::load()?;
    let address = |number: u8| [2, 0, 0, 1, 0, number];
    let here = (0..64).map(address).collect::<Vec<_>>();
    let elsewhere = (64..=250).map(|number| MacEntry {
        mac: Mac::new(address(number)),
        ifindex: u32::from(number) << 23 | 1,
        passes: 0,
        generic: 0,
    });
    let macs = accepting(&here, false).into_iter().chain(elsewhere).collect();
    let fixture = Fixture { macs, ..Fixture::default() };
    let backend = fixture.picked(SESSION);
    for number in 0..=250 {
        let packet = to(address(number), Packet::default());
        let sent = packet.clone().stripped();
        let case = match number {
            0..64 => Case::sent("its own", fixture.clone(), &packet, &sent, &backend, Reason::Forwarded),
            _ => misdirected("another interface's", fixture.clone(), &packet),
        };
        case.check(&mut program)?;
    }
    Ok(())
}

/// Two balancers in observe mode on a bridge that floods all frames, each configured as the router of the other: each
/// forwards a packet without a token at most once.
#[test]
fn two_balancers_on_a_flooded_segment_multiply_nothing() -> Result<()> {
    let service = Service { flags: FLAG_OBSERVE, ..fixture::service() };
    let balancer = |own: [u8; 6], other: [u8; 6]| -> Result<Program> {
        let mut backend = fixture::backend(1);
        (backend.source_mac, backend.destination_mac) = (own, other);
        let macs = accepting(&[own], false);
        let mut program = Program::load()?;
        program.enter(&Fixture { macs, backends: vec![backend], ..Fixture::with_service(service) })?;
        Ok(program)
    };
    let balancers =
        [balancer(BALANCER_MAC, [2, 0, 0, 0, 0, 9])?, balancer(OTHER_BALANCER, [2, 0, 0, 0, 0, 9])?];
    for destination in [BALANCER_MAC, OTHER_BALANCER, [0xff; 6]] {
        for family in Family::BOTH {
            let first = to(destination, Packet::with_payload(b"no token".to_vec())).over(family);
            let mut on_the_wire = vec![first.bytes()];
            let mut sent = 0;
            while let Some(frame) = on_the_wire.pop() {
                for balancer in &balancers {
                    let outcome = balancer.run(&frame)?;
                    ensure!(outcome.verdict != Verdict::Pass, "passed on, though no service's");
                    if outcome.verdict == Verdict::Transmit {
                        sent += 1;
                        on_the_wire.push(outcome.frame);
                    }
                }
                ensure!(sent < 10, "frames multiply");
            }
            let expected = u32::from(destination != [0xff; 6]);
            ensure!(sent == expected, "{sent} datagrams were sent instead of {expected}");
        }
    }
    let counted = |balancer: &Program, reason| balancer.counted((SERVICE_INDEX, reason));
    ensure!(
        counted(&balancers[0], Reason::NoToken)? == 2 && counted(&balancers[0], Reason::Unsupported)? == 2
    );
    Ok(())
}
