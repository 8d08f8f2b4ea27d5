//! `forward = "nat"`: to the backend from a port of this node, and its answers back to the client.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    backend::{Backend, TAGS_KEPT, Tag},
    live::SECOND_NS,
    nat::{Owner, PROBES, Ports, TIMEOUT_NS, Translation, TranslationKey},
    reason::Reason,
    service::{FLAG_STRIP, FORWARD_NAT},
};
use lb_tests::model::{
    case::{Case, both},
    fixture::{self, Fixture, NAT_PORTS, OTHER_INTERFACE, SERVICE_INDEX, SESSION, address_be},
    forwarding,
    packet::{self, Family, Packet, UdpChecksum},
    program::{Program, Verdict, small},
};

use tollgate::datapath::Options;

use crate::{forwarding::FLAGS, matrix::case_groups};

mod answers;
mod forged;
mod sessions;

fn nat_fixture(flags: u8, family: Family) -> Fixture {
    fixture::sending(FORWARD_NAT, flags, fixture::backend_at(1, family))
}

/// The port that stands for a client towards the backend of this fixture, and its translation, where there is one.
fn found(program: &Program, fixture: &Fixture, client: SocketAddr) -> Result<Option<(u16, Translation)>> {
    let backend = fixture.backends[0];
    for entry in &program.translations()? {
        let (key, translation): (TranslationKey, Translation) = entry?;
        let is_clients = translation.client_be == address_be(client.ip())
            && translation.client_port_be == client.port().to_be();
        if is_clients && key.backend_be == backend.address_be && key.backend_port_be == backend.port_be {
            return Ok(Some((u16::from_be(key.node_port_be), translation)));
        }
    }
    Ok(None)
}

/// What leaves from a port of this node, whose translation has this cookie.
fn sent(name: impl Into<String>, fixture: &Fixture, packet: &Packet, port: u16, cookie: u32) -> Case {
    let (service, backend) = (fixture.services[0].1, fixture.backends[0]);
    let inner = if service.strips() { packet.clone().stripped() } else { packet.clone() };
    let sent = forwarding::leaving(&inner, &service, &backend, SESSION, Some(port));
    let sent = with_cookie(sent, cookie);
    Case::sent(name, fixture.clone(), packet, &sent, &backend, Reason::Forwarded)
}

/// A packet with a cookie where it has room for one.
fn with_cookie(packet: Packet, cookie: u32) -> Packet {
    match packet.family() {
        Family::V4 if packet.fragment == packet::DONT_FRAGMENT => Packet { id: cookie as u16, ..packet },
        Family::V4 => packet,
        Family::V6 => Packet { flow_label: cookie & 0xf_ffff, ..packet },
    }
}

/// Runs the program on a client's datagram, and checks it with the port that its translation has.
fn translated(program: &mut Program, name: &str, fixture: &Fixture, packet: &Packet) -> Result<u16> {
    program.enter(fixture)?;
    let outcome = program.run(&packet.bytes())?;
    let (port, translation) =
        found(program, fixture, packet.from)?.with_context(|| format!("{name}: no translation"))?;
    ensure!(NAT_PORTS.contain(port), "{name}: port {port}");
    let case = sent(name, fixture, packet, port, translation.cookie);
    ensure!(outcome == case.expected.outcome, "{name}: {outcome:?} where {case:?} was expected");
    // Once more, now that there is a translation, with all counters.
    case.check(program)?;
    let again = found(program, fixture, packet.from)?.map(|(port, _)| port);
    ensure!(again == Some(port), "{name}: {again:?} where {port} was the port before");
    Ok(port)
}

