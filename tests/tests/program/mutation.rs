//! Valid packets that are damaged. The oracle defines the outcome of each.

use anyhow::{Result, ensure};
use lb_common::{reason::Reason, service::FORWARD_NAT, token::header};
use lb_tests::model::{
    case::{Case, check_all},
    fixture::{self, Fixture},
    oracle::{self, Model},
    packet::{Family, MORE_FRAGMENTS, Packet, UdpChecksum},
    program::{Program, Verdict},
};

/// Number of random packets.
const MUTANTS: usize = 34_000;
/// Cases whose counters are compared at once.
const BATCH: usize = 500;

fn judged(name: String, fixture: &Fixture, frame: Vec<u8>) -> Case {
    let expected = oracle::judge(fixture, &frame);
    Case::of_frame(name, fixture.clone(), frame, expected)
}

/// A packet with any flipped bit in its token is refused.
#[test]
fn every_bit_of_the_token() -> Result<()> {
    let of = |packet: Packet| {
        let first = packet.payload_offset() * 8;
        (0..header::LEN * 8).map(move |bit| flipped(&Fixture::default(), &packet, first + bit))
    };
    let cases: Vec<_> =
        Family::BOTH.into_iter().flat_map(|family| of(Packet::default().over(family))).collect();
    for case in &cases {
        let verdict = case.expected.outcome.verdict;
        ensure!(verdict == Verdict::Drop, "{}: {verdict:?}", case.name);
    }
    check_all(&mut Program::load()?, &cases)
}

/// Flipped bits before the token: most change the outcome or the frame, and none has a further effect.
#[test]
fn every_bit_before_the_token() -> Result<()> {
    let mut program = Program::load()?;
    for tags in 0..=3 {
        for (name, packet) in corpus() {
            let packet = packet.tagged(tags);
            let cases: Vec<_> = (0..packet.payload_offset() * 8)
                .map(|bit| flipped(&Fixture::default(), &packet, bit))
                .collect();
            check_all(&mut program, &cases).map_err(|error| error.context(name))?;
        }
    }
    Ok(())
}

fn flipped(fixture: &Fixture, packet: &Packet, bit: usize) -> Case {
    let mut frame = packet.bytes();
    frame[bit / 8] ^= 0x80 >> (bit % 8);
    judged(format!("bit {} of byte {} flipped", bit % 8, bit / 8), fixture, frame)
}

/// The fixtures, by the mode of the service.
fn fixtures() -> Vec<(&'static str, Fixture)> {
    let mut fixtures = vec![("l2", Fixture::default())];
    for (forward, mode, _, backend) in crate::forwarding::MODES {
        for (flags, _) in crate::forwarding::FLAGS {
            fixtures.push((mode, fixture::sending(forward, flags, fixture::backend_at(1, backend))));
        }
    }
    fixtures
}

/// The packets that are damaged.
fn corpus() -> Vec<(&'static str, Packet)> {
    let v6 = || Packet::default().over(Family::V6);
    let extensions =
        vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0]), (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])];
    vec![
        ("valid", Packet::default()),
        ("valid, IPv6", v6()),
        ("fragment, IPv6", Packet { fragment: MORE_FRAGMENTS, ..v6() }),
        ("extension headers", Packet { extensions, ..v6() }),
        ("padded, IPv6", Packet { padding: vec![0; 12], ..v6() }),
        ("no UDP checksum", Packet { udp_checksum: UdpChecksum::None, ..Packet::default() }),
        ("fragment", Packet { fragment: MORE_FRAGMENTS | 1, ..Packet::default() }),
        ("options", Packet { options: vec![1; 8], ..Packet::default() }),
        ("padded", Packet { padding: vec![0; 12], ..Packet::default() }),
    ]
}

