//! Which answers pass: from the VLAN of the backend, while it and the session are good, whole or in fragments.

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    backend::{Backend, Tag},
    live::SECOND_NS,
    nat::FRAGMENTS_TIMEOUT_NS,
    reason::Reason,
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    service::{FLAG_OBSERVE, FLAG_STRIP, FORWARD_NAT, Service},
};
use lb_tests::model::{
    case::Case,
    fixture::{self, Fixture, SERVICE_ID, SESSION},
    packet::{self, Family, Packet, TAG_8021AD, TAG_8021Q, UdpChecksum},
    program::{Program, pin_to_cpu},
};

use super::{nat_fixture, reply, translated};

/// A client's port, what its backend answers, and what the client gets of it.
fn asked(program: &mut Program, fixture: &Fixture, client: &Packet) -> Result<(u16, Packet, Packet)> {
    let port = translated(program, "a client", fixture, client)?;
    let (answer, to_client) = reply(fixture, client, port);
    Ok((port, answer, to_client))
}

/// An answer comes in the VLAN of the way to its backend, whatever its priority.
#[test]
fn from_another_vlan() -> Result<()> {
    let mut program = Program::load()?;
    let tag = |identifier: u16, control: u16| Tag {
        identifier_be: identifier.to_be(),
        control_be: control.to_be(),
    };
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
            let (_, answer, to_client) = asked(&mut program, &fixture, &client)?;
            let under = |tags: Vec<(u16, u16)>| Packet { tags, ..answer.clone() };
            let pass = |tags: Vec<(u16, u16)>| {
                Case::answered("an answer", fixture.clone(), &under(tags), &to_client, Reason::Reply)
            };
            pass(right.to_vec()).check(&mut program)?;
            pass(right.iter().map(|(id, vlan)| (*id, vlan | 0xf000)).collect()).check(&mut program)?;
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
            for tags in wrong {
                let name = format!("row {number}, an answer under {tags:x?}");
                Case::not_ours(name, fixture.clone(), &under(tags)).check(&mut program)?;
            }
        }
    }
    Ok(())
}

/// An answer of a backend that is none any more is dropped, and passes again once it is one again.
#[test]
fn of_a_backend_that_is_gone() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let there = nat_fixture(FLAG_STRIP, family);
        let client = Packet::default().over(family);
        let (port, answer, to_client) = asked(&mut program, &there, &client)?;
        let passes = Case::answered("an answer", there.clone(), &answer, &to_client, Reason::Reply);
        passes.check(&mut program)?;
        let backend = there.backends[0];
        let other = fixture::backend_at(2, family);
        let named = Backend { backend_id: 7, ..backend };
        let moved = Backend { address_be: other.address_be, ..backend };
        let with = |backends: Vec<Backend>| Fixture { backends, ..there.clone() };
        for (name, fixture) in [
            ("no backend is left", with(vec![])),
            ("another is in its place", with(vec![other])),
            ("another has its address", with(vec![named])),
            ("it has another address", with(vec![moved])),
            ("it has another port", with(vec![Backend { port_be: 9, ..backend }])),
            ("this node has another address", with(vec![Backend { source_be: other.source_be, ..backend }])),
        ] {
            let refused = Case::refused(name, fixture.clone(), &answer, Reason::NoBackend);
            refused.check(&mut program)?;
            // And each that follows.
            refused.check(&mut program)?;
            passes.check(&mut program)?;
        }
        // Beside others, at another place among them.
        let last = with(vec![other, Backend { backend_id: 3, ..other }, backend]);
        passes.clone().with_fixture(last).check(&mut program)?;
        let without_service = Fixture { services: vec![], ..there.clone() };
        Case::not_ours("its service is gone", without_service, &answer).check(&mut program)?;
        let (at, service) = there.services[0];
        let successor = Fixture { services: vec![(at, Service { id: 43, ..service })], ..there.clone() };
        let at_other_family = Fixture { services: vec![there.services[1]], ..there.clone() };
        if family == Family::V4 {
            Case::not_ours("another service is in its place", successor, &answer).check(&mut program)?;
            Case::not_ours("its address is gone", at_other_family, &answer).check(&mut program)?;
        }
        passes.check(&mut program)?;
        ensure!(translated(&mut program, "the client again", &there, &client)? == port);
    }
    Ok(())
}

/// Two publications bring the first half back: what was checked against the state before counts no more.
#[test]
fn every_publication_is_checked_against() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let there = nat_fixture(FLAG_STRIP, family);
        let client = Packet::default().over(family);
        let (_, answer, to_client) = asked(&mut program, &there, &client)?;
        let passes = Case::answered("an answer", there.clone(), &answer, &to_client, Reason::Reply);
        passes.check(&mut program)?;
        let gone = Fixture { backends: vec![fixture::backend_at(2, family)], ..there.clone() };
        // Nobody answers between the two.
        program.enter(&gone)?;
        let gone_for_good = Fixture { backends: vec![fixture::backend_at(3, family)], ..there.clone() };
        Case::refused("an answer", gone_for_good, &answer, Reason::NoBackend).check(&mut program)?;
        passes.check(&mut program)?;
    }
    Ok(())
}