/// What the backend answers to a port of this node, and what the client gets.
fn reply(fixture: &Fixture, client: &Packet, port: u16) -> (Packet, Packet) {
    let backend = fixture.backends[0];
    let to_backend = &forwarding::leaving(client, &fixture.services[0].1, &backend, SESSION, Some(port));
    let reply = Packet {
        tags: to_backend.tags.clone(),
        destination_mac: backend.source_mac,
        source_mac: backend.destination_mac,
        from: SocketAddr::new(forwarding::address(backend.address_be), u16::from_be(backend.port_be)),
        to: SocketAddr::new(forwarding::address(backend.source_be), port),
        ttl: 64,
        ..Packet::with_payload(b"an answer of odd length".to_vec())
    };
    let to_client = Packet {
        destination_mac: client.source_mac,
        source_mac: client.destination_mac,
        tags: client.tags.clone(),
        from: client.to,
        to: client.from,
        ..reply.clone().hop()
    };
    (reply, to_client)
}

/// What the table says of a client whose datagrams come like this one.
fn translation(fixture: &Fixture, client: &Packet) -> Translation {
    let backend = fixture.backends[0];
    let mut addresses_be = [0; 3];
    let macs = [client.source_mac, client.destination_mac].concat();
    for (word, bytes) in addresses_be.iter_mut().zip(macs.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    let mut tags = [Tag::default(); 2];
    for (tag, (identifier, control)) in tags.iter_mut().zip(&client.tags) {
        *tag = Tag { identifier_be: identifier.to_be(), control_be: control.to_be() };
    }
    let kept = backend.tag_count == TAGS_KEPT;
    let (backend_tag_count, backend_tags) = match kept {
        true => (client.tags.len() as u16, tags),
        false => (backend.tag_count.into(), backend.tags),
    };
    let grant = fixture::grant();
    Translation {
        used_at_ns: 0,
        client_be: address_be(client.from.ip()),
        service_be: address_be(client.to.ip()),
        node_be: backend.source_be,
        client_port_be: client.from.port().to_be(),
        service_port_be: client.to.port().to_be(),
        service_index: SERVICE_INDEX as u16,
        tag_count: client.tags.len() as u16,
        ifindex: fixture::LOOPBACK,
        addresses_be,
        tags,
        owner: Owner::session(fixture::SERVICE_ID, SESSION),
        checked: 0,
        nonce: u64::from_le_bytes(grant.nonce),
        issued_at: grant.issued_at,
        cookie: 0x000a_5eed,
        backend_ifindex: backend.ifindex,
        backend_id: backend.backend_id,
        backend_tag_count,
        backend_tags,
    }
}

/// A range in which every client has the same port, so that cases can name it.
const ONE_PORT: Ports = Ports { first: 40_000, last: 40_000 };

case_groups! {
    with_one_port: "From a port of this node, and back" => both(one_port_cases), checked by check_with_one_port;
}

fn check_with_one_port(cases: &[Case]) -> Result<()> {
    let mut program = Program::load_with(&Options { nat_ports: Some(ONE_PORT), ..small() })?;
    cases.iter().try_for_each(|case| case.check(&mut program))
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
                let (answer, to_client) = reply(&known, &packet, port);
                let answer = Packet { udp_checksum, ..answer };
                let to_client = Packet { udp_checksum, ..to_client }.completed();
                let name = format!("an answer to it, {checksum} UDP checksum, {tags} tags, {strip}");
                cases.push(Case::answered(name, known, &answer, &to_client, Reason::Reply));
            }
        }
    }
    let fixture = nat_fixture(FLAG_STRIP, family);
    let client = Packet::default().over(family);
    let other = Packet { from: packet::client(1), ..Packet::default() }.over(family);
    let owner = Owner::session(fixture::SERVICE_ID, 1);
    let taken = (key(&fixture, port), Translation { owner, ..translation(&fixture, &other) });
    let taken = Fixture { translations: vec![taken], ..fixture.clone() };
    let (answer, _) = reply(&fixture, &client, port);
    let last = Packet { ttl: 1, ..answer.clone() };
    let known = (key(&fixture, port), translation(&fixture, &client));
    let known = Fixture { translations: vec![known], ..fixture.clone() };
    for (name, destination_mac) in [
        ("an answer in a frame for another station", [2, 0, 0, 0, 0, 2]),
        ("an answer in a frame for all stations", [0xff; 6]),
    ] {
        let misdirected = Packet { destination_mac, ..answer.clone() };
        cases.push(Case::not_ours(name, known.clone(), &misdirected));
    }
    let fragmentable = Packet { fragment: 0, ..client.clone() };
    let name = "a datagram that routers may fragment, which keeps its identification";
    cases.push(sent(name, &known, &fragmentable, port, translation(&fixture, &client).cookie));
    cases.extend([
        Case::refused("a client for whom no port is left", taken.clone(), &client, Reason::NatPorts),
        Case::refused("an answer with hop limit 1", taken, &last, Reason::HopLimit),
        Case::not_ours("an answer to nobody", fixture, &answer),
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
    // Where a client's datagrams come from may change once in a second: each of these is another client.
    let mut clients = (0..).map(packet::client);
    for (family, flags) in Family::BOTH.into_iter().flat_map(|family| FLAGS.map(|(flags, _)| (family, flags)))
    {
        for (_, udp_checksum) in checksums(family) {
            for tags in 0..=2 {
                let name = format!("{family}, flags {flags}, {udp_checksum:?}, {tags} tags");
                let fixture = nat_fixture(flags, family);
                let from = clients.next().context("any number of clients")?;
                let packet = Packet { from, udp_checksum, ..Packet::default() }.tagged(tags).over(family);
                let port = translated(&mut program, &name, &fixture, &packet)?;
                let (answer, to_client) = reply(&fixture, &packet, port);
                let answer = Packet { udp_checksum, ..answer };
                let to_client = Packet { udp_checksum, ..to_client }.completed();
                Case::answered(name, fixture, &answer, &to_client, Reason::Reply).check(&mut program)?;
            }
        }
    }
    Ok(())
}

/// A right checksum is the sum of its pseudo-header once in 65,536 datagrams. It stays right, there and back, also in generic
/// mode.
#[test]
fn checksums_that_look_partial() -> Result<()> {
    let mut program = Program::load()?;
    let mut clients = (0..).map(packet::client);
    for (family, generic) in Family::BOTH.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let name = format!("{family}, generic: {generic}");
        let fixture = nat_fixture(FLAG_STRIP, family);
        let fixture = if generic { fixture.in_generic_mode() } else { fixture };
        let from = clients.next().context("any number of clients")?;
        let packet = Packet { from, ..Packet::default() }.over(family).as_if_partial();
        let port = translated(&mut program, &name, &fixture, &packet)?;
        let (answer, to_client) = reply(&fixture, &packet, port);
        let answer = answer.as_if_partial();
        let to_client = Packet { payload: answer.payload.clone(), ..to_client };
        Case::answered(name, fixture, &answer, &to_client, Reason::Reply).check(&mut program)?;
    }
    Ok(())
}