/// Bytes are changed, removed and inserted at any position, several at once. Every packet is counted exactly once.
#[test]
fn random_damage() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(2);
    let mut program = Program::load()?;
    let corpus = corpus();
    let fixtures = fixtures();
    let mut forwarded = 0;
    for batch in 0..MUTANTS / BATCH {
        let (mode, fixture) = &fixtures[batch % fixtures.len()];
        let cases: Vec<_> = (0..BATCH)
            .map(|number| {
                let (name, packet) = &corpus[random.usize(..corpus.len())];
                let mut frame = packet.clone().tagged(random.u16(..5)).bytes();
                for _ in 0..=random.usize(..3) {
                    damage(&mut random, &mut frame);
                }
                judged(format!("mutant {number} of batch {batch}, of {name}, by {mode}"), fixture, frame)
            })
            .collect();
        forwarded += cases.iter().filter(|case| case.expected.reason == Reason::Forwarded).count();
        check_all(&mut program, &cases)?;
    }
    assert_eq!(program.counts()?.packets(), MUTANTS as u64);
    assert!(forwarded > MUTANTS / 100, "only {forwarded} mutants were harmless");
    Ok(())
}

fn damage(random: &mut fastrand::Rng, frame: &mut Vec<u8>) {
    // Mostly among the headers, where damage has an effect.
    let last = if random.bool() { frame.len() } else { frame.len().min(60) };
    let at = random.usize(0..last);
    match random.u8(..8) {
        0 => frame.truncate(at.max(14)),
        1 => frame.insert(at, random.u8(..)),
        2 if frame.len() > 14 => {
            frame.remove(at);
        }
        3 => frame.extend(std::iter::repeat_n(0, random.usize(..40))),
        4 => frame[at] = [0, 1, 0xff, 0x80, 0x45][random.usize(..5)],
        5 => frame[at] ^= 1 << random.u8(..8),
        _ => frame[at] = random.u8(..),
    }
}

/// ICMP errors in every forwarding mode, damaged: an error that is no longer tied to the session is passed to this
/// host.
#[test]
fn damaged_errors() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(4);
    let mut program = Program::load()?;
    for case in crate::icmp::tied_cases() {
        let mutants: Vec<_> = (0..100)
            .map(|number| {
                let mut frame = case.frame.clone();
                for _ in 0..=random.usize(..2) {
                    damage(&mut random, &mut frame);
                }
                judged(format!("mutant {number} of {}", case.name), &case.fixture, frame)
            })
            .collect();
        check_all(&mut program, &mutants)?;
    }
    Ok(())
}

/// Random frames, and random bytes after the start of a packet for the service.
#[test]
fn noise() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(3);
    let mut noise = |from: usize, number: usize| {
        let family = Family::BOTH[number / 2 % 2];
        let mut frame = Packet::default().over(family).bytes();
        frame.truncate(from.min(frame.len()));
        frame.extend(std::iter::repeat_with(|| random.u8(..)).take(14 + number % 200));
        judged(format!("noise {number} from byte {from}"), &Fixture::default(), frame)
    };
    let starts = [0, 12, 14, 20, 21, 23, 34, 38, 42, 43, 46, 54, 58, 62, 63, 66];
    let cases: Vec<_> = starts
        .iter()
        .flat_map(|from| (0..200).map(|number| (*from, number)))
        .map(|(f, n)| noise(f, n))
        .collect();
    assert!(cases.iter().all(|case| case.expected.outcome.verdict != Verdict::Transmit));
    check_all(&mut Program::load()?, &cases)
}

/// The oracle agrees with the cases, whose outcomes are written by hand.
#[test]
fn the_oracle_is_right() -> Result<()> {
    for case in &crate::matrix::cases() {
        let mut model = Model::default();
        for Case { name, fixture, frame, expected, .. } in case.in_order() {
            let of_nat = fixture.services.iter().any(|(_, service)| service.forward == FORWARD_NAT);
            // The oracle does not model translations, per-CPU budgets, the ICMP messages within them, and observe mode.
            let observed = fixture.services.iter().any(|(_, service)| service.observes());
            let told = expected.reason == Reason::TooBig && expected.outcome.verdict == Verdict::Transmit;
            if !of_nat && !observed && !told && expected.reason != Reason::HmacBudget {
                ensure!(model.judge(fixture, frame) == *expected, "{name}");
            }
        }
    }
    assert_eq!(
        oracle::judge(&Fixture::default(), &Packet::default().bytes()).service,
        fixture::SERVICE_INDEX
    );
    Ok(())
}