/// A session that is revoked gets no answers any more, whoever revoked it and how.
#[test]
fn of_a_session_that_is_revoked() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let there = nat_fixture(FLAG_STRIP, family);
        let client = Packet::default().over(family);
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
        let (_, answer, to_client) = asked(&mut program, &there, &client)?;
        let passes = Case::answered("an answer", there.clone(), &answer, &to_client, Reason::Reply);
        let rows = [
            ("the session", revoking(REVOKED_SESSION, SESSION)),
            ("its token", revoking(REVOKED_TOKEN, nonce)),
            ("all tokens of its age", before(issued_at + 1)),
        ];
        for (name, fixture) in rows {
            passes.check(&mut program)?;
            let refused = Case::refused(name, fixture.clone(), &answer, Reason::Revoked);
            refused.check(&mut program)?;
            refused.check(&mut program)?;
            Case::refused(name, fixture.clone(), &client, Reason::Revoked).check(&mut program)?;
            // Where its datagrams are delivered all the same, so are their answers.
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

/// An answer in fragments goes to the client in fragments, each by itself; in its first is the checksum of all.
#[test]
fn in_fragments() -> Result<()> {
    let mut program = Program::load()?;
    // Lengths of the whole payload: the last fragment has from one byte to as many as the others.
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
            let (_, answer, to_client) = asked(&mut program, &fixture, &client)?;
            let whole = |packet: Packet| Packet {
                payload: (0..len).map(|byte| byte as u8).collect(),
                udp_checksum: checksum,
                id: len as u16,
                ..packet
            };
            let (answer, to_client) = (whole(answer), whole(to_client));
            let fragments: Vec<_> = answer.fragments(32).into_iter().zip(to_client.fragments(32)).collect();
            ensure!(fragments.len() > 1);
            for (number, (fragment, expected)) in fragments.iter().enumerate() {
                let name = format!("{family}, {len} bytes, fragment {number}");
                Case::answered(name, fixture.clone(), fragment, expected, Reason::Reply)
                    .check(&mut program)?;
            }
            // The later ones in another order, and once more.
            for (fragment, expected) in fragments[1..].iter().rev() {
                let name = format!("{family}, {len} bytes, backwards");
                Case::answered(name, fixture.clone(), fragment, expected, Reason::Reply)
                    .check(&mut program)?;
            }
            let last = Packet { ttl: 1, ..fragments[1].0.clone() };
            Case::refused("with hop limit 1", fixture.clone(), &last, Reason::HopLimit)
                .check(&mut program)?;
        }
    }
    Ok(())
}

/// A fragment passes only where a datagram would, and a later one only behind its first, for a second.
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
        let there = at(0);
        let client = Packet::default().over(family);
        let (_, answer, to_client) = asked(&mut program, &there, &client)?;
        let (fragments, expected) = (answer.fragments(16), to_client.fragments(16));
        let not_ours = |name: &str, packet: Packet| Case::not_ours(name, there.clone(), &packet);
        not_ours("a later one before the first", fragments[1].clone()).check(&mut program)?;
        let mut forged = fragments[0].clone();
        forged.from.set_port(9001);
        not_ours("a first one of another port", forged).check(&mut program)?;
        not_ours("behind that", fragments[1].clone()).check(&mut program)?;
        let elsewhere = Packet { tags: vec![(TAG_8021Q, 5)], ..fragments[0].clone() };
        not_ours("a first one from another VLAN", elsewhere).check(&mut program)?;
        not_ours("behind that", fragments[1].clone()).check(&mut program)?;
        Case::answered("the first", there.clone(), &fragments[0], &expected[0], Reason::Reply)
            .check(&mut program)?;
        let elsewhere = Packet { tags: vec![(TAG_8021Q, 5)], ..fragments[1].clone() };
        not_ours("a later one from another VLAN", elsewhere).check(&mut program)?;
        not_ours("one of another datagram", Packet { id: 7, ..fragments[1].clone() }).check(&mut program)?;
        let other = std::net::SocketAddr::new(client.from.ip(), 0);
        not_ours("one of another sender", Packet { from: other, ..fragments[1].clone() })
            .check(&mut program)?;
        not_ours("TCP's", Packet { protocol: Some(6), ..fragments[1].clone() }).check(&mut program)?;
        let later = Case::answered("a later one", there.clone(), &fragments[1], &expected[1], Reason::Reply);
        later.check(&mut program)?;
        let forever = there.now_ns + 3600 * SECOND_NS;
        let key = RevocationKey { service_id: SERVICE_ID, kind: REVOKED_SESSION, of: SESSION };
        let revoking = Fixture { revocations: vec![(key, forever)], ..there.clone() };
        for fragment in &fragments[..2] {
            Case::refused("of a revoked session", revoking.clone(), fragment, Reason::Revoked)
                .check(&mut program)?;
        }
        let gone = Fixture { backends: vec![fixture::backend_at(2, family)], ..there.clone() };
        for fragment in &fragments[..2] {
            Case::refused("of a backend that is gone", gone.clone(), fragment, Reason::NoBackend)
                .check(&mut program)?;
        }
        later.check(&mut program)?;
        // A tick that is longer by a nanosecond makes four seconds and some of the kernel's clock.
        ensure!(jiffies > FRAGMENTS_TIMEOUT_NS);
        Case::not_ours("a second later", at(1), &fragments[1]).check(&mut program)?;
    }
    Ok(())
}

/// A datagram whose only fragment says that it is one (RFC 6946), and extension headers that are not looked through.
#[test]
fn ipv6_fragment_headers() -> Result<()> {
    let mut program = Program::load()?;
    let fixture = nat_fixture(FLAG_STRIP, Family::V6);
    let client = Packet::default().over(Family::V6);
    let (_, answer, to_client) = asked(&mut program, &fixture, &client)?;
    let atomic = |packet: &Packet| Packet {
        extensions: vec![(packet::FRAGMENT_HEADER, packet::fragment_header(0, 0x77))],
        ..packet.clone()
    };
    Case::answered("an atomic one", fixture.clone(), &atomic(&answer), &atomic(&to_client), Reason::Reply)
        .check(&mut program)?;
    let mut behind = atomic(&answer);
    behind.extensions.insert(0, (60, vec![0; 8]));
    Case::not_ours("behind options", fixture, &behind).check(&mut program)
}
