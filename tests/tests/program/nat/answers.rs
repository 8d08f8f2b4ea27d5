//! The answers that pass: from the VLAN of the backend, while backend and session are valid, whole or in fragments.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    backend::{Backend, Tag},
    control::SECOND_NS,
    nat::FRAGMENTS_TIMEOUT_NS,
    reason::Reason,
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    service::{FLAG_OBSERVE, FLAG_STRIP, FORWARD_NAT, Service},
};
use lb_tests::model::{
    fixture::{self, Fixture, SERVICE_ID, SESSION},
    packet::{self, Family, Packet, TAG_8021AD, TAG_8021Q, UdpChecksum},
    program::{Program, pin_to_cpu},
};

use super::exchange::{Exchange, in_turn, nat_fixture, tag, translated};

/// An answer must arrive in the VLAN of its backend, with any priority.
#[test]
fn from_another_vlan() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let in_vlan = Backend {
            tag_count: 1,
            tags: [tag(TAG_8021Q, 12), Tag::default()],
            ..fixture::backend_at(1, family)
        };
        let qinq = Backend { tag_count: 2, tags: [tag(TAG_8021AD, 20), tag(TAG_8021Q, 12)], ..in_vlan };
        let untagged = Backend { tag_count: 0, tags: [Tag::default(); 2], ..in_vlan };
        let kept = fixture::backend_at(1, family);
        let (q, ad) = (TAG_8021Q, TAG_8021AD);
        let rows: [(_, _, &[_]); 6] = [
            (in_vlan, 0, &[(q, 12)]),
            (in_vlan, 1, &[(q, 12)]),
            (qinq, 0, &[(ad, 20), (q, 12)]),
            (untagged, 2, &[]),
            (kept, 1, &[(ad, 100)]),
            (kept, 2, &[(ad, 100), (q, 101)]),
        ];
        for (number, (backend, client_tags, right)) in (0..).zip(rows) {
            let fixture = fixture::sending(FORWARD_NAT, FLAG_STRIP, backend);
            let token = fixture::token_number(number);
            let client = Packet { from: packet::client(number as u16), ..Packet::with_token(&token) };
            let client = client.tagged(client_tags).over(family);
            let exchange = Exchange::start(&mut program, fixture, client)?;
            let under = |tags: Vec<(u16, u16)>| Packet { tags, ..exchange.answer.clone() };
            let any_priority = right.iter().map(|(id, vlan)| (*id, vlan | 0xf000)).collect();
            let passing = [right.to_vec(), any_priority]
                .map(|tags| exchange.told("an answer", &under(tags), &exchange.to_client, Reason::Reply));
            in_turn(&mut program, passing)?;
            let mut wrong = vec![[right, &[(q, 1)]].concat()];
            for at in 0..right.len() {
                for (identifier, vlan) in
                    [(right[at].0, right[at].1 + 1), (right[at].0 ^ q ^ ad, right[at].1)]
                {
                    let mut tags = right.to_vec();
                    tags[at] = (identifier, vlan);
                    wrong.push(tags);
                }
                wrong.push([&right[..at], &right[at + 1..]].concat());
            }
            let forged = wrong.into_iter().map(|tags| {
                exchange.not_ours(format!("row {number}, an answer under {tags:x?}"), &under(tags))
            });
            in_turn(&mut program, forged)?;
        }
    }
    Ok(())
}

/// The answer of a backend that has left the service is dropped, and passes again once the backend is back.
#[test]
fn of_a_backend_that_is_gone() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let exchange = Exchange::of_default_client(&mut program, family)?;
        let Exchange { fixture: there, client, port, answer, .. } = &exchange;
        let passes = exchange.answered("an answer");
        passes.check(&mut program)?;
        let backend = there.backends[0];
        let other = fixture::backend_at(2, family);
        let with = |backends: Vec<Backend>| Fixture { backends, ..there.clone() };
        for (name, backends) in [
            ("no backend is left", vec![]),
            ("another has its index", vec![other]),
            ("another has its address", vec![Backend { backend_id: 7, ..backend }]),
            ("it has another address", vec![Backend { address_be: other.address_be, ..backend }]),
            ("it has another port", vec![Backend { port_be: 9, ..backend }]),
            ("this node has another address", vec![Backend { source_be: other.source_be, ..backend }]),
        ] {
            let refused = exchange.refused(name, answer, Reason::NoBackend).with_fixture(with(backends));
            // The second refusal uses the program's record of the first.
            in_turn(&mut program, [refused.clone(), refused, passes.clone()])?;
        }
        // Among other backends, with another index.
        let last = with(vec![other, Backend { backend_id: 3, ..other }, backend]);
        passes.clone().with_fixture(last).check(&mut program)?;
        let (at, service) = there.services[0];
        let others = [
            ("its service is gone", vec![]),
            ("another service is at its address", vec![(at, Service { id: 43, ..service })]),
            ("its address is gone", vec![there.services[1]]),
        ];
        // The first service is the one over IPv4.
        for (name, services) in others.into_iter().take(if family == Family::V4 { 3 } else { 1 }) {
            let fixture = Fixture { services, ..there.clone() };
            exchange.not_ours(name, answer).with_fixture(fixture).check(&mut program)?;
        }
        passes.check(&mut program)?;
        ensure!(translated(&mut program, "the client again", there, client)? == *port);
    }
    Ok(())
}

