//! `forward = "nat"`: datagrams to the backend from a port of this node, and its answers to the client.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    backend::{Backend, Tag},
    control::SECOND_NS,
    nat::{Owner, PROBES, Ports, TIMEOUT_NS, Translation},
    reason::Reason,
    service::{FLAG_STRIP, FORWARD_NAT},
};
use lb_tests::model::{
    case::{Case, both},
    fixture::{self, Fixture, OTHER_INTERFACE, SERVICE_INDEX, address_be},
    packet::{self, Family, Packet, UdpChecksum},
    program::{Program, Verdict, small},
};
use tollgate::datapath::Options;

use self::exchange::{
    Exchange, found, in_turn, key, nat_fixture, no_port, sent, tag, translated, translation, with_cookie,
};
use crate::{forwarding::FLAGS, matrix::case_groups};

mod answers;
mod exchange;
mod forged;
mod sessions;

/// A range in which every client gets the same port, so that cases can name it.
const ONE_PORT: Ports = Ports { first: 40_000, last: 40_000 };

case_groups! {
    with_one_port: "NAT: from a port of this node, and back" => both(one_port_cases), checked by check_with_one_port;
}

fn check_with_one_port(cases: &[Case]) -> Result<()> {
    let mut program = Program::load_with(&Options { nat_ports: Some(ONE_PORT), ..small() })?;
    in_turn(&mut program, cases.to_vec())
}

fn one_port_cases(family: Family) -> Vec<Case> {
    let port = ONE_PORT.first;
    let mut cases = Vec::new();
    for (flags, strip) in FLAGS {
        for (checksum, udp_checksum) in checksums(family) {
            for tags in 0..=2 {
                let packet = Packet { udp_checksum, ..Packet::default() }.tagged(tags).over(family);
                let fixture = nat_fixture(flags, family);
                let translation = translation(&fixture, &packet);
                let known = Fixture { translations: vec![(key(&fixture, port), translation)], ..fixture };
                let name = format!("a client's datagram, {checksum} UDP checksum, {tags} tags, {strip}");
                cases.push(sent(name, &known, &packet, port, translation.cookie));
                let exchange = Exchange::of_port(known, packet, port).with_checksum(udp_checksum);
                let name = format!("an answer to it, {checksum} UDP checksum, {tags} tags, {strip}");
                cases.push(exchange.answered(name));
            }
        }
    }
    let fixture = nat_fixture(FLAG_STRIP, family);
    let client = Packet::default().over(family);
    let other = Packet { from: packet::client(1), ..Packet::default() }.over(family);
    let translations = [&client, &other].map(|packet| translation(&fixture, packet));
    let with =
        |translation| Fixture { translations: vec![(key(&fixture, port), translation)], ..fixture.clone() };
    let known = with(translations[0]);
    let taken = with(Translation { owner: Owner::session(fixture::SERVICE_ID, 1), ..translations[1] });
    let answer = Exchange::of_port(fixture.clone(), client.clone(), port).answer;
    let to_mac = |destination_mac| Packet { destination_mac, ..answer.clone() };
    let last = Packet { ttl: 1, ..answer.clone() };
    let fragmentable = Packet { fragment: 0, ..client.clone() };
    let keeps_its_id = "a datagram that routers may fragment, which keeps its identification";
    cases.extend([
        Case::not_ours(
            "an answer in a frame for another station",
            known.clone(),
            &to_mac([2, 0, 0, 0, 0, 2]),
        ),
        Case::not_ours("an answer in a frame for all stations", known.clone(), &to_mac([0xff; 6])),
        sent(keeps_its_id, &known, &fragmentable, port, translations[0].cookie),
        Case::refused("a client for whom no port is left", taken.clone(), &client, Reason::NatPorts),
        Case::refused("an answer with hop limit 1", taken, &last, Reason::HopLimit),
        Case::not_ours("an answer without a translation", fixture, &answer),
    ]);
    cases
}

