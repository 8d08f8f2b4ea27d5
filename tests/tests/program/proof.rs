//! Step 8: PROOF tokens. Every packet proves that its sender has the session key.

use std::net::Ipv4Addr;

use anyhow::Result;
use lb_common::{
    reason::Reason,
    service::Service,
    session::REPLAY_WINDOW,
    token::{
        header::LEN,
        mint::{Grant, Prefix, ProofToken},
    },
};
use lb_tests::model::{
    case::{Case, both, check_all},
    fixture::{self, Fixture, SESSION},
    oracle::Model,
    packet::{APPLICATION_DATA, Family, Packet},
    program::Program,
};

use crate::matrix::case_groups;

/// Milliseconds from the issue of the default token to the default time.
pub const TS: u32 = 10_000;

case_groups! {
    proofs: "The proof of a packet" => [both(|_| proof_cases()), both(bound)].concat();
    payloads: "The part of the payload that a proof covers" => both(|_| payload_cases());
    freshness: "The age of a proof" => both(|_| freshness_cases());
    replays: "Replayed proofs" => both(|_| replay_cases());
}

/// Random sequence numbers around the window: a number passes if it is new and not too old.
#[test]
fn a_window_is_exact() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(8);
    let fixture = fixture();
    let (mut model, mut highest) = (Model::default(), 0_u32);
    let token = fixture::proof_number(8);
    let cases: Vec<Case> = (0..6000)
        .map(|number| {
            let seq = match random.u8(..4) {
                0 => highest.saturating_add(random.u32(..40)),
                // Far ahead: every word of the window belongs to another block.
                1 if number % 500 == 0 => highest.saturating_add(random.u32(..2000)),
                _ => highest.saturating_sub(random.u32(..600)),
            };
            highest = highest.max(seq);
            let frame = Packet::with_proof(&token, seq, TS).over(Family::BOTH[number % 2]).bytes();
            let expected = model.judge(&fixture, &frame);
            Case::of_frame(format!("packet {number}, seq {seq}"), fixture.clone(), frame, expected)
        })
        .collect();
    let passed = cases.iter().filter(|case| case.expected.reason == Reason::Forwarded).count();
    assert!((1000..5000).contains(&passed), "{passed} pass");
    check_all(&mut Program::load()?, &cases)
}

/// A session key is derived once, whatever packets arrive with its token.
#[test]
fn a_key_is_derived_once() -> Result<()> {
    let mut program = Program::load()?;
    let token = fixture::proof_number(1);
    for seq in 0..5 {
        forwarded("a proof", 1, &Packet::with_proof(&token, seq, TS)).check(&mut program)?;
        refused("a wrong proof", &forged(&Packet::with_proof(&token, seq + 1, TS)), Reason::BadProof)
            .check(&mut program)?;
        assert_eq!(program.hmacs()?, 1);
    }
    assert_eq!(program.remembered()?, 1);
    Ok(())
}

/// The default fixture, where PROOF tokens are accepted, too.
pub fn fixture() -> Fixture {
    Fixture::with_service(fixture::proving())
}

/// A packet of a session that passes.
pub fn forwarded(name: &str, session: u64, packet: &Packet) -> Case {
    let backend = fixture().picked(session);
    Case::sent(name, fixture(), packet, &packet.clone().stripped(), &backend, Reason::Forwarded)
}

/// A packet that does not pass.
pub fn refused(name: &str, packet: &Packet, reason: Reason) -> Case {
    Case::refused(name, fixture(), packet, reason)
}

/// The same packet with another proof.
pub fn forged(packet: &Packet) -> Packet {
    changed(packet, LEN - 1)
}

/// The same packet with a flipped bit in one byte of its payload.
pub fn changed(packet: &Packet, at: usize) -> Packet {
    let mut packet = packet.clone();
    packet.payload[at] ^= 1;
    packet
}

fn token() -> ProofToken {
    fixture::key().proof(&fixture::grant())
}

