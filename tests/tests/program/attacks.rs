//! Attacks by someone who knows the source, sees the traffic and holds valid tokens.

use anyhow::{Result, ensure};
use lb_common::{
    control::SECOND_NS,
    keyslot::KeyId,
    reason::Reason,
    token::{
        Claims,
        header::{LEN, MAGIC},
        mint::Grant,
    },
};
use lb_tests::model::{
    case::{Case, both, check_all},
    fixture::{self, Fixture, Key, SERVICE_ID, SESSION},
    oracle::Model,
    packet::{APPLICATION_DATA, Family, Packet},
    program::{Program, Verdict, at_scale},
};

use crate::{
    matrix::case_groups,
    proof::{self, TS, forwarded, refused},
};

case_groups! {
    splices: "Tokens composed of parts of others" => both(|_| splice_cases());
    keys_of_others: "Keys of others" => both(|_| key_cases());
}

fn valid_bearer() -> Packet {
    Packet::default()
}

fn valid_proof(seq: u32) -> Packet {
    Packet::with_proof(&fixture::key().proof(&fixture::grant()), seq, TS)
}

/// The default packet, whose token has the bytes of another token from `at` to `end`.
fn spliced(first: &Packet, at: usize, second: &Packet, end: usize) -> Packet {
    let mut packet = first.clone();
    packet.payload[at..end].copy_from_slice(&second.payload[at..end]);
    packet
}

/// A valid token with any bit flipped is refused, whether it is cached or not. Only a flipped bit of a proof costs an
/// HMAC.
#[test]
fn every_bit() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        for (packet, hmacs) in [(valid_bearer(), 0), (valid_proof(1), 1)] {
            let packet = packet.over(family);
            program.forget()?;
            let before = program.hmacs()?;
            let mut model = Model::default();
            let flipped = |bit: usize| {
                let mut frame = packet.bytes();
                frame[packet.payload_offset() + bit / 8] ^= 0x80 >> (bit % 8);
                frame
            };
            let unknown: Vec<Case> = (0..LEN * 8)
                .map(|bit| judged(&mut model, &format!("bit {bit}, not cached"), flipped(bit)))
                .collect();
            check_all(&mut program, &unknown)?;
            let made = program.hmacs()? - before;
            ensure!(made == hmacs, "{made} HMACs for flipped bits");
            let whole = judged(&mut model, "the whole token", packet.bytes());
            ensure!(whole.expected.reason == Reason::Forwarded);
            check_all(&mut program, &[whole])?;
            let remembered: Vec<Case> = (0..LEN * 8)
                .map(|bit| judged(&mut model, &format!("bit {bit}, cached"), flipped(bit)))
                .collect();
            check_all(&mut program, &remembered)?;
            let made = program.hmacs()? - before;
            ensure!(made == 1, "{made} HMACs for one token");
            let passed = |case: &&Case| case.expected.outcome.verdict != Verdict::Drop;
            ensure!(unknown.iter().chain(&remembered).find(passed).is_none());
        }
    }
    Ok(())
}

fn judged(model: &mut Model, name: &str, frame: Vec<u8>) -> Case {
    let fixture = proof::fixture();
    let expected = model.judge(&fixture, &frame);
    Case::of_frame(name, fixture, frame, expected)
}

/// Claims and fast tag of an observed token, with another full tag: the fast tag covers the full tag, so no HMAC is
/// computed.
#[test]
fn copied_tags_cost_no_hmac() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(16);
    let mut program = Program::load()?;
    for (remembered, family) in [false, true].into_iter().flat_map(|r| Family::BOTH.map(|family| (r, family)))
    {
        if remembered {
            check_all(&mut program, &[forwarded("the token itself", SESSION, &valid_bearer()).over(family)])?;
        }
        let before = program.hmacs()?;
        let cases: Vec<Case> = (0..5000)
            .map(|_| {
                let mut packet = valid_bearer();
                random.fill(&mut packet.payload[LEN - 16..LEN]);
                refused("a random full tag", &packet, Reason::BadFastTag).over(family)
            })
            .collect();
        check_all(&mut program, &cases)?;
        ensure!(program.hmacs()? == before);
    }
    Ok(())
}

