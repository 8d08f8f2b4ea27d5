//! Step 10: the choice of the backend, and the form of the packet that it receives.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_common::{
    backend::Backend,
    keyslot::KeyId,
    reason::Reason,
    service::{FLAG_STRIP, FORWARD_LOCAL, Service, ServiceKey},
    token::{Claims, mint::Grant},
};
use lb_tests::model::{
    case::{Case, both, check_all},
    fixture::{self, Fixture, Key, SESSION},
    packet::{Family, Packet, UdpChecksum},
    program::Program,
};

use crate::matrix::{Subject, case_groups};

#[test]
fn strip() -> Result<()> {
    let cases: Vec<_> = forms().iter().map(|(name, packet)| stripped(name, packet)).collect();
    crate::check_each(&datagrams_with_checksums(&cases))
}

#[test]
fn as_it_is() -> Result<()> {
    let cases: Vec<_> = forms().iter().map(|(name, packet)| unstripped(name, packet)).collect();
    crate::check_each(&datagrams_with_checksums(&cases))
}

case_groups! {
    backends: "Choice of the backend" => both(|_| backend_cases());
    local: "Delivery to this host's own stack" => both(|_| local_cases());
}

/// The cases of this module whose reason belongs to it.
pub fn cases() -> Vec<Case> {
    subjects().into_iter().flat_map(Subject::into_cases).collect()
}

/// Valid packets that differ in fields that delivery could corrupt.
fn forms() -> Vec<(String, Packet)> {
    let mut forms = Vec::new();
    for tags in 0..=2 {
        for (checksum, udp_checksum) in [
            ("right", UdpChecksum::Right),
            ("no", UdpChecksum::None),
            ("a wrong", UdpChecksum::OffBy(0x1234)),
            ("a partial", UdpChecksum::Partial),
        ] {
            for (data, len) in [("no", 0), ("a byte of", 1), ("little", 15), ("much", 1200)] {
                let payload = [&fixture::token().to_bytes()[..], &vec![0xd7; len]].concat();
                let packet = Packet { udp_checksum, ..Packet::with_payload(payload).tagged(tags) };
                forms.push((format!("{tags} tags, {checksum} UDP checksum, {data} data"), packet));
            }
        }
        let padded = Packet { padding: vec![0xee; 7], ..Packet::default().tagged(tags) };
        forms.push((format!("{tags} tags, padding"), padded));
    }
    forms.push(("time to live 1".into(), Packet { ttl: 1, ..Packet::default() }));
    forms.push(("a wrong IP checksum".into(), Packet { ip_checksum_off_by: 9, ..Packet::default() }));
    forms.push(("may be fragmented".into(), Packet { fragment: 0, ..Packet::default() }));
    forms
}

/// Runs over both families, except for datagrams without a checksum, which do not exist over IPv6.
fn datagrams_with_checksums(cases: &[Case]) -> Vec<Case> {
    let valid = |case: &Case| case.family() == Some(Family::V4) || !case.name.contains("no UDP checksum");
    both(|_| cases.to_vec()).into_iter().filter(valid).collect()
}

fn without_strip() -> Fixture {
    Fixture::with_service(Service { flags: 0, ..fixture::service() })
}

fn stripped(name: &str, packet: &Packet) -> Case {
    let fixture = Fixture::default();
    let backend = fixture.picked(SESSION);
    Case::sent(name, fixture, packet, &packet.clone().completed().stripped(), &backend, Reason::Forwarded)
}

fn unstripped(name: &str, packet: &Packet) -> Case {
    let backend = without_strip().picked(SESSION);
    Case::sent(name, without_strip(), packet, &packet.clone().completed(), &backend, Reason::Forwarded)
}

/// A computed checksum of zero is sent as all ones: zero means no checksum (RFC 768).
#[test]
fn a_udp_checksum_never_becomes_zero() -> Result<()> {
    for family in Family::BOTH {
        let with_data = |word: u16| {
            let payload = [&fixture::token().to_bytes()[..], &word.to_be_bytes()].concat();
            Packet::with_payload(payload).over(family)
        };
        let after = |word: &u16| with_data(*word).stripped().udp_checksum_field() == 0xffff;
        let before = |word: &u16| with_data(*word).udp_checksum_field() == 0xffff;
        let becomes = (0..=u16::MAX).find(after).context("one of all words makes the checksum zero")?;
        let was = (0..=u16::MAX).find(before).context("one of all words makes the checksum zero")?;
        let cases =
            [with_data(becomes), with_data(was)].map(|packet| stripped("a checksum of zero", &packet));
        crate::check_each(&cases)?;
    }
    Ok(())
}