/// An answer with a partial checksum, on an interface in generic mode.
#[test]
fn partial_answers_in_generic_mode() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let fixture = nat_fixture(FLAG_STRIP, family).in_generic_mode();
        let packet = Packet::default().over(family);
        let port = translated(&mut program, "a client's datagram", &fixture, &packet)?;
        let (answer, _) = reply(&fixture, &packet, port);
        let answer = Packet { udp_checksum: UdpChecksum::Partial, ..answer };
        Case::refused("a partial answer", fixture, &answer, Reason::PartialChecksum).check(&mut program)?;
    }
    Ok(())
}

/// A backend behind tags of another interface: its answers come in there, and leave where the client's datagrams came
/// in, which in a test run is the same.
#[test]
fn by_another_interface_with_tags() -> Result<()> {
    let mut program = Program::load()?;
    let tag = |identifier: u16, control: u16| Tag {
        identifier_be: identifier.to_be(),
        control_be: control.to_be(),
    };
    for family in Family::BOTH {
        let backend = Backend {
            ifindex: OTHER_INTERFACE,
            tag_count: 1,
            tags: [tag(packet::TAG_8021Q, 12), Tag::default()],
            ..fixture::backend_at(2, family)
        };
        let fixture = fixture::sending(FORWARD_NAT, FLAG_STRIP, backend);
        for tags in 0..=2 {
            let name = format!("{family}, {tags} tags");
            let packet = Packet { from: packet::client(tags), ..Packet::default() }.tagged(tags).over(family);
            let port = translated(&mut program, &name, &fixture, &packet)?;
            let (answer, to_client) = reply(&fixture, &packet, port);
            // It comes in where the client's datagram did, and not where the backend is: it is forged.
            Case::not_ours(&name, fixture.clone(), &answer).check(&mut program)?;
            let mut translation = program.translations()?.get(&key(&fixture, port), 0)?;
            ensure!(translation.backend_ifindex == OTHER_INTERFACE, "{name}");
            translation.backend_ifindex = fixture::LOOPBACK;
            program.translations()?.insert(key(&fixture, port), translation, 0)?;
            Case::answered(name, fixture.clone(), &answer, &to_client, Reason::Reply).check(&mut program)?;
        }
    }
    Ok(())
}

