//! The token caches and the budget of HMAC verifications.

use anyhow::Result;
use lb_common::{
    flow::Activity,
    keyslot::{KeyId, STATE_OFF},
    reason::Reason,
    scratch::BURST_NS,
    service::Service,
    session::{Admission, Seen, Session, StatefulEntry, TokenKey},
    token::Header,
};
use lb_tests::model::{
    case::{Case, check_all},
    fixture::{self, Fixture, Key, SERVICE_ID, SESSION},
    packet::{self, Packet},
    program::{Program, pin_to_cpu, small},
};
use tollgate::datapath::Options;

use crate::{
    matrix::case_groups,
    proof::{self, TS},
};

fn forwarded(token: &Header, session: u64) -> Case {
    let packet = Packet::with_token(token);
    let fixture = Fixture::default();
    let backend = fixture.picked(session);
    let name = format!("session {session:#x}");
    Case::sent(name, fixture, &packet, &packet.clone().stripped(), &backend, Reason::Forwarded)
}

fn session_of(token: &Header, session_id: u64) -> Session {
    let class = fixture::grant().claims.class;
    let claims = Session::kept(token.claims());
    // The kernel's clock is fixed at 0 in these fixtures.
    let active = Activity::at(0, claims[3]);
    Session {
        claims,
        admission: Admission { session_id, class, active, ..Admission::default() },
        ..Session::default()
    }
}

/// The entries of the cache, without the fields for the source of their datagrams.
fn entries(program: &mut Program) -> Result<Vec<(TokenKey, Session)>> {
    let entry = |entry| {
        let (key, session): (TokenKey, Session) = entry?;
        Ok((key, Session { seen: Seen::default(), ..session }))
    };
    program.sessions().iter().map(entry).collect()
}

#[test]
fn a_token_is_fully_checked_once() -> Result<()> {
    let mut program = Program::load()?;
    let token = fixture::token();
    let case = forwarded(&token, SESSION);
    for _ in 0..5 {
        case.check(&mut program)?;
        assert_eq!(program.hmacs()?, 1);
    }
    assert_eq!(entries(&mut program)?, [(TokenKey::of(&token), session_of(&token, SESSION))]);
    Ok(())
}

/// A token that fails HMAC verification leaves no entry, and is verified again each time.
#[test]
fn refused_tokens_are_not_remembered() -> Result<()> {
    let mut program = Program::load()?;
    let full_checks = [Reason::BadFullTag, Reason::WrongService];
    let cases: Vec<_> = crate::token::cases()
        .into_iter()
        .filter(|case| full_checks.contains(&case.expected.reason))
        .collect();
    for round in 1..=3 {
        check_all(&mut program, &cases)?;
        assert_eq!(program.hmacs()?, round * cases.len() as u64);
    }
    assert_eq!(program.remembered()?, 0);
    Ok(())
}

/// The program trusts the admission in an entry. Without this, the test below would prove nothing.
#[test]
fn a_hit_is_believed() -> Result<()> {
    let mut program = Program::load()?;
    let token = fixture::token();
    let elsewhere =
        (0..).find(|session| Fixture::default().picked(*session) != Fixture::default().picked(SESSION));
    let elsewhere = elsewhere.expect("three backends");
    program.sessions().insert(TokenKey::of(&token), session_of(&token, elsewhere), 0)?;
    forwarded(&token, elsewhere).check(&mut program)?;
    assert_eq!(program.hmacs()?, 0);
    Ok(())
}

/// An entry of a token with the same fast tag and nonce but other claims: 64 bits may collide.
#[test]
fn an_entry_of_other_claims_is_no_hit() -> Result<()> {
    let token = fixture::token();
    for word in 0..4 {
        let mut program = Program::load()?;
        let mut session = session_of(&token, 1);
        session.claims[word] ^= 1 << 63;
        program.sessions().insert(TokenKey::of(&token), session, 0)?;
        forwarded(&token, SESSION).check(&mut program)?;
        assert_eq!(program.hmacs()?, 1, "word {word}");
        // The token was verified by HMAC, and the entry is now its own.
        assert_eq!(entries(&mut program)?, [(TokenKey::of(&token), session_of(&token, SESSION))]);
    }
    Ok(())
}

/// The same test for the cache of stateful tokens.
#[test]
fn a_tracked_entry_of_other_claims_is_no_hit() -> Result<()> {
    let proof = fixture::proof_number(SESSION);
    let token = proof.header(1, TS, &[]);
    for word in 0..4 {
        let mut program = Program::load()?;
        let session = session_of(&token, SESSION);
        let mut other = StatefulEntry { session, ..StatefulEntry::default() };
        other.session.claims[word] ^= 1 << 63;
        program.stateful().insert(TokenKey::of(&token), other, 0)?;
        let packet = Packet::with_proof(&proof, 1, TS);
        proof::forwarded("a proof", SESSION, &packet).check(&mut program)?;
        assert_eq!(program.hmacs()?, 1, "word {word}");
        let entry = program.stateful().get(&TokenKey::of(&token), 0)?;
        assert_eq!(entry.session.claims, session.claims);
        proof::refused("again", &packet, Reason::Replay).check(&mut program)?;
    }
    Ok(())
}