fn with_data(data: &[u8]) -> Packet {
    let header = token().header(1, TS, data).to_bytes();
    Packet::with_payload([&header[..], data].concat())
}

fn proof_cases() -> Vec<Case> {
    let packet = with_data(&[0x5a; 40]);
    let good = |name, packet: &Packet| forwarded(name, SESSION, packet);
    let bad = |name, packet: &Packet| refused(name, packet, Reason::BadProof);
    let with_key_of_another = {
        let mut header = token().header(1, TS, APPLICATION_DATA).to_bytes();
        header[56..]
            .copy_from_slice(&fixture::proof_number(2).header(1, TS, APPLICATION_DATA).to_bytes()[56..]);
        Packet::with_payload([&header[..], APPLICATION_DATA].concat())
    };
    let longer = Packet { payload: [&packet.payload[..], &[0x5a]].concat(), ..packet.clone() };
    let shorter = Packet { payload: packet.payload[..LEN + 39].to_vec(), ..packet.clone() };
    let of_zeros = Packet { payload: [&with_data(b"").payload[..], &[0; 16]].concat(), ..packet.clone() };
    vec![
        good("a proof over 40 bytes", &packet),
        good("a proof over 1,300 bytes", &with_data(&[1; 1300])),
        bad("a flipped bit in the proof's first byte", &changed(&packet, 56)),
        bad("a flipped bit in the proof's last byte", &changed(&packet, 63)),
        bad("another number", &changed(&packet, 51)),
        bad("another time", &changed(&packet, 55)),
        bad("another first byte behind it", &changed(&packet, LEN)),
        bad("another 16th byte behind it", &changed(&packet, LEN + 15)),
        good("another 17th byte behind it, which no proof covers", &changed(&packet, LEN + 16)),
        bad("a byte more behind it", &longer),
        bad("a byte less behind it", &shorter),
        bad("zeros where it was made over none", &of_zeros),
        bad("a proof by the key of another session", &with_key_of_another),
    ]
}

/// Payloads that end before, at and after the ends of the two words that a proof covers, with and without Ethernet
/// padding, which is not part of the payload.
fn payload_cases() -> Vec<Case> {
    let padding = vec![0xee; 20];
    let kept = Fixture::with_service(Service { flags: 0, ..fixture::proving() });
    let mut cases = Vec::new();
    for len in [0, 1, 7, 8, 9, 15, 16, 17, 20] {
        let data: Vec<u8> = (1..=len).collect();
        let packet = with_data(&data);
        let padded = Packet { padding: padding.clone(), ..packet.clone() };
        let mut over_padding = padded.clone();
        let header = token().header(1, TS, &[&data[..], &padding].concat());
        over_padding.payload[..LEN].copy_from_slice(&header.to_bytes());
        let unstripped = |name: &str, packet: &Packet| {
            let backend = kept.picked(SESSION);
            Case::sent(name, kept.clone(), packet, packet, &backend, Reason::Forwarded)
        };
        cases.extend([
            forwarded(&format!("payload length {len}"), SESSION, &packet),
            forwarded(&format!("payload length {len}, padded"), SESSION, &padded),
            unstripped(&format!("payload length {len}, unstripped"), &packet),
            unstripped(&format!("payload length {len}, padded, unstripped"), &padded),
            refused(
                &format!("payload length {len}, padded, proved with the padding"),
                &over_padding,
                Reason::BadProof,
            ),
        ]);
    }
    cases
}

