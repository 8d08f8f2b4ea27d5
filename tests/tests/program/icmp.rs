//! ICMP errors about a backend's answers: they go to the backend of the session whose answer they quote, or to this
//! host.

use anyhow::Result;
use lb_common::{
    reason::Reason,
    revocation::{REVOKED_SESSION, RevocationKey},
    service::{FLAG_RATED, FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_LOCAL, FORWARD_NAT, Service},
    session::Admission,
};
use lb_tests::model::{
    case::{Case, check_all},
    fixture::{self, ClassRate, Fixture, SERVICE_ID, SERVICE_INDEX, SESSION},
    forwarding,
    packet::{self, Family, Icmp, Packet, UDP_LEN, UdpChecksum},
    program::Program,
};

use crate::{
    forwarding::MODES,
    matrix::case_groups,
    proof::{self, TS},
};

/// A client that has sent no datagram.
const STRANGER: u16 = 77;

case_groups! {
    tied_to_a_session: "ICMP errors that quote a session" => tied_cases();
    not_tied: "ICMP messages that quote no session" => not_tied_cases();
}

/// A fixture whose default client has sent a datagram of the default session.
fn fixture(forward: u8, family: Family, backend: Family) -> Fixture {
    let admission = Admission { session_id: SESSION, ..Admission::default() };
    Fixture {
        flows: vec![(family.twin_at(fixture::CLIENT), SERVICE_INDEX, admission)],
        ..fixture::sending(forward, 0, fixture::backend_at(1, backend))
    }
}

/// An answer of a backend to the client.
fn answer() -> Packet {
    Packet {
        from: fixture::SERVICE,
        to: fixture::CLIENT,
        ttl: 33,
        ..Packet::with_payload(b"this is what the backend answers".to_vec())
    }
}

/// The errors of a family, by name.
fn errors(family: Family) -> Vec<(&'static str, Icmp)> {
    let of = |kind, code, rest| Icmp { kind, code, rest };
    match family {
        Family::V4 => vec![
            ("host unreachable", of(3, 1, [0; 4])),
            ("port unreachable", of(3, 3, [0; 4])),
            ("fragmentation needed, MTU 1400", of(3, 4, [0, 0, 0x05, 0x78])),
            ("time exceeded", of(11, 0, [0; 4])),
            ("parameter problem", of(12, 0, [8, 0, 0, 0])),
        ],
        Family::V6 => vec![
            ("no route", of(1, 0, [0; 4])),
            ("port unreachable", of(1, 4, [0; 4])),
            ("packet too big, MTU 1400", of(2, 0, [0, 0, 0x05, 0x78])),
            ("time exceeded", of(3, 0, [0; 4])),
            ("parameter problem", of(4, 1, [0, 0, 0, 6])),
        ],
    }
}

/// An error to the service's address that quotes the first bytes of a packet.
fn error(family: Family, message: Icmp, quoted: &Packet, len: usize) -> Packet {
    Packet::icmp_error(message, &quoted.clone().over(family).ip_packet(), len).over(family)
}

/// The minimum that an IPv4 router quotes: the IP header and eight bytes (RFC 792).
fn least(family: Family) -> usize {
    family.header_len() + UDP_LEN
}

/// An error about an answer to the default client.
pub fn unreachable(family: Family) -> Packet {
    let (_, unreachable) = errors(family)[1];
    error(family, unreachable, &answer(), least(family))
}

fn sent(name: String, fixture: Fixture, packet: &Packet) -> Case {
    let (service, backend) = (fixture.services[0].1, fixture.backends[0]);
    let mut sent = forwarding::leaving(packet, &service, &backend, SESSION, None);
    if service.forward == FORWARD_GUE {
        // Its checksum is not verified, so the outer UDP header has none.
        sent.udp_checksum = UdpChecksum::None;
    }
    Case::sent(name, fixture, packet, &sent, &backend, Reason::IcmpError)
}

/// Errors that are tied to a session.
pub fn tied_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (forward, mode, family, backend) in MODES {
        let fixture = fixture(forward, family, backend);
        for (name, message) in errors(family) {
            let packet = error(family, message, &answer(), least(family));
            cases.push(sent(format!("{name}: {mode}"), fixture.clone(), &packet));
        }
        let (_, unreachable) = errors(family)[1];
        let whole = error(family, unreachable, &answer(), usize::MAX);
        cases.push(sent(format!("an error that quotes all of the answer: {mode}"), fixture.clone(), &whole));
        for tags in 1..=2 {
            let packet = error(family, unreachable, &answer(), least(family)).tagged(tags);
            cases.push(sent(format!("an error under {tags} tags: {mode}"), fixture.clone(), &packet));
        }
    }
    cases
}