/// After two publications, the first bank is active again: an earlier check against it is repeated.
#[test]
fn every_publication_is_checked_against() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let exchange = Exchange::of_default_client(&mut program, family)?;
        let passes = exchange.answered("an answer");
        passes.check(&mut program)?;
        let with =
            |id| Fixture { backends: vec![fixture::backend_at(id, family)], ..exchange.fixture.clone() };
        // No answer comes between the two.
        program.enter(&with(2))?;
        let refused =
            exchange.refused("an answer", &exchange.answer, Reason::NoBackend).with_fixture(with(3));
        in_turn(&mut program, [refused, passes])?;
    }
    Ok(())
}

/// A revoked session gets no more answers, by any form of revocation.
#[test]
fn of_a_session_that_is_revoked() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let exchange = Exchange::of_default_client(&mut program, family)?;
        let Exchange { fixture: there, client, answer, .. } = &exchange;
        let nonce = u64::from_le_bytes(fixture::grant().nonce);
        let forever = there.now_ns + 3600 * SECOND_NS;
        let revoking = |kind, of| Fixture {
            revocations: vec![(RevocationKey { service_id: SERVICE_ID, kind, of }, forever)],
            ..there.clone()
        };
        let with_service = |change: &dyn Fn(&mut Service), mut fixture: Fixture| {
            fixture.services.iter_mut().for_each(|(_, service)| change(service));
            fixture
        };
        let issued_at = fixture::grant().issued_at;
        let before =
            |second| with_service(&|service: &mut Service| service.revoked_before = second, there.clone());
        let passes = exchange.answered("an answer");
        let rows = [
            ("the session", revoking(REVOKED_SESSION, SESSION)),
            ("its token", revoking(REVOKED_TOKEN, nonce)),
            ("all tokens of its age", before(issued_at + 1)),
        ];
        for (name, fixture) in rows {
            let refused =
                |packet| exchange.refused(name, packet, Reason::Revoked).with_fixture(fixture.clone());
            in_turn(&mut program, [passes.clone(), refused(answer), refused(answer), refused(client)])?;
            // If the datagrams of the session are delivered nevertheless, so are the answers.
            let observing = with_service(&|service| service.flags |= FLAG_OBSERVE, fixture);
            passes.clone().with_fixture(observing).check(&mut program)?;
        }
        for (name, fixture) in [
            ("another session", revoking(REVOKED_SESSION, SESSION + 1)),
            ("another token", revoking(REVOKED_TOKEN, nonce + 1)),
            ("a session of the token's number", revoking(REVOKED_SESSION, nonce)),
            ("all that is older", before(issued_at)),
        ] {
            passes.clone().named(name).with_fixture(fixture).check(&mut program)?;
        }
    }
    Ok(())
}

/// An answer in fragments goes to the client in fragments. Each is handled by itself; the first contains the checksum
/// of all.
#[test]
fn in_fragments() -> Result<()> {
    let mut program = Program::load()?;
    // Lengths of the whole payload: the last fragment has between one byte and the length of the others.
    for (family, len) in
        Family::BOTH.into_iter().flat_map(|family| [41, 48, 72, 73, 104, 500].map(|len| (family, len)))
    {
        for (checksum, tags) in
            [(UdpChecksum::Right, 0), (UdpChecksum::OffBy(0x1234), 1), (UdpChecksum::None, 2)]
        {
            if family == Family::V6 && checksum == UdpChecksum::None {
                continue;
            }
            let fixture = nat_fixture(FLAG_STRIP, family);
            let client = Packet::default().tagged(tags).over(family);
            program
                .translations()?
                .keys()
                .collect::<Result<Vec<_>, _>>()?
                .iter()
                .try_for_each(|key| program.translations()?.remove(key).context("a translation"))?;
            let exchange = Exchange::start(&mut program, fixture, client)?;
            let whole = |packet: Packet| Packet {
                payload: (0..len).map(|byte| byte as u8).collect(),
                udp_checksum: checksum,
                id: len as u16,
                ..packet
            };
            let [answer, to_client] =
                [&exchange.answer, &exchange.to_client].map(|packet| whole(packet.clone()));
            let fragments: Vec<_> = answer.fragments(32).into_iter().zip(to_client.fragments(32)).collect();
            ensure!(fragments.len() > 1);
            // All fragments, then the later ones again in reverse order.
            let numbers = (0..fragments.len()).chain((1..fragments.len()).rev());
            let passing = numbers.map(|number| {
                let (fragment, expected) = &fragments[number];
                let name = format!("{family}, {len} bytes, fragment {number}");
                exchange.told(name, fragment, expected, Reason::Reply)
            });
            in_turn(&mut program, passing)?;
            let last = Packet { ttl: 1, ..fragments[1].0.clone() };
            exchange.refused("with hop limit 1", &last, Reason::HopLimit).check(&mut program)?;
        }
    }
    Ok(())
}