/// What comes from a backend and belongs to no translation is this host's.
#[test]
fn answers_to_nobody() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let fixture = nat_fixture(FLAG_STRIP, family);
        let client = Packet::default().over(family);
        let port = translated(&mut program, "a client", &fixture, &client)?;
        let (answer, to_client) = reply(&fixture, &client, port);
        let mut pass =
            |name: &str, packet: Packet| Case::not_ours(name, fixture.clone(), &packet).check(&mut program);
        let port_of = |mut at: SocketAddr, port| {
            at.set_port(port);
            at
        };
        pass("another port of this node", Packet { to: port_of(answer.to, port ^ 1), ..answer.clone() })?;
        pass("a port outside the range", Packet { to: port_of(answer.to, 39_999), ..answer.clone() })?;
        pass("another port of the backend", Packet { from: port_of(answer.from, 9001), ..answer.clone() })?;
        pass("another host", Packet { from: client.from, ..answer.clone() })?;
        pass(
            "another address of this node",
            Packet { to: SocketAddr::new(client.from.ip(), port), ..answer.clone() },
        )?;
        pass("TCP", Packet { protocol: Some(6), ..answer.clone() })?;
        let last = Packet { ttl: 1, ..answer.clone() };
        Case::refused("hop limit 1", fixture.clone(), &last, Reason::HopLimit).check(&mut program)?;
        Case::answered("an answer", fixture.clone(), &answer, &to_client, Reason::Reply)
            .check(&mut program)?;
        // The least recently used translation may be evicted at any time.
        program.translations()?.remove(&key(&fixture, port))?;
        Case::not_ours("an answer after its translation", fixture.clone(), &answer).check(&mut program)?;
        translated(&mut program, "the client again", &fixture, &client)?;
    }
    Ok(())
}

