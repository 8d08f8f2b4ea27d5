//! Step 7: revocations by name, in force from the next packet on.

use anyhow::Result;
use lb_common::{
    reason::Reason,
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    token::{Header, mint::Grant},
};
use lb_tests::model::{
    case::{Case, both, check_all},
    fixture::{self, Fixture, SERVICE_ID, SESSION},
    packet::{Family, Packet},
    program::Program,
};

use crate::{
    matrix::case_groups,
    proof::{self, TS, forged, forwarded},
};

case_groups! {
    by_name: "Revocations by name" => both(|_| cases());
}

/// A cached token is refused from the next packet on, and passes again with the first packet after the revocation is
/// removed, without another HMAC.
#[test]
fn within_one_packet() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        for (number, revoked) in [session(SESSION), token(fixture::grant().nonce)].into_iter().enumerate() {
            program.forget()?;
            let before = program.hmacs()?;
            for round in 0..5 {
                let seq = 2 * round + number as u32;
                let proof = Packet::with_proof(&fixture::key().proof(&fixture::grant()), seq, TS);
                let in_force = revoking(vec![(revoked, forever())]);
                let passing =
                    [forwarded("clean", SESSION, &Packet::default()), forwarded("clean", SESSION, &proof)];
                let falling = [
                    refused("revoked", &in_force, &Packet::default()),
                    refused("revoked", &in_force, &proof),
                ];
                let cases = [passing, falling].concat();
                check_all(
                    &mut program,
                    &cases.into_iter().map(|case| case.over(family)).collect::<Vec<_>>(),
                )?;
            }
            assert_eq!(program.hmacs()? - before, 2, "a BEARER token and a PROOF token");
        }
    }
    Ok(())
}

/// A revocation that is not removed ends at its time, exact to the nanosecond.
#[test]
fn it_ends() -> Result<()> {
    let mut program = Program::load()?;
    let until_ns = Fixture::default().now_ns + 7;
    let at = |now_ns| Fixture { now_ns, ..revoking(vec![(session(SESSION), until_ns)]) };
    let packet = Packet::default();
    let cases = [
        refused("revoked, and not cached", &at(until_ns - 7), &packet),
        refused("its last nanosecond", &at(until_ns - 1), &packet),
        forwarded("the first nanosecond after", SESSION, &packet).with_fixture(at(until_ns)),
        forwarded("from then on", SESSION, &packet).with_fixture(at(until_ns + 1)),
    ];
    check_all(&mut program, &cases)?;
    assert_eq!(program.hmacs()?, 1);
    Ok(())
}

/// Another revocation in a full list costs other tokens only one look-up after each addition.
#[test]
fn a_full_list() -> Result<()> {
    let mut program = Program::load()?;
    let most = u64::from(lb_common::maps::REVOCATIONS_MAX);
    let revoked = (0..most).map(|number| (session(number), forever())).collect();
    let fixture = revoking(revoked);
    let of = |number| Packet::with_token(&fixture::token_number(number));
    let cases = [
        refused("the first of a full list", &fixture, &of(0)),
        refused("the last of a full list", &fixture, &of(most - 1)),
        forwarded("the first that is not on it", most, &of(most)).with_fixture(fixture.clone()),
    ];
    check_all(&mut program, &cases)
}

/// An end later than any test.
fn forever() -> u64 {
    Fixture::default().now_ns + 1
}

fn session(session_id: u64) -> RevocationKey {
    RevocationKey { service_id: SERVICE_ID, kind: REVOKED_SESSION, of: session_id }
}

fn token(nonce: [u8; 8]) -> RevocationKey {
    RevocationKey { service_id: SERVICE_ID, kind: REVOKED_TOKEN, of: u64::from_le_bytes(nonce) }
}

fn revoking(revocations: Vec<(RevocationKey, u64)>) -> Fixture {
    Fixture { revocations, ..proof::fixture() }
}

fn refused(name: &str, fixture: &Fixture, packet: &Packet) -> Case {
    Case::refused(name, fixture.clone(), packet, Reason::Revoked)
}

/// Another token of the default session.
fn renewed() -> Header {
    fixture::key().bearer(&Grant { nonce: *b"renewed!", ..fixture::grant() })
}

fn cases() -> Vec<Case> {
    let bearer = Packet::default();
    let proof = |seq| Packet::with_proof(&fixture::key().proof(&fixture::grant()), seq, TS);
    let revoked = |name, key, packet: &Packet| refused(name, &revoking(vec![(key, forever())]), packet);
    let clean = |name, key, packet: &Packet| {
        forwarded(name, SESSION, packet).with_fixture(revoking(vec![(key, forever())]))
    };
    let nonce = fixture::grant().nonce;
    let of_session = session(SESSION);
    let before = |packet: &Packet| vec![forwarded("before", SESSION, packet)];
    vec![
        revoked("a revoked session", of_session, &bearer),
        revoked("a revoked session, cached", of_session, &bearer).after(before(&bearer)),
        revoked("a revoked session's next token", of_session, &Packet::with_token(&renewed())),
        revoked("a proof of a revoked session", of_session, &proof(1)),
        revoked("a proof of a revoked session, cached", of_session, &proof(2)).after(before(&proof(1))),
        revoked("a wrong proof of a revoked session", of_session, &forged(&proof(1))),
        revoked("a revoked token", token(nonce), &bearer),
        revoked("a revoked token, cached", token(nonce), &bearer).after(before(&bearer)),
        revoked("a proof of a revoked token", token(nonce), &proof(1)),
        clean("the next token after a revoked one", token(nonce), &Packet::with_token(&renewed())),
        clean("another session is revoked", session(SESSION + 1), &bearer),
        clean(
            "a session of this number is revoked in another service",
            RevocationKey { service_id: SERVICE_ID + 1, ..of_session },
            &bearer,
        ),
        clean(
            "a token whose nonce is this session's number is revoked",
            token(SESSION.to_le_bytes()),
            &bearer,
        ),
        clean(
            "a session whose number is this token's nonce is revoked",
            session(u64::from_le_bytes(nonce)),
            &bearer,
        ),
        forwarded("a revocation that has ended", SESSION, &bearer)
            .with_fixture(revoking(vec![(of_session, Fixture::default().now_ns)])),
    ]
}