/// A fragment passes only where a datagram would. A later fragment passes only after the first one, for one second.
#[test]
fn fragments_of_others() -> Result<()> {
    pin_to_cpu(0)?;
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let jiffies = program.jiffies()?;
        let at = |tenths: u64| Fixture {
            tick_ns: 1000 * SECOND_NS / jiffies + 1 + tenths,
            ..nat_fixture(FLAG_STRIP, family)
        };
        let exchange = Exchange::start(&mut program, at(0), Packet::default().over(family))?;
        let Exchange { fixture: there, client, answer, to_client, .. } = &exchange;
        let (fragments, expected) = (answer.fragments(16), to_client.fragments(16));
        let (first, second) = (&fragments[0], &fragments[1]);
        let in_vlan = |packet: &Packet| Packet { tags: vec![(TAG_8021Q, 5)], ..packet.clone() };
        let with_port = Packet { from: SocketAddr::new(first.from.ip(), 9001), ..first.clone() };
        let of_other = Packet { from: SocketAddr::new(client.from.ip(), 0), ..second.clone() };
        let later = exchange.told("a later one", second, &expected[1], Reason::Reply);
        let before_the_first = [
            ("a later one before the first", second.clone()),
            ("a first one of another port", with_port),
            ("behind that", second.clone()),
            ("a first one from another VLAN", in_vlan(first)),
            ("behind that", second.clone()),
        ];
        let after_the_first = [
            ("a later one from another VLAN", in_vlan(second)),
            ("one of another datagram", Packet { id: 7, ..second.clone() }),
            ("one of another sender", of_other),
            ("TCP's", Packet { protocol: Some(6), ..second.clone() }),
        ];
        let not_ours = |(name, packet): (&str, Packet)| exchange.not_ours(name, &packet);
        in_turn(&mut program, before_the_first.map(not_ours))?;
        exchange.told("the first", first, &expected[0], Reason::Reply).check(&mut program)?;
        in_turn(&mut program, after_the_first.map(not_ours))?;
        later.check(&mut program)?;
        let key = RevocationKey { service_id: SERVICE_ID, kind: REVOKED_SESSION, of: SESSION };
        let revoking = Fixture { revocations: vec![(key, there.now_ns + 3600 * SECOND_NS)], ..there.clone() };
        let gone = Fixture { backends: vec![fixture::backend_at(2, family)], ..there.clone() };
        for (name, fixture, reason) in [
            ("of a revoked session", revoking, Reason::Revoked),
            ("of a backend that is gone", gone, Reason::NoBackend),
        ] {
            let refused = |packet| exchange.refused(name, packet, reason).with_fixture(fixture.clone());
            in_turn(&mut program, [refused(first), refused(second)])?;
        }
        later.check(&mut program)?;
        // A tick that is a nanosecond longer advances the kernel's clock by more than four seconds.
        ensure!(jiffies > FRAGMENTS_TIMEOUT_NS);
        exchange.not_ours("a second later", second).with_fixture(at(1)).check(&mut program)?;
    }
    Ok(())
}

/// A datagram in a single (atomic) fragment (RFC 6946), and extension headers that the program does not skip.
#[test]
fn ipv6_fragment_headers() -> Result<()> {
    let mut program = Program::load()?;
    let exchange = Exchange::of_default_client(&mut program, Family::V6)?;
    let atomic = |packet: &Packet| Packet {
        extensions: vec![(packet::FRAGMENT_HEADER, packet::fragment_header(0, 0x77))],
        ..packet.clone()
    };
    let (answer, to_client) = (atomic(&exchange.answer), atomic(&exchange.to_client));
    let mut behind = answer.clone();
    behind.extensions.insert(0, (60, vec![0; 8]));
    let passes = exchange.told("an atomic one", &answer, &to_client, Reason::Reply);
    in_turn(&mut program, [passes, exchange.not_ours("behind options", &behind)])
}
