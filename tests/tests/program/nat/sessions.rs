//! Ownership of ports: a session, or a source in observe mode, holds a limited number of ports.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};
use lb_common::{
    control::SECOND_NS,
    nat::{Owner, PER_SESSION_DEFAULT, Ports},
    reason::Reason,
    service::{FLAG_OBSERVE, FLAG_STRIP},
};
use lb_tests::model::{
    case::Case,
    fixture::{self, Fixture, SESSION},
    packet::{self, Family, Packet},
    program::{Program, Verdict, at_scale, small},
};
use tollgate::datapath::Options;

use super::exchange::{Exchange, key, nat_fixture, translated};

/// Capacity for as many clients as an attacker has source ports.
fn program(nat_ports_per_session: u32) -> Result<Program> {
    let nat_ports = Some(Ports { first: 10_000, last: 29_999 });
    Program::load_with(&Options { nat_ports, nat_ports_per_session, sessions: 65_536, ..small() })
}

/// How many ports each owner has.
fn held(program: &Program) -> Result<BTreeMap<(u64, u32), u32>> {
    let mut held = BTreeMap::new();
    for entry in &program.translations()? {
        let (_, translation) = entry?;
        *held.entry((translation.owner.of, translation.owner.kind)).or_default() += 1;
    }
    Ok(held)
}

/// Sends a packet from 20,000 source ports; each must leave.
fn from_every_port(program: &Program, packet: &Packet, mut host: impl FnMut(u16) -> IpAddr) -> Result<()> {
    for port in 1..=at_scale(20_000) as u16 {
        let from = SocketAddr::new(host(port), port);
        let verdict = program.run(&Packet { from, ..packet.clone() }.bytes())?.verdict;
        ensure!(verdict == Verdict::Transmit, "from port {port}: {verdict:?}");
    }
    Ok(())
}

/// One token from one address and 20,000 ports does not take the ports of others.
#[test]
fn a_session_has_so_many_ports() -> Result<()> {
    for (family, limit) in Family::BOTH.into_iter().zip([PER_SESSION_DEFAULT, 3]) {
        let mut program = program(limit)?;
        let fixture = nat_fixture(FLAG_STRIP, family);
        program.enter(&fixture)?;
        let packet = Packet::default().over(family);
        from_every_port(&program, &packet, |_| packet.from.ip())?;
        let of_session = Owner::session(fixture::SERVICE_ID, SESSION);
        let only = BTreeMap::from([((of_session.of, of_session.kind), limit)]);
        ensure!(held(&program)? == only, "{:?} instead of {only:?}", held(&program)?);
        for number in 1..=1000 {
            let client = Packet::with_token(&fixture::token_number(number)).over(family);
            ensure!(program.run(&client.bytes())?.verdict == Verdict::Transmit, "session {number}");
        }
        ensure!(held(&program)?.len() == 1001 && held(&program)?.values().sum::<u32>() == 1000 + limit);
    }
    Ok(())
}

/// In observe mode, a packet without a token belongs to its source: an IPv4 address, or the first half of an IPv6
/// address.
#[test]
fn a_source_that_is_observed_has_so_many_ports() -> Result<()> {
    for family in Family::BOTH {
        let mut program = program(PER_SESSION_DEFAULT)?;
        let fixture = nat_fixture(FLAG_OBSERVE, family);
        program.enter(&fixture)?;
        let packet = Packet::with_payload(b"no token".to_vec()).over(family);
        from_every_port(&program, &packet, |port| match packet.from.ip() {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) ^ u128::from(port)).into()),
            address => address,
        })?;
        ensure!(held(&program)?.into_values().eq([PER_SESSION_DEFAULT]), "{:?}", held(&program)?);
        for number in 0..1000 {
            let other = Packet { from: packet::client(number), ..packet.clone() }.over(family);
            ensure!(program.run(&other.bytes())?.verdict == Verdict::Transmit, "source {number}");
        }
        ensure!(held(&program)?.len() == 1001, "{family}: {:x?}", held(&program)?);
        // The id of a session is distinct from a source, even if it looks like an address.
        let source = held(&program)?.into_keys().next().map_or(0, |(of, _)| of);
        let before = held(&program)?;
        let valid = Packet::with_token(&fixture::token_number(source)).over(family);
        ensure!(program.run(&valid.bytes())?.verdict == Verdict::Transmit);
        ensure!(held(&program)?.len() == before.len() + 1, "the session is taken for a source");
    }
    Ok(())
}