/// The checksums that a family's datagrams may have, by name.
fn checksums(family: Family) -> Vec<(&'static str, UdpChecksum)> {
    let all = [
        ("a right", UdpChecksum::Right),
        ("a wrong", UdpChecksum::OffBy(0x1234)),
        ("a partial", UdpChecksum::Partial),
        ("no", UdpChecksum::None),
    ];
    let may = |(_, checksum): &(_, UdpChecksum)| family == Family::V4 || *checksum != UdpChecksum::None;
    all.into_iter().filter(may).collect()
}

#[test]
fn there_and_back() -> Result<()> {
    let mut program = Program::load()?;
    // The source of a client's datagrams may change once per second, so each datagram has another client.
    let mut clients = (0..).map(packet::client);
    for (family, flags) in Family::BOTH.into_iter().flat_map(|family| FLAGS.map(|(flags, _)| (family, flags)))
    {
        for (_, udp_checksum) in checksums(family) {
            for tags in 0..=2 {
                let name = format!("{family}, flags {flags}, {udp_checksum:?}, {tags} tags");
                let from = clients.next().context("any number of clients")?;
                let client = Packet { from, udp_checksum, ..Packet::default() }.tagged(tags).over(family);
                let exchange = Exchange::start(&mut program, nat_fixture(flags, family), client);
                exchange
                    .context(name)?
                    .with_checksum(udp_checksum)
                    .answered("an answer")
                    .check(&mut program)?;
            }
        }
    }
    Ok(())
}

/// One in 65,536 correct checksums equals the sum of its pseudo-header. It stays correct in both directions, also in
/// generic mode.
#[test]
fn checksums_that_look_partial() -> Result<()> {
    let mut program = Program::load()?;
    for (number, family) in (0..).zip(Family::BOTH) {
        let fixture = nat_fixture(FLAG_STRIP, family);
        for (from, fixture) in [(2 * number, fixture.clone()), (2 * number + 1, fixture.in_generic_mode())] {
            let client = Packet { from: packet::client(from), ..Packet::default() }.over(family);
            let mut exchange = Exchange::start(&mut program, fixture, client.as_if_partial())?;
            exchange.answer = exchange.answer.as_if_partial();
            exchange.to_client.payload = exchange.answer.payload.clone();
            exchange.answered("an answer").check(&mut program)?;
        }
    }
    Ok(())
}

/// An answer with a partial checksum, on an interface in generic mode.
#[test]
fn partial_answers_in_generic_mode() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let fixture = nat_fixture(FLAG_STRIP, family).in_generic_mode();
        let exchange = Exchange::start(&mut program, fixture, Packet::default().over(family))?;
        let answer = Packet { udp_checksum: UdpChecksum::Partial, ..exchange.answer.clone() };
        exchange.refused("a partial answer", &answer, Reason::PartialChecksum).check(&mut program)?;
    }
    Ok(())
}

/// A backend behind another interface, with tags: its answers arrive there, and leave through the interface of the
/// client. In a test run, both are the same interface.
#[test]
fn by_another_interface_with_tags() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let backend = Backend {
            ifindex: OTHER_INTERFACE,
            tag_count: 1,
            tags: [tag(packet::TAG_8021Q, 12), Tag::default()],
            ..fixture::backend_at(2, family)
        };
        for tags in 0..=2 {
            let client = Packet { from: packet::client(tags), ..Packet::default() }.tagged(tags).over(family);
            let fixture = fixture::sending(FORWARD_NAT, FLAG_STRIP, backend);
            let exchange = Exchange::start(&mut program, fixture, client)?;
            // It arrives on the client's interface instead of the backend's, so it is forged.
            exchange.not_ours("by the client's interface", &exchange.answer).check(&mut program)?;
            let mut translation = program.translations()?.get(&exchange.key(), 0)?;
            ensure!(translation.backend_ifindex == OTHER_INTERFACE, "{family}, {tags} tags");
            translation.backend_ifindex = fixture::LOOPBACK;
            program.translations()?.insert(exchange.key(), translation, 0)?;
            exchange.answered("by the backend's interface").check(&mut program)?;
        }
    }
    Ok(())
}