/// ICMP errors come to whoever sent what they quote, and quote what that one sent (RFC 5508 §4).
#[test]
fn errors() -> Result<()> {
    let mut program = Program::load()?;
    for (family, flags) in [(Family::V4, FLAG_STRIP), (Family::V4, 0), (Family::V6, FLAG_STRIP)] {
        let fixture = nat_fixture(flags, family);
        let client = Packet::default().over(family);
        let port = translated(&mut program, "a client", &fixture, &client)?;
        let (answer, to_client) = reply(&fixture, &client, port);
        let backend = fixture.backends[0];
        let sent = if flags == FLAG_STRIP { client.clone().stripped() } else { client.clone() };
        let (_, translation) = found(&program, &fixture, client.from)?.context("a translation")?;
        let left = Packet { from: answer.to, to: answer.from, ..sent.clone().hop() };
        let left = with_cookie(left, translation.cookie);
        let no_port = |at: SocketAddr| SocketAddr::new(at.ip(), 0);
        for (kind, code) in if family == Family::V4 { [(3, 4), (11, 0)] } else { [(2, 0), (1, 4)] } {
            let message = packet::Icmp { kind, code, rest: [0, 0, 5, 0] };
            for len in [family.header_len() + 8, usize::MAX] {
                let error = |quoted: &Packet, to: SocketAddr| Packet {
                    to: no_port(to),
                    ..Packet::icmp_error(message, &quoted.ip_packet(), len).over(family)
                };
                let about_answer = error(&to_client, client.to);
                let to_backend = error(&answer.clone().hop(), answer.from).hop();
                let (name, fixture) = ("about an answer", fixture.clone());
                Case::sent(name, fixture.clone(), &about_answer, &to_backend, &backend, Reason::IcmpError)
                    .check(&mut program)?;
                let about_datagram = error(&left, answer.to);
                let told = Packet {
                    from: no_port(client.to),
                    destination_mac: client.source_mac,
                    source_mac: client.destination_mac,
                    ..error(&with_cookie(sent.clone().hop(), 0), client.from).hop()
                };
                Case::answered(
                    "about a datagram",
                    fixture.clone(),
                    &about_datagram,
                    &told,
                    Reason::IcmpError,
                )
                .check(&mut program)?;
                let nobodys = Packet { from: SocketAddr::new(left.from.ip(), port ^ 1), ..left.clone() };
                Case::not_ours("about nobody's datagram", fixture.clone(), &error(&nobodys, answer.to))
                    .check(&mut program)?;
            }
        }
    }
    Ok(())
}

fn key(fixture: &Fixture, port: u16) -> TranslationKey {
    let backend = fixture.backends[0];
    TranslationKey {
        backend_be: backend.address_be,
        backend_port_be: backend.port_be,
        node_port_be: port.to_be(),
    }
}

/// Gives a port to another client, whose last datagram passed at this moment of the kernel's clock.
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

/// A client whose port is taken gets another, as far as it is looked for; what is left for long is free.
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
        // Of a hundred ports, two probes may come to the same.
        ensure!((8..=PROBES as usize).contains(&taken.len()), "{} ports were tried", taken.len());
        Case::refused("no port is free", fixture.clone(), &client, Reason::NatPorts).check(&mut program)?;
        occupy(&program, &fixture, taken[1], now - TIMEOUT_NS - 1)?;
        let freed = translated(&mut program, "a port that was left for long", &fixture, &client)?;
        ensure!(freed == taken[1], "{freed} where {} was free", taken[1]);

        // Answers prolong nothing, and come too late once the client was quiet for long.
        let (answer, to_client) = reply(&fixture, &client, freed);
        let key = key(&fixture, freed);
        let mut translation = program.translations()?.get(&key, 0)?;
        translation.used_at_ns = now - TIMEOUT_NS + 60 * SECOND_NS;
        program.translations()?.insert(key, translation, 0)?;
        Case::answered("in time", fixture.clone(), &answer, &to_client, Reason::Reply).check(&mut program)?;
        translation.used_at_ns = now - TIMEOUT_NS;
        program.translations()?.insert(key, translation, 0)?;
        Case::not_ours("too late", fixture.clone(), &answer).check(&mut program)?;
    }
    Ok(())
}

/// Each client has a port of its own, and keeps it.
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
        for ttl in [0, 1] {
            let packet = Packet { ttl, ..client.clone() };
            let name = format!("hop limit {ttl}");
            Case::refused(name, fixture.clone(), &packet, Reason::HopLimit).check(&mut program)?;
        }
        translated(&mut program, "hop limit 2", &fixture, &Packet { ttl: 2, ..client })?;
    }
    Ok(())
}