fn not_tied_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::BOTH {
        let fixture = fixture(FORWARD_L2, family, family);
        let (_, unreachable) = errors(family)[1];
        let mut pass = |name: &str, packet: Packet| {
            cases.push(Case::not_ours(name, fixture.clone(), &packet));
        };
        let quoting = |quoted: Packet| error(family, unreachable, &quoted, least(family));
        let with_port = |mut at: std::net::SocketAddr, port| {
            at.set_port(port);
            at
        };
        let elsewhere = std::net::SocketAddr::from(([203, 0, 113, 11], 7777));
        let echo = if family == Family::V4 { [8, 0] } else { [128, 129] };
        pass(
            "it quotes a client that sent nothing",
            quoting(Packet { to: packet::client(STRANGER), ..answer() }),
        );
        pass(
            "it quotes another port of the client",
            quoting(Packet { to: with_port(fixture::CLIENT, 40_001), ..answer() }),
        );
        pass(
            "it quotes another port of the service",
            quoting(Packet { from: with_port(fixture::SERVICE, 53), ..answer() }),
        );
        pass(
            "it quotes port 0 of the service",
            quoting(Packet { from: with_port(fixture::SERVICE, 0), ..answer() }),
        );
        pass("it quotes another address than it comes to", quoting(Packet { from: elsewhere, ..answer() }));
        pass(
            "it comes to another address than it quotes",
            Packet {
                to: elsewhere,
                ..Packet::icmp_error(unreachable, &answer().over(family).ip_packet(), least(family))
            }
            .over(family),
        );
        pass(
            "it quotes a datagram to the service",
            quoting(Packet { from: fixture::CLIENT, to: fixture::SERVICE, ..answer() }),
        );
        pass("it quotes TCP", quoting(Packet { protocol: Some(6), ..answer() }));
        pass("it quotes a later fragment", quoting(Packet { fragment: 9, ..answer() }));
        pass(
            "its quote ends before the ports",
            error(family, unreachable, &answer(), family.header_len() + 3),
        );
        pass(
            "its quote ends in the IP header",
            error(family, unreachable, &answer(), family.header_len() - 1),
        );
        pass("it quotes nothing", error(family, unreachable, &answer(), 0));
        for (name, destination_mac) in [
            ("it is in a frame for another station", [2, 0, 0, 0, 0, 2]),
            ("it is in a frame for all stations", [0xff; 6]),
        ] {
            pass(name, Packet { destination_mac, ..quoting(answer()) });
        }
        pass("it is a fragment", Packet { fragment: packet::MORE_FRAGMENTS, ..quoting(answer()) });
        for kind in echo {
            let message = Icmp { kind, code: 0, rest: [0, 1, 0, 2] };
            let name = if kind == echo[0] { "an echo request" } else { "an echo reply" };
            pass(name, error(family, message, &answer(), usize::MAX));
        }
        let other_family = match family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        let quoted = answer().over(other_family).ip_packet();
        pass(
            "it quotes a packet of the other family",
            Packet::icmp_error(unreachable, &quoted, usize::MAX).over(family),
        );
        if family == Family::V4 {
            pass("a redirect", quoting_as(Icmp { kind: 5, code: 1, rest: [10, 0, 0, 1] }));
            pass("a source quench", quoting_as(Icmp { kind: 4, code: 0, rest: [0; 4] }));
            pass("it quotes a packet with options", quoting(Packet { options: vec![1; 4], ..answer() }));
            pass("it has IP options", Packet { options: vec![1; 4], ..quoting(answer()) });
        }
    }
    for (forward, mode) in [(FORWARD_LOCAL, "local"), (FORWARD_NAT, "nat, without a translation")] {
        for family in Family::BOTH {
            let (_, unreachable) = errors(family)[1];
            let packet = error(family, unreachable, &answer(), usize::MAX);
            let name = format!("it quotes a session's answer, which this host sent: {mode}");
            cases.push(Case::not_ours(name, fixture(forward, family, family), &packet));
        }
    }
    cases
}

fn quoting_as(message: Icmp) -> Packet {
    error(Family::V4, message, &answer(), least(Family::V4))
}