/// An attacker may hold many BEARER tokens: they evict no replay window and no limit.
#[test]
fn what_is_counted_stays() -> Result<()> {
    let mut program = Program::load_with(&Options { sessions: 64, ..small() })?;
    let packet = Packet::with_proof(&fixture::proof_number(SESSION), 1, TS);
    proof::forwarded("a proof", SESSION, &packet).check(&mut program)?;
    let bearer = |number| {
        proof::forwarded("a BEARER token", number, &Packet::with_token(&fixture::token_number(number)))
    };
    check_all(&mut program, &(0..1000).map(bearer).collect::<Vec<_>>())?;
    let hmacs = program.hmacs()?;
    proof::refused("the proof again", &packet, Reason::Replay).check(&mut program)?;
    assert_eq!(program.hmacs()?, hmacs);
    Ok(())
}

/// When a service gets limits, its tokens are verified once more; without limits, the earlier entries are used again.
#[test]
fn a_token_moves_with_its_services_limits() -> Result<()> {
    let mut program = Program::load()?;
    let limited = Fixture::with_service(Service { max_sources: 1, ..fixture::service() });
    let packet = Packet::default();
    let elsewhere = Packet { from: packet::client(77), ..packet.clone() };
    let free = |packet: &Packet| {
        let backend = Fixture::default().picked(SESSION);
        Case::sent(
            "no limits",
            Fixture::default(),
            packet,
            &packet.clone().stripped(),
            &backend,
            Reason::Forwarded,
        )
    };
    let cases = [
        free(&packet),
        free(&packet).with_fixture(limited.clone()),
        Case::refused("one source", limited, &elsewhere, Reason::TooManySources),
        free(&elsewhere),
    ];
    check_all(&mut program, &cases)?;
    assert_eq!((program.hmacs()?, program.remembered()?), (2, 2));
    Ok(())
}

/// Revoking a key stops its tokens with the next packet, cached or not.
#[test]
fn a_hit_needs_its_key() -> Result<()> {
    let mut program = Program::load()?;
    let valid = forwarded(&fixture::token(), SESSION);
    let packet = Packet::default();
    let off = {
        let mut held = fixture::key().held(SERVICE_ID);
        held.slot.state = STATE_OFF;
        Case::refused("its key is off", Fixture::with_key(held), &packet, Reason::InactiveKey)
    };
    let next = {
        let id = KeyId::new(fixture::key().id.slot(), fixture::key().id.generation() + 1).expect("in range");
        let held = Key::new([7; 32], id).held(SERVICE_ID);
        Case::refused("its slot has another key", Fixture::with_key(held), &packet, Reason::UnknownKey)
    };
    let empty = {
        let fixture = Fixture { keys: vec![], ..Fixture::default() };
        Case::refused("its slot is empty", fixture, &packet, Reason::UnknownKey)
    };
    for refused in [off, next, empty] {
        valid.check(&mut program)?;
        refused.check(&mut program)?;
    }
    valid.check(&mut program)?;
    assert_eq!(program.hmacs()?, 1);
    Ok(())
}

/// More tokens than the cache holds: all of them pass, some after another HMAC verification.
#[test]
fn a_full_cache_forgets() -> Result<()> {
    let mut program = Program::load_with(&Options { sessions: 64, ..small() })?;
    let cases: Vec<_> = (0..1000).map(|number| forwarded(&fixture::token_number(number), number)).collect();
    for _ in 0..2 {
        check_all(&mut program, &cases)?;
    }
    assert!(program.remembered()? <= 64);
    assert!(program.hmacs()? > 1000);
    Ok(())
}

case_groups! {
    /// The clock does not advance: only the HMAC that the burst permits is computed. Tokens in the cache still pass.
    the_budget_is_each_cpus: "The first packet of a token" => vec![budget_case()], checked by beside_a_cached_token;
}

/// A CPU without budget.
fn budget_case() -> Case {
    let packet = Packet::with_token(&fixture::token_number(2));
    Case::refused("no HMACs left", Fixture::default(), &packet, Reason::HmacBudget)
}

fn beside_a_cached_token(refused: &[Case]) -> Result<()> {
    pin_to_cpu(0)?;
    let mut program = Program::load_with(&Options { hmac_cost_ns: BURST_NS, ..small() })?;
    let first = forwarded(&fixture::token_number(1), 1);
    for _ in 0..3 {
        first.check(&mut program)?;
        check_all(&mut program, refused)?;
    }
    assert_eq!(program.hmacs()?, 1);
    Ok(())
}

/// The budget recovers with time.
#[test]
fn the_budget_is_a_rate() -> Result<()> {
    pin_to_cpu(0)?;
    let mut program = Program::load_with(&Options { hmac_cost_ns: BURST_NS / 10, ..small() })?;
    let forwarded: Vec<_> =
        (100..110).map(|number| forwarded(&fixture::token_number(number), number)).collect();
    check_all(&mut program, &forwarded)?;
    budget_case().check(&mut program)?;
    assert_eq!(program.hmacs()?, 10);
    Ok(())
}