/// A session at its limit reuses the port that has been idle longest; its other clients keep their ports.
#[test]
fn the_oldest_is_reused() -> Result<()> {
    for family in Family::BOTH {
        let mut program = program(PER_SESSION_DEFAULT)?;
        let fixture = nat_fixture(FLAG_STRIP, family);
        program.enter(&fixture)?;
        let now = program.start_clock(fixture.now_ns)?;
        let client = |number| Packet { from: packet::client(number), ..Packet::default() }.over(family);
        let mut ports = Vec::new();
        for number in 0..PER_SESSION_DEFAULT as u16 {
            let (port, mut entry) = run(&program, &fixture, &client(number))?;
            // The fourth port is the oldest, then the following ones, cyclically.
            entry.used_at_ns = now - SECOND_NS * (10 - u64::from((number + 5) % 8));
            program.translations()?.insert(key(&fixture, port), entry, 0)?;
            ports.push(port);
        }
        for (number, oldest) in (100..103).zip([3, 4, 5]) {
            let (port, _) = run(&program, &fixture, &client(number))?;
            ensure!(port == ports[oldest], "{port}, but {} is the oldest of {ports:?}", ports[oldest]);
        }
        for number in [6, 7, 0, 1, 2] {
            let (port, _) = run(&program, &fixture, &client(number as u16))?;
            ensure!(port == ports[number], "client {number} has moved from {} to {port}", ports[number]);
        }
    }
    Ok(())
}

/// Runs the program on a datagram, which must leave; returns port and translation of its client.
fn run(program: &Program, fixture: &Fixture, packet: &Packet) -> Result<(u16, lb_common::nat::Translation)> {
    ensure!(program.run(&packet.bytes())?.verdict == Verdict::Transmit);
    let found = super::exchange::found(program, fixture, packet.from)?;
    found.ok_or_else(|| anyhow::anyhow!("{} has no translation", packet.from))
}

/// All probed ports but one are taken by others: all clients of a session share this port.
#[test]
fn the_last_port_is_shared_within_a_session() -> Result<()> {
    let one_port = Ports { first: 40_000, last: 40_000 };
    let mut program = Program::load_with(&Options { nat_ports: Some(one_port), ..small() })?;
    for family in Family::BOTH {
        let fixture = nat_fixture(FLAG_STRIP, family);
        program.enter(&fixture)?;
        for number in 0..3 {
            let packet = Packet { from: packet::client(number), ..Packet::default() }.over(family);
            ensure!(run(&program, &fixture, &packet)?.0 == one_port.first);
        }
        let other = Packet::with_token(&fixture::token_number(1)).over(family);
        Case::refused("another session", fixture, &other, Reason::NatPorts).check(&mut program)?;
    }
    Ok(())
}

/// A client that sends from time to time keeps its translation, until five minutes after its last datagram.
#[test]
fn what_is_used_lasts() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let jiffies = program.jiffies()?;
        let at = |seconds: u64| Fixture {
            // A tick that is a nanosecond longer advances the kernel's clock by more than four seconds.
            tick_ns: (seconds + 1000) * SECOND_NS / jiffies + 1,
            ..nat_fixture(FLAG_STRIP, family)
        };
        let exchange = Exchange::start(&mut program, at(0), Packet::default().over(family))?;
        let answered = |fixture| exchange.answered("an answer").with_fixture(fixture);
        for seconds in [200, 400, 600, 800] {
            let name = format!("a datagram after {seconds} s");
            let port = translated(&mut program, &name, &at(seconds), &exchange.client)?;
            ensure!(port == exchange.port, "{name}");
            answered(at(seconds + 150)).check(&mut program)?;
        }
        answered(at(800 + 290)).check(&mut program)?;
        exchange
            .not_ours("five minutes after the last", &exchange.answer)
            .with_fixture(at(800 + 310))
            .check(&mut program)?;
    }
    Ok(())
}

/// A token that is renewed within a session keeps its client's port.
#[test]
fn a_renewed_token_keeps_its_port() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let fixture = nat_fixture(FLAG_STRIP, family);
        let client = Packet::default().over(family);
        let port = translated(&mut program, "a token", &fixture, &client)?;
        let grant = lb_common::token::mint::Grant { nonce: *b"another!", ..fixture::grant() };
        let renewed = Packet::with_token(&fixture::key().bearer(&grant)).over(family);
        ensure!(translated(&mut program, "another of its session", &fixture, &renewed)? == port);
    }
    Ok(())
}