/// An ICMP error is never answered with an ICMP error (RFC 1122 §3.2.2, RFC 4443 §2.4 e).
#[test]
fn too_big_errors_are_dropped_in_silence() -> Result<()> {
    let mut cases = Vec::new();
    for family in Family::BOTH {
        let mut fixture = fixture(FORWARD_IPIP, family, family);
        fixture.backends[0].mtu = 1300;
        let (_, unreachable) = errors(family)[1];
        let long = Packet { payload: vec![0xd7; 1300], ..answer() };
        let mut packet = error(family, unreachable, &long, usize::MAX);
        packet.fragment = packet::DONT_FRAGMENT;
        cases.push(Case::refused("an error that is too big", fixture, &packet, Reason::TooBig));
    }
    crate::check_each(&cases)
}

/// Only a verified datagram creates a flow.
#[test]
fn a_datagram_ties_errors_to_its_session() -> Result<()> {
    let mut program = Program::load()?;
    for (number, family) in (0..).zip(Family::BOTH) {
        let from = packet::client(number);
        let fixture = Fixture { flows: vec![], ..fixture(FORWARD_L2, family, family) };
        let backend = fixture.backends[0];
        let (_, unreachable) = errors(family)[1];
        let packet = error(family, unreachable, &Packet { to: from, ..answer() }, least(family));
        let not_yet = Case::not_ours("an error before any datagram", fixture.clone(), &packet);
        let refused = Packet { from, ..Packet::with_payload(vec![0; 64]) }.over(family);
        let refused = Case::refused("a datagram without a token", fixture.clone(), &refused, Reason::NoToken);
        let valid = Packet { from, ..Packet::default() }.over(family);
        let valid = Case::sent("valid", fixture.clone(), &valid, &valid, &backend, Reason::Forwarded);
        let tied = sent("an error after a datagram".into(), fixture.clone(), &packet);
        // The token is verified by HMAC and refused: its entry ties no errors.
        let key = RevocationKey { service_id: SERVICE_ID, kind: REVOKED_SESSION, of: SESSION };
        let revoking = Fixture { revocations: vec![(key, fixture.now_ns + 1)], ..fixture };
        let revoked = Packet { from, ..Packet::default() }.over(family);
        let revoked = Case::refused("a revoked session", revoking, &revoked, Reason::Revoked);
        check_all(&mut program, &[not_yet.clone(), refused, not_yet.clone(), revoked, not_yet, valid, tied])?;
    }
    Ok(())
}

/// A datagram with a correct token that is refused for its use creates no flow either. An error itself uses no part of
/// a limit.
#[test]
fn only_what_passes_ties_errors_to_its_session() -> Result<()> {
    let mut program = Program::load()?;
    let rate = ClassRate { class: 1, per_second: 1, burst: 2 };
    for (number, family) in (0..).zip(Family::BOTH) {
        program.forget()?;
        let backend = fixture::backend_at(1, family);
        let service = Service { max_sources: 1, flags: FLAG_RATED, ..fixture::proving() };
        let fixture =
            Fixture { rates: vec![rate], backends: vec![backend], ..Fixture::with_service(service) };
        let (_, unreachable) = errors(family)[1];
        let from = |port, seq| {
            let mut packet = Packet::with_proof(&fixture::key().proof(&fixture::grant()), seq, TS);
            packet.from = packet::client(number);
            packet.from.set_port(port);
            packet.over(family)
        };
        let valid = |packet: &Packet| {
            Case::sent("valid", fixture.clone(), packet, packet, &backend, Reason::Forwarded)
        };
        let refused =
            |packet: &Packet, reason: Reason| Case::refused(reason.name(), fixture.clone(), packet, reason);
        let about =
            |port| error(family, unreachable, &Packet { to: from(port, 0).from, ..answer() }, least(family));
        let untied = |port| Case::not_ours("an error about what was refused", fixture.clone(), &about(port));
        let tied = |port| sent("an error about what passed".into(), fixture.clone(), &about(port));
        let mut elsewhere = from(4, 4);
        elsewhere.from.set_ip(packet::client(number + 100).ip());
        let elsewhere = elsewhere.over(family);
        let error_elsewhere =
            error(family, unreachable, &Packet { to: elsewhere.from, ..answer() }, least(family));
        let cases = [
            refused(&proof::forged(&from(1, 1)), Reason::BadProof),
            untied(1),
            valid(&from(1, 1)),
            tied(1),
            refused(&from(2, 1), Reason::Replay),
            untied(2),
            refused(&elsewhere, Reason::TooManySources),
            Case::not_ours("an error about what was refused", fixture.clone(), &error_elsewhere),
            tied(1),
            valid(&from(3, 3)),
            tied(3),
            refused(&from(5, 5), Reason::RateLimited),
            untied(5),
            tied(1),
            tied(3),
        ];
        check_all(&mut program, &cases)?;
    }
    Ok(())
}
