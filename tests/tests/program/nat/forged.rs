//! Forged ICMP errors about datagrams that left a port of this node.

use anyhow::{Context as _, Result, ensure};
use lb_common::{control::SECOND_NS, reason::Reason, service::FLAG_STRIP};
use lb_tests::model::{
    case::Case,
    fixture::Fixture,
    packet::{self, Family, Icmp, Packet, TAG_8021Q},
    program::{Program, pin_to_cpu},
};

use super::exchange::{Exchange, found, nat_fixture, no_port, with_cookie};

/// A datagram that left for the backend, and an error about it as the client receives it.
struct Left {
    datagram: Packet,
    to_client: Packet,
    client: Packet,
    cookie: u32,
}

fn port_unreachable(family: Family) -> Icmp {
    let (kind, code) = if family == Family::V4 { (3, 3) } else { (1, 4) };
    Icmp { kind, code, rest: [0; 4] }
}

/// An error that a backend's host sends about a packet.
fn about(packet: &Packet) -> Packet {
    let family = packet.family();
    let quoted = packet.ip_packet();
    let error = Packet::icmp_error(port_unreachable(family), &quoted, quoted.len()).over(family);
    Packet { from: no_port(packet.to), to: no_port(packet.from), ..error }
}

fn left(program: &mut Program, fixture: &Fixture, client: Packet) -> Result<Left> {
    let Exchange { client, answer, .. } = Exchange::start(program, fixture.clone(), client)?;
    let (_, translation) = found(program, fixture, client.from)?.context("a translation")?;
    let sent = client.clone().stripped().hop();
    let datagram =
        with_cookie(Packet { from: answer.to, to: answer.from, ..sent.clone() }, translation.cookie);
    let to_client = Packet {
        destination_mac: client.source_mac,
        source_mac: client.destination_mac,
        from: no_port(client.to),
        to: no_port(client.from),
        ..about(&with_cookie(sent, 0)).hop()
    };
    Ok(Left { datagram, to_client, client, cookie: translation.cookie })
}

/// An error must quote the datagram exactly as it left.
#[test]
fn what_left_must_be_quoted() -> Result<()> {
    pin_to_cpu(0)?;
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let fixture = nat_fixture(FLAG_STRIP, family);
        let bits = if family == Family::V4 { 16 } else { 20 };
        for bit in 0..bits {
            program.renew()?;
            let left = left(&mut program, &fixture, Packet::default().over(family))?;
            let told = Case::answered(
                "right",
                fixture.clone(),
                &about(&left.datagram),
                &left.to_client,
                Reason::IcmpError,
            );
            told.check(&mut program)?;
            let forged = with_cookie(left.datagram.clone(), left.cookie ^ 1 << bit);
            Case::not_ours(format!("bit {bit}"), fixture.clone(), &about(&forged)).check(&mut program)?;
            told.check(&mut program)?;
            let elsewhere = Packet { tags: vec![(TAG_8021Q, 5)], ..about(&left.datagram) };
            Case::not_ours("another VLAN", fixture.clone(), &elsewhere).check(&mut program)?;
            told.check(&mut program)?;
        }
    }
    Ok(())
}

/// Two clients have different cookies, and a client gets a new cookie each time its translation is created.
#[test]
fn cookies_differ() -> Result<()> {
    let mut program = Program::load()?;
    let fixture = nat_fixture(FLAG_STRIP, Family::V4);
    let mut cookies = std::collections::BTreeSet::new();
    for _ in 0..20 {
        program.renew()?;
        cookies.insert(left(&mut program, &fixture, Packet::default())?.cookie);
    }
    ensure!(cookies.len() > 18, "{cookies:x?}");
    Ok(())
}

/// Guesses are limited: after many wrong guesses, the correct one is refused, too, until time has passed.
#[test]
fn guesses_are_rationed() -> Result<()> {
    pin_to_cpu(0)?;
    let mut program = Program::load()?;
    for family in Family::BOTH {
        program.renew()?;
        let jiffies = program.jiffies()?;
        let at = |step| Fixture {
            tick_ns: 1000 * SECOND_NS / jiffies + 1 + step,
            ..nat_fixture(FLAG_STRIP, family)
        };
        let left = left(&mut program, &at(0), Packet::default().over(family))?;
        let told = |fixture| {
            let (about, to_client) = (about(&left.datagram), &left.to_client);
            Case::answered("a right one", fixture, &about, to_client, Reason::IcmpError)
        };
        let forged = |guess: u32| about(&with_cookie(left.datagram.clone(), left.cookie ^ guess));
        // The burst is the budget of a tenth of a second; the clock hardly advances meanwhile.
        for guess in 1..=10 {
            told(at(0)).check(&mut program)?;
            Case::not_ours("a guess", at(0), &forged(guess)).check(&mut program)?;
        }
        for guess in 11..1000 {
            Case::not_ours("one guess more", at(0), &forged(guess)).check(&mut program)?;
        }
        Case::not_ours("the right one", at(0), &about(&left.datagram)).check(&mut program)?;
        told(at(1)).check(&mut program)?;
    }
    Ok(())
}

/// A datagram that routers may fragment has no space for a cookie, so errors about it are not forwarded.
#[test]
fn what_may_be_fragmented_has_no_errors() -> Result<()> {
    let mut program = Program::load()?;
    let fixture = nat_fixture(FLAG_STRIP, Family::V4);
    for fragment in [0, packet::DONT_FRAGMENT | packet::MORE_FRAGMENTS] {
        let left = left(&mut program, &fixture, Packet { fragment: 0, ..Packet::default() })?;
        ensure!(left.datagram.id == left.client.id, "its identification is another");
        let quoted = Packet { fragment, id: left.cookie as u16, ..left.datagram };
        Case::not_ours(format!("{fragment:04x}"), fixture.clone(), &about(&quoted)).check(&mut program)?;
    }
    Ok(())
}