/// A packet of a backend without a translation is for this host.
#[test]
fn answers_to_nobody() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let exchange = Exchange::of_default_client(&mut program, family)?;
        let Exchange { client, port, answer, .. } = &exchange;
        let from = |from| Packet { from, ..answer.clone() };
        let to = |address, port| Packet { to: SocketAddr::new(address, port), ..answer.clone() };
        let node = answer.to.ip();
        let nobodys = [
            ("another port of this node", to(node, port ^ 1)),
            ("a port outside the range", to(node, 39_999)),
            ("another port of the backend", from(SocketAddr::new(answer.from.ip(), 9001))),
            ("another host", from(client.from)),
            ("another address of this node", to(client.from.ip(), *port)),
            ("TCP", Packet { protocol: Some(6), ..answer.clone() }),
        ];
        in_turn(&mut program, nobodys.map(|(name, packet)| exchange.not_ours(name, &packet)))?;
        let last = Packet { ttl: 1, ..answer.clone() };
        exchange.refused("hop limit 1", &last, Reason::HopLimit).check(&mut program)?;
        exchange.answered("an answer").check(&mut program)?;
        // The least recently used translation may be evicted at any time.
        program.translations()?.remove(&exchange.key())?;
        exchange.not_ours("an answer after its translation", answer).check(&mut program)?;
        Exchange::of_default_client(&mut program, family)?;
    }
    Ok(())
}

/// An ICMP error reaches the sender of the packet that it quotes, and quotes what that host sent (RFC 5508 §4).
#[test]
fn errors() -> Result<()> {
    let mut program = Program::load()?;
    for (family, flags) in [(Family::V4, FLAG_STRIP), (Family::V4, 0), (Family::V6, FLAG_STRIP)] {
        let client = Packet::default().over(family);
        let exchange = Exchange::start(&mut program, nat_fixture(flags, family), client)?;
        let Exchange { fixture, client, port, answer, to_client } = &exchange;
        let sent = if flags == FLAG_STRIP { client.clone().stripped() } else { client.clone() }.hop();
        let (_, translation) = found(&program, fixture, client.from)?.context("a translation")?;
        let left = Packet { from: answer.to, to: answer.from, ..sent.clone() };
        let left = with_cookie(left, translation.cookie);
        let nobodys = Packet { from: SocketAddr::new(left.from.ip(), port ^ 1), ..left.clone() };
        for (kind, code) in if family == Family::V4 { [(3, 4), (11, 0)] } else { [(2, 0), (1, 4)] } {
            let message = packet::Icmp { kind, code, rest: [0, 0, 5, 0] };
            for len in [family.header_len() + 8, usize::MAX] {
                let error = |quoted: &Packet, to: SocketAddr| Packet {
                    to: no_port(to),
                    ..Packet::icmp_error(message, &quoted.ip_packet(), len).over(family)
                };
                let to_backend = error(&answer.clone().hop(), answer.from).hop();
                let told = Packet {
                    from: no_port(client.to),
                    destination_mac: client.source_mac,
                    source_mac: client.destination_mac,
                    ..error(&with_cookie(sent.clone(), 0), client.from).hop()
                };
                let about_answer = error(to_client, client.to);
                let (name, backend) = ("about an answer", &fixture.backends[0]);
                let reason = Reason::IcmpError;
                in_turn(
                    &mut program,
                    [
                        Case::sent(name, fixture.clone(), &about_answer, &to_backend, backend, reason),
                        exchange.told("about a datagram", &error(&left, answer.to), &told, reason),
                        exchange.not_ours("about nobody's datagram", &error(&nobodys, answer.to)),
                    ],
                )?;
            }
        }
    }
    Ok(())
}