/// Compares incrementally updated checksums with fully computed ones, for payloads of all lengths.
#[test]
fn checksums_of_many_payloads() -> Result<()> {
    of_many_payloads(0..600, UdpChecksum::Right)
}

/// Checksums that were left to a network card and that the program computes, for payloads of all lengths, block by
/// block.
#[test]
fn checksums_left_to_a_network_card() -> Result<()> {
    of_many_payloads(0..1100, UdpChecksum::Partial)
}

fn of_many_payloads(lengths: std::ops::Range<usize>, udp_checksum: UdpChecksum) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(1);
    let cases: Vec<_> = lengths
        .map(|len| {
            let token = fixture::token_number(len as u64 % 40);
            let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            let packet = Packet {
                from: SocketAddr::new(Ipv4Addr::from_bits(random.u32(..)).into(), random.u16(..)),
                udp_checksum,
                ..Packet::with_payload([&token.to_bytes()[..], &data].concat())
            };
            let backend = Fixture::default().picked(len as u64 % 40);
            let name = format!("{len} bytes of data");
            let sent = packet.clone().completed().stripped();
            Case::sent(name, Fixture::default(), &packet, &sent, &backend, Reason::Forwarded)
        })
        .collect();
    check_all(&mut Program::load()?, &both(|_| cases.clone()))
}

fn backend_cases() -> Vec<Case> {
    let pinned_to = |backend_id| {
        let claims = Claims { backend_id, ..fixture::grant().claims };
        Packet::with_token(&fixture::key().bearer(&Grant { claims, ..fixture::grant() }))
    };
    let sent = |name: &str, packet: Packet, backend: &Backend| {
        let stripped = packet.clone().stripped();
        Case::sent(name, Fixture::default(), &packet, &stripped, backend, Reason::Forwarded)
    };
    let none = |name: &str, fixture: Fixture, packet: Packet| {
        Case::refused(name, fixture, &packet, Reason::NoBackend)
    };
    let mut foreign = fixture::backend(9);
    foreign.service_index += 1;
    let elsewhere = |id| Backend { ifindex: fixture::LOOPBACK + 1, ..fixture::backend(id) };
    let with_backends = |backends| Fixture { backends, ..Fixture::default() };
    vec![
        sent("pinned to backend 1", pinned_to(1), &fixture::backend(1)),
        sent("pinned to backend 3", pinned_to(3), &fixture::backend(3)),
        none("pinned to a backend there is none of", Fixture::default(), pinned_to(4)),
        none("pinned to the last backend id", Fixture::default(), pinned_to(u16::MAX)),
        none(
            "pinned to another service's backend",
            with_backends(vec![fixture::backend(1), foreign]),
            pinned_to(9),
        ),
        none("no backends", with_backends(vec![]), Packet::default()),
        none("no backends, pinned", with_backends(vec![]), pinned_to(1)),
        none(
            "a backend behind an interface that nothing may be sent out of",
            with_backends(vec![elsewhere(1)]),
            Packet::default(),
        ),
        none(
            "pinned to a backend behind an interface that nothing may be sent out of",
            with_backends(vec![elsewhere(2)]),
            pinned_to(2),
        ),
        none(
            "a table that names a place without a backend",
            Fixture { maglev: Some(60), ..Fixture::default() },
            Packet::default(),
        ),
        none(
            "a table that names the last place there can be",
            Fixture { maglev: Some(u16::MAX), ..Fixture::default() },
            Packet::default(),
        ),
    ]
}

/// Each session goes to the backend that its hash selects, and every backend gets sessions.
#[test]
fn sessions_spread() -> Result<()> {
    let fixture = Fixture::default();
    let session = |number| {
        let packet = Packet::with_token(&fixture::token_number(number));
        let backend = fixture.picked(number);
        let sent = packet.clone().stripped();
        Case::sent(format!("session {number}"), fixture.clone(), &packet, &sent, &backend, Reason::Forwarded)
    };
    let cases: Vec<_> = (0..200).map(session).collect();
    for id in 1..=3 {
        let hits =
            cases.iter().filter(|case| case.expected.backend == Some(fixture::backend(id).counter)).count();
        assert!(hits > 30, "backend {id} gets {hits} of 200 sessions");
    }
    check_all(&mut Program::load()?, &both(|_| cases.clone()))
}