fn splice_cases() -> Vec<Case> {
    let bearer = [1, 2].map(|number| Packet::with_token(&fixture::token_number(number)));
    let proof = [1, 2].map(|number| Packet::with_proof(&fixture::proof_number(number), 7, TS));
    let mut retyped = bearer[0].clone();
    retyped.payload[1] = 0x12;
    let mut as_bearer = proof[0].clone();
    as_bearer.payload[1] = 0x11;
    let remembered = || {
        let [one, two] = &bearer;
        let [three, four] = [1, 2].map(|number| Packet::with_proof(&fixture::proof_number(number), 6, TS));
        vec![
            forwarded("before", 1, one),
            forwarded("before", 2, two),
            forwarded("before", 1, &three),
            forwarded("before", 2, &four),
        ]
    };
    let [b1, b2] = &bearer;
    let [p1, p2] = &proof;
    let bad = |name, packet: &Packet| refused(name, packet, Reason::BadFastTag);
    let cases = [
        bad("the claims of one token, the tags of another", &spliced(b1, 40, b2, LEN)),
        bad("the claims and fast tag of one, the full tag of another", &spliced(b1, 48, b2, LEN)),
        bad("the claims and full tag of one, the fast tag of another", &spliced(b1, 40, b2, 48)),
        bad("the sealed claims of another", &spliced(b1, 24, b2, 40)),
        bad("the nonce of another", &spliced(b1, 16, b2, 24)),
        bad("PROOF: the claims of one token, the rest of another", &spliced(p1, 40, p2, LEN)),
        bad("PROOF: the claims and proof of one, the fast tag of another", &spliced(p1, 40, p2, 48)),
        refused(
            "PROOF: the claims and fast tag of one, number, time and proof of another",
            &spliced(p1, 48, p2, LEN),
            Reason::BadProof,
        ),
        bad("a BEARER token made a PROOF token", &retyped),
        bad("a PROOF token made a BEARER token", &as_bearer),
        bad(
            "the claims of a BEARER token, the rest of a PROOF token of its session",
            &spliced(b1, 40, p1, LEN),
        ),
        bad(
            "the claims of a PROOF token, the rest of a BEARER token of its session",
            &spliced(p1, 40, b1, LEN),
        ),
    ];
    let after = |case: &Case| case.clone().named(format!("{}, both cached", case.name)).after(remembered());
    cases.iter().cloned().chain(cases.iter().map(after)).collect()
}

fn key_cases() -> Vec<Case> {
    let other_id = KeyId::new(fixture::key().id.slot() + 1, 3).expect("in range");
    let of_other_service = Key::new([8; 32], other_id);
    let mut fixture = proof::fixture();
    fixture.keys.push(of_other_service.held(SERVICE_ID + 1));
    let case = |name, packet: &Packet, reason| Case::refused(name, fixture.clone(), packet, reason);
    let here = fixture::grant();
    let there = Grant { claims: Claims { service_id: SERVICE_ID + 1, ..here.claims }, ..fixture::grant() };
    let bearer = |key: &Key, grant: &Grant| Packet::with_token(&key.bearer(grant));
    let proof = |key: &Key, grant: &Grant| Packet::with_proof(&key.proof(grant), 1, TS);
    // The key id of this service's key; everything else is made with the other service's key.
    let disguised = Key { id: fixture::key().id, ..of_other_service.clone() };
    vec![
        case(
            "a token for this service by the key of another",
            &bearer(&of_other_service, &here),
            Reason::InactiveKey,
        ),
        case(
            "PROOF: a token for this service by the key of another",
            &proof(&of_other_service, &here),
            Reason::InactiveKey,
        ),
        case(
            "a token of another service by its key",
            &bearer(&of_other_service, &there),
            Reason::InactiveKey,
        ),
        case(
            "a token for another service by the key of this one",
            &bearer(&fixture::key(), &there),
            Reason::WrongService,
        ),
        case(
            "PROOF: a token for another service by the key of this one",
            &proof(&fixture::key(), &there),
            Reason::WrongService,
        ),
        case(
            "the key of another service under the id of this one's",
            &bearer(&disguised, &here),
            Reason::BadFastTag,
        ),
        case(
            "PROOF: the key of another service under the id of this one's",
            &proof(&disguised, &here),
            Reason::BadFastTag,
        ),
    ]
}

/// A key is revoked and its slot reused: the old key's tokens are refused from the next packet on, cached or not, and
/// none is valid under the new key's id.
#[test]
fn a_slot_that_was_given_away() -> Result<()> {
    let fixture = Fixture { keys: vec![], ..proof::fixture() };
    let bearer = |key: &Key| Packet::with_token(&key.bearer(&fixture::grant()));
    let proof = |key: &Key, seq| Packet::with_proof(&key.proof(&fixture::grant()), seq, TS);
    let mut program = Program::load()?;
    program.enter(&fixture)?;
    for family in Family::BOTH {
        let key = |generation| {
            let id = KeyId::new(fixture::key_id().slot() + family as u32, generation).expect("in range");
            Key::new([generation as u8; 32], id)
        };
        let (old, new) = (key(5), key(6));
        let under_new_id = |packet: &Packet| {
            let mut packet = packet.clone();
            packet.payload[4..8].copy_from_slice(&new.id.0.to_be_bytes());
            packet
        };
        let before = program.hmacs()?;
        let good =
            |packet: &Packet| forwarded("good", SESSION, packet).with_fixture(fixture.clone()).over(family);
        let bad = |packet: &Packet, reason| {
            refused("bad", packet, reason).with_fixture(fixture.clone()).over(family)
        };
        program.datapath().key_slots.install(&old.slot(SERVICE_ID))?;
        check_all(
            &mut program,
            &[good(&bearer(&old)), good(&proof(&old, 1)), bad(&bearer(&new), Reason::UnknownKey)],
        )?;
        program.datapath().key_slots.stop(old.id.slot())?;
        check_all(
            &mut program,
            &[bad(&bearer(&old), Reason::InactiveKey), bad(&proof(&old, 2), Reason::InactiveKey)],
        )?;
        program.datapath().key_slots.install(&new.slot(SERVICE_ID))?;
        let cases = [
            bad(&bearer(&old), Reason::UnknownKey),
            bad(&proof(&old, 2), Reason::UnknownKey),
            bad(&under_new_id(&bearer(&old)), Reason::BadFastTag),
            bad(&under_new_id(&proof(&old, 2)), Reason::BadFastTag),
            good(&bearer(&new)),
            good(&proof(&new, 1)),
        ];
        check_all(&mut program, &cases)?;
        let made = program.hmacs()? - before;
        ensure!(made == 4, "{made} HMACs for four tokens");
    }
    Ok(())
}