/// Assigns a port to another client, whose last datagram passed at this time of the kernel's clock.
fn occupy(program: &Program, fixture: &Fixture, port: u16, used_at_ns: u64) -> Result<()> {
    let client = packet::client(port);
    let translation = Translation {
        used_at_ns,
        client_be: address_be(client.ip()),
        client_port_be: client.port().to_be(),
        service_index: u16::try_from(SERVICE_INDEX)?,
        ..Translation::default()
    };
    Ok(program.translations()?.insert(key(fixture, port), translation, 0)?)
}

/// A client whose port is in use gets another port, within the number of probes. A translation that has timed out is
/// free.
#[test]
fn collisions_timeouts_and_exhaustion() -> Result<()> {
    for family in Family::BOTH {
        let mut program = Program::load()?;
        let fixture = nat_fixture(FLAG_STRIP, family);
        let client = Packet::default().over(family);
        let first = translated(&mut program, "a client", &fixture, &client)?;
        let now = program.start_clock(fixture.now_ns)?;
        let mut taken = vec![first];
        occupy(&program, &fixture, first, now)?;
        while program.run(&client.bytes())?.verdict != Verdict::Drop {
            let other = translated(&mut program, "a client whose port was taken", &fixture, &client)?;
            ensure!(!taken.contains(&other), "{other} is another client's");
            occupy(&program, &fixture, other, now)?;
            taken.push(other);
        }
        // With a hundred ports, two probes may hit the same one.
        ensure!((8..=PROBES as usize).contains(&taken.len()), "{} ports were tried", taken.len());
        Case::refused("no port is free", fixture.clone(), &client, Reason::NatPorts).check(&mut program)?;
        occupy(&program, &fixture, taken[1], now - TIMEOUT_NS - 1)?;
        let freed = translated(&mut program, "a port that was left for long", &fixture, &client)?;
        ensure!(freed == taken[1], "port {freed}, but {} was free", taken[1]);

        // Answers do not extend the lifetime of a translation: answers to a client that has been silent for too long do
        // not pass.
        let exchange = Exchange::of_port(fixture, client, freed);
        let mut translation = program.translations()?.get(&exchange.key(), 0)?;
        for (used_at_ns, case) in [
            (now - TIMEOUT_NS + 60 * SECOND_NS, exchange.answered("in time")),
            (now - TIMEOUT_NS, exchange.not_ours("too late", &exchange.answer)),
        ] {
            translation.used_at_ns = used_at_ns;
            program.translations()?.insert(exchange.key(), translation, 0)?;
            case.check(&mut program)?;
        }
    }
    Ok(())
}

/// Each client has its own port, and keeps it.
#[test]
fn many_clients() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let fixture = nat_fixture(FLAG_STRIP, family);
        let mut ports = std::collections::BTreeSet::new();
        for number in 0..30 {
            let token = fixture::token_number(number.into());
            let packet = Packet { from: packet::client(number), ..Packet::with_token(&token) }.over(family);
            ports.insert(translated(&mut program, &format!("client {number}"), &fixture, &packet)?);
        }
        ensure!(ports.len() == 30, "{ports:?}");
    }
    Ok(())
}

#[test]
fn hop_limits() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let fixture = nat_fixture(FLAG_STRIP, family);
        let client = Packet::default().over(family);
        let with_ttl = |ttl| Packet { ttl, ..client.clone() };
        let expired = [0, 1].map(|ttl| {
            Case::refused(format!("hop limit {ttl}"), fixture.clone(), &with_ttl(ttl), Reason::HopLimit)
        });
        in_turn(&mut program, expired)?;
        translated(&mut program, "hop limit 2", &fixture, &Packet { ttl: 2, ..client })?;
    }
    Ok(())
}