fn local_cases() -> Vec<Case> {
    let fixture = |flags| Fixture {
        backends: vec![],
        ..Fixture::with_service(Service { forward: FORWARD_LOCAL, flags, ..fixture::service() })
    };
    let pinned = Claims { backend_id: 77, ..fixture::grant().claims };
    let pinned = Packet::with_token(&fixture::key().bearer(&Grant { claims: pinned, ..fixture::grant() }));
    let mut cases = Vec::new();
    for tags in 0..=2 {
        let packet = Packet::default().tagged(tags);
        let stripped = packet.clone().stripped();
        cases.extend([
            Case::local(
                format!("local, stripped, {tags} tags"),
                fixture(FLAG_STRIP),
                &packet,
                &stripped,
                Reason::Forwarded,
            ),
            Case::local(format!("local, {tags} tags"), fixture(0), &packet, &packet, Reason::Forwarded),
        ]);
    }
    let partial = Packet { udp_checksum: UdpChecksum::Partial, ..Packet::default() };
    let completed = partial.clone().completed().stripped();
    cases.extend([
        Case::local(
            "local, stripped, a partial UDP checksum",
            fixture(FLAG_STRIP),
            &partial,
            &completed,
            Reason::Forwarded,
        ),
        // The kernel still knows that the checksum is partial.
        Case::local("local, a partial UDP checksum", fixture(0), &partial, &partial, Reason::Forwarded),
    ]);
    cases.push(Case::local(
        "local, pinned to a backend",
        fixture(FLAG_STRIP),
        &pinned,
        &pinned.clone().stripped(),
        Reason::Forwarded,
    ));
    cases.push(Case::refused(
        "local, no token",
        fixture(0),
        &Packet::with_payload(vec![0; 99]),
        Reason::NoToken,
    ));
    cases
}

/// Five services share a bucket of four entries with the first seed, so the tables are published with another seed.
#[test]
fn services_that_share_a_bucket() -> Result<()> {
    let address = Ipv4Addr::new(203, 0, 113, 10);
    let bucket = |port: u16| ServiceKey::v4(u32::from_ne_bytes(address.octets()), port.to_be()).bucket(0);
    let ports: Vec<u16> = (1000..=u16::MAX).filter(|port| bucket(*port) == bucket(1000)).take(5).collect();
    let at = |port: u16| SocketAddr::from((address, port));
    let fixture = Fixture {
        services: ports.iter().map(|port| (at(*port), fixture::service())).collect(),
        ..Fixture::default()
    };
    let backend = fixture.picked(SESSION);
    let case = |port: &u16| {
        let packet = Packet { to: at(*port), ..Packet::default() };
        let sent = packet.clone().stripped();
        Case::sent(format!("port {port}"), fixture.clone(), &packet, &sent, &backend, Reason::Forwarded)
    };
    check_all(&mut Program::load()?, &ports.iter().map(case).collect::<Vec<_>>())
}

/// The maximum number of services of a node, on a few addresses: each has its own key, backend and counters.
#[test]
fn many_services() -> Result<()> {
    let services = 1..=255_u16;
    let at = |index: u16| {
        let [_, low] = (index / 50).to_be_bytes();
        SocketAddr::from(([203, 0, 113, low], 1000 + index % 50))
    };
    let id = |index: u16| 100_000 + u32::from(index);
    let key = |index: u16| Key::new([9; 32], KeyId::new(index.into(), 1).expect("in range"));
    let fixture = Fixture {
        services: services
            .clone()
            .map(|index| (at(index), Service { id: id(index), index: index.into(), ..fixture::service() }))
            .collect(),
        keys: services.clone().map(|index| key(index).held(id(index))).collect(),
        backends: services
            .clone()
            .map(|index| Backend {
                service_index: index,
                counter: index.into(),
                destination_mac: [2, 2, 2, 2, 2, index as u8],
                ..fixture::backend(1)
            })
            .collect(),
        ..Fixture::default()
    };
    let mut cases = Vec::new();
    for index in services {
        let claims = Claims { service_id: id(index), ..fixture::grant().claims };
        let token = key(index).bearer(&Grant { claims, ..fixture::grant() });
        let packet = Packet { to: at(index), ..Packet::with_token(&token) };
        let backend = fixture.backends[usize::from(index) - 1];
        let sent = packet.clone().stripped();
        let name = format!("service {index}");
        let mut own = Case::sent(&name, fixture.clone(), &packet, &sent, &backend, Reason::Forwarded);
        own.expected.service = index.into();
        // A token of another service, whose key does not belong to this service.
        let wrong = Packet { to: at(index % 255 + 1), ..packet };
        let mut refused = Case::refused(&name, fixture.clone(), &wrong, Reason::InactiveKey);
        refused.expected.service = u32::from(index % 255 + 1);
        cases.extend([own, refused]);
    }
    check_all(&mut Program::load()?, &cases)?;
    // The same over IPv6, in another fixture, because as many services again do not fit.
    let at_twins = |case: &Case| {
        let mut case = case.clone().over(Family::V6);
        for (at, _) in &mut case.fixture.services {
            *at = Family::V6.twin_at(*at);
        }
        case
    };
    check_all(&mut Program::load()?, &cases.iter().map(at_twins).collect::<Vec<_>>())
}