/// Tokens bound to their source.
fn bound(family: Family) -> Vec<Case> {
    let packet = |bind: Option<Family>, bind_port| {
        let network = |family: Family| {
            let client = family.twin(fixture::CLIENT.ip());
            Prefix::new(client, Prefix::longest(client)).expect("the longest")
        };
        let token = fixture::key().proof(&Grant { bind: bind.map(network), bind_port, ..fixture::grant() });
        Packet::with_proof(&token, 1, TS).over(family)
    };
    let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
    let port = fixture::CLIENT.port();
    let mut from_elsewhere = packet(Some(family), None);
    from_elsewhere.from.set_ip(family.twin(Ipv4Addr::new(192, 0, 2, 9).into()));
    let elsewhere = |name| refused(name, &from_elsewhere, Reason::BadFastTag);
    vec![
        forwarded("bound to client and port", SESSION, &packet(Some(family), Some(port))),
        elsewhere("bound to another client"),
        elsewhere("bound to another client, cached").after(vec![forwarded(
            "before",
            SESSION,
            &packet(Some(family), None),
        )]),
        refused("bound to another port", &packet(None, Some(port + 1)), Reason::BadFastTag),
        refused("bound to an address of the other family", &packet(Some(other), None), Reason::BadFastTag),
    ]
}

fn freshness_cases() -> Vec<Case> {
    let made = |ts| Packet::with_proof(&token(), 1, ts);
    let good = |name, ts| forwarded(name, SESSION, &made(ts));
    let stale = |name, ts| refused(name, &made(ts), Reason::StaleProof);
    let late = Fixture { now_ns: fixture().now_ns + 1, ..fixture() };
    let early = Fixture { now_ns: fixture().now_ns - 1, ..fixture() };
    vec![
        good("made now", TS),
        good("made 5 s ago", TS - 5000),
        stale("made 5.001 s ago", TS - 5001),
        stale("made 5 s and 1 ns ago", TS - 5000).with_fixture(late),
        good("made in 5 s", TS + 5000),
        stale("made in 5.001 s", TS + 5001),
        stale("made in 5 s and 1 ns", TS + 5000).with_fixture(early),
        stale("made when its token was issued", 0),
        stale("made in 49 days", u32::MAX),
        refused("made 6 s ago, and wrong", &forged(&made(TS - 6000)), Reason::StaleProof),
    ]
}

fn replay_cases() -> Vec<Case> {
    let token = token();
    let packet = |seq| Packet::with_proof(&token, seq, TS);
    let good = |name, seq| forwarded(name, SESSION, &packet(seq));
    let replay = |name, seq| refused(name, &packet(seq), Reason::Replay);
    let again_later =
        refused("the same number, made later", &Packet::with_proof(&token, 7, TS + 1), Reason::Replay);
    let first = |seq| vec![good("before", seq)];
    let window = REPLAY_WINDOW;
    vec![
        good("the first number is 0", 0),
        good("the first number is the last there is", u32::MAX),
        replay("the same packet again", 7).after(first(7)),
        again_later.after(first(7)),
        good("the next number", 8).after(first(7)),
        good("a number before, that has not come", 6).after(first(7)),
        good("511 numbers before the highest", 1000 - (window - 1)).after(first(1000)),
        replay("512 numbers before the highest", 1000 - window).after(first(1000)),
        replay("the first number after the last", 0).after(first(u32::MAX)),
        good("the last number but one after the last", u32::MAX - 1).after(first(u32::MAX)),
        replay("the same packet after 511 others ahead of it", 7)
            .after(vec![good("before", 7), good("ahead", 7 + window - 1)]),
        refused("the same packet again, with a wrong proof", &forged(&packet(7)), Reason::BadProof)
            .after(first(7)),
        good("its number has come with a wrong proof", 7).after(vec![refused(
            "before",
            &forged(&packet(7)),
            Reason::BadProof,
        )]),
        good("the highest number there is has come with a wrong proof", 7).after(vec![refused(
            "before",
            &forged(&packet(u32::MAX)),
            Reason::BadProof,
        )]),
        good("its number has come too late", 7).after(vec![refused(
            "before",
            &Packet::with_proof(&token, 7, TS - 5001),
            Reason::StaleProof,
        )]),
        good("another token's number", 7).after(vec![forwarded(
            "before",
            3,
            &Packet::with_proof(&fixture::proof_number(3), 7, TS),
        )]),
    ]
}