/// One token from a million addresses and ports has one entry in the cache, and changes no other entry.
#[test]
fn a_token_from_everywhere() -> Result<()> {
    let mut program = Program::load()?;
    let others: Vec<Case> = (0..1000)
        .map(|number| forwarded("another", number, &Packet::with_token(&fixture::token_number(number))))
        .collect();
    check_all(&mut program, &others)?;
    let before = (program.hmacs()?, program.counts()?);
    let count = at_scale(1_000_000) as u32;
    for family in Family::BOTH {
        let packet = valid_bearer().over(family);
        let mut frame = packet.bytes();
        let (source_at, port_at) = match family {
            Family::V4 => (14 + 12, 14 + 20),
            Family::V6 => (14 + 8, 14 + 40),
        };
        for number in 0..count / 2 {
            // An odd factor, so that all values occur.
            let mixed = number.wrapping_mul(0x9e37_79b1);
            frame[source_at..][..4].copy_from_slice(&mixed.to_be_bytes());
            frame[port_at..][..2].copy_from_slice(&(number as u16).to_be_bytes());
            let verdict = program.run(&frame)?.verdict;
            ensure!(verdict == Verdict::Transmit, "{verdict:?} for packet {number} over {family}");
        }
    }
    ensure!(
        program.hmacs()? == before.0 + 1,
        "the token of a million sources was checked {} times",
        program.hmacs()? - before.0
    );
    ensure!(program.remembered()? == 1001);
    let moved = program.counts()?.since(&before.1);
    ensure!(moved.reasons.len() == 1 && moved.packets() == u64::from(count / 2 * 2), "{moved:?}");
    check_all(&mut program, &others)?;
    ensure!(program.hmacs()? == before.0 + 1, "other tokens were verified again");
    Ok(())
}

/// A packet that one node has passed is refused by another node only because its time is stale: nodes do not share
/// sequence numbers.
#[test]
fn another_node() -> Result<()> {
    let (mut here, mut there) = (Program::load()?, Program::load()?);
    let later = |ns| Fixture { now_ns: proof::fixture().now_ns + ns, ..proof::fixture() };
    for family in Family::BOTH {
        let packet = valid_proof(family as u32);
        let passes = forwarded("here", SESSION, &packet).over(family);
        passes.check(&mut here)?;
        refused("here again", &packet, Reason::Replay).over(family).check(&mut here)?;
        let stale = refused("there, 5 s and 1 ns later", &packet, Reason::StaleProof).over(family);
        stale.with_fixture(later(5 * SECOND_NS + 1)).check(&mut there)?;
        // Within the time window it passes on the other node: nodes do not share sequence numbers.
        passes.with_fixture(later(5 * SECOND_NS)).check(&mut there)?;
    }
    Ok(())
}

/// Everything is random except the magic and the key id.
#[test]
fn noise_behind_a_key_id() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(64);
    let mut model = Model::default();
    let cases: Vec<Case> = (0..20_000)
        .map(|number| {
            let mut bytes = [0; LEN];
            random.fill(&mut bytes);
            bytes[0] = MAGIC;
            bytes[4..8].copy_from_slice(&fixture::key().id.0.to_be_bytes());
            // Half of them have a valid form.
            if number % 2 == 0 {
                bytes[1..4].copy_from_slice(
                    &[[0x11, 0, 0], [0x12, 2, 0], [0x11, 1, 24], [0x12, 5, 64]][number / 2 % 4],
                );
            }
            let packet = Packet::with_payload([&bytes[..], APPLICATION_DATA].concat());
            judged(&mut model, &format!("noise {number}"), packet.over(Family::BOTH[number / 8 % 2]).bytes())
        })
        .collect();
    let mut program = Program::load()?;
    check_all(&mut program, &cases)?;
    ensure!(program.hmacs()? == 0 && program.remembered()? == 0);
    ensure!(cases.iter().all(|case| case.expected.outcome.verdict == Verdict::Drop));
    Ok(())
}
