//! Revocation: of sessions, tokens, and all that a service issued; at once, whatever is cached, and after a restart.

use std::{
    collections::BTreeSet,
    fs,
    panic::resume_unwind,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    maps::{LIVE, REVOCATIONS_MAX},
    reason::Reason,
    token::Header,
};
use lb_tests::testbed::{
    daemon::{http, said, wait_for},
    issuer::{session, unix_now},
    topology::Family,
};

use crate::{
    clock::change_live,
    testbed::{L2, Lab, TTL, over_both},
};

over_both!(
    a_revoked_session_is_refused_with_the_next_packet,
    a_revoked_token_leaves_its_session_alone,
    what_was_issued_before_is_refused,
);

/// The program's clock goes by the kernel's ticks, so that it is behind the daemon's by one at most.
const A_TICK: Duration = Duration::from_millis(10);

/// Revoked by name: sessions and tokens.
fn revoked(lab: &Lab) -> Result<Vec<serde_json::Value>> {
    Ok(lab.json(&["sessions", "list", "--revoked"])?.as_array().context("a list")?.clone())
}

fn hex_of(token: &Header) -> String {
    hex::encode(token.to_bytes())
}

fn a_revoked_session_is_refused_with_the_next_packet(family: Family) -> Result<()> {
    let lab = Lab::of(family, L2, 1)?;
    let daemon = lab.start()?;
    let (token, another, other) = (lab.token(7)?, lab.token(7)?, lab.token(8)?);
    lab.delivered(&token)?;
    lab.delivered(&other)?;
    let answer = lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    ensure!(answer[0]["session_id"] == "7" && answer[0]["service_id"] == 42, "{answer}");
    // An hour, max_ttl's default, and the skew of both clocks.
    let lasts = answer[0]["until"].as_u64().context("a second")? - u64::from(unix_now());
    ensure!((3602..=3605).contains(&lasts), "{lasts} s");
    // Cached, and not yet seen.
    lab.refused_token(&token, Reason::Revoked)?;
    lab.refused_token(&another, Reason::Revoked)?;
    lab.delivered(&other)?;
    let inspected = lab.json(&["token", "inspect", &hex_of(&another)])?;
    ensure!(inspected["verdict"] == "revoked", "{inspected}");
    let cached = lab.json(&["sessions", "list", "--service", "game"])?;
    let cached = cached["sessions"].as_array().context("a list")?;
    ensure!(cached.len() == 3, "{cached:?}");
    ensure!(cached.iter().all(|one| one["revoked"] == (one["session_id"] == "7")), "{cached:?}");

    // After a crash, and without the kernel's maps.
    daemon.kill()?;
    let daemon = lab.start()?;
    lab.refused_token(&token, Reason::Revoked)?;
    daemon.terminate()?;
    lab.remove_pins()?;
    let _daemon = lab.start()?;
    lab.refused_token(&token, Reason::Revoked)?;
    lab.delivered(&other)?;
    ensure!(revoked(&lab)?.len() == 1, "{:?}", revoked(&lab)?);

    // Lifted, it is as if it had never been: also what is cached.
    let lifted = lab.json(&["sessions", "unrevoke", "7", "--service", "game"])?;
    ensure!(lifted[0]["session_id"] == "7", "{lifted}");
    lab.delivered(&token)?;
    lab.delivered(&another)?;
    ensure!(revoked(&lab)?.is_empty(), "{:?}", revoked(&lab)?);

    // For a time.
    lab.json(&["sessions", "revoke", "8", "9", "--service", "42", "--for", "2s"])?;
    lab.refused_token(&other, Reason::Revoked)?;
    wait_for("the end of a revocation", || Ok(revoked(&lab)?.is_empty()))?;
    thread::sleep(A_TICK);
    lab.delivered(&other)?;
    Ok(())
}

/// Sessions remember up to which addition to the list they are clean. Where the count of these is lost, so is that.
#[test]
fn a_pin_that_is_gone_hides_no_revocation() -> Result<()> {
    let lab = Lab::of(Family::V4, L2, 1)?;
    let daemon = lab.start()?;
    let (token, revoked) = (lab.token(7)?, lab.token(8)?);
    lab.json(&["sessions", "revoke", "8", "--service", "game"])?;
    lab.delivered(&token)?;
    daemon.terminate()?;
    fs::remove_file(lab.pin(LIVE))?;
    let _daemon = lab.start()?;
    lab.refused_token(&revoked, Reason::Revoked)?;
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    lab.refused_token(&token, Reason::Revoked)?;
    Ok(())
}

/// A daemon may end after it has added to the list and before it has counted that.
#[test]
fn an_addition_that_was_not_counted_is_in_force() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let (cached, new) = (lab.token(7)?, lab.token(7)?);
    lab.delivered(&cached)?;
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.kill()?;
    change_live(&lab, |live| live.revocations -= 1)?;
    let _daemon = lab.start()?;
    lab.refused_token(&cached, Reason::Revoked)?;
    lab.refused_token(&new, Reason::Revoked)?;
    Ok(())
}

/// A token that a lower `max_ttl` refuses counts again once that is raised: its session stays revoked.
#[test]
fn a_session_stays_revoked_whatever_max_ttl_is() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let with_max_ttl = |seconds: &str| {
        let fields = format!("{L2}\nmax_ttl = \"{seconds}\"");
        lab.place.configure(&lab.service(&fields, 1))
    };
    let daemon = lab.start()?;
    let token = lab.token(7)?;
    daemon.terminate()?;
    with_max_ttl("1s")?;
    let daemon = lab.start()?;
    let answer = lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    let lasts = answer[0]["until"].as_u64().context("a second")? - u64::from(unix_now());
    ensure!((3602..=3605).contains(&lasts), "{lasts} s");
    daemon.terminate()?;
    with_max_ttl("1h")?;
    let _daemon = lab.start()?;
    lab.refused_token(&token, Reason::Revoked)?;
    Ok(())
}

fn a_revoked_token_leaves_its_session_alone(family: Family) -> Result<()> {
    let lab = Lab::of(family, L2, 1)?;
    let _daemon = lab.start()?;
    let (first, second, third) = (lab.token(7)?, lab.token(7)?, lab.token(7)?);
    lab.delivered(&first)?;
    let answer = lab.json(&["token", "revoke", &hex_of(&first)])?;
    ensure!(answer["nonce"] == hex::encode(first.nonce().to_le_bytes()), "{answer}");
    ensure!(answer["until"] == u64::from(first.expires_at()) + 2, "{answer}");
    lab.refused_token(&first, Reason::Revoked)?;
    // By its claims alone.
    lab.json(&["token", "revoke", &hex_of(&second)[..80], "--service", "game"])?;
    lab.refused_token(&second, Reason::Revoked)?;
    lab.delivered(&third)?;
    lab.json(&["token", "unrevoke", &hex_of(&first)])?;
    lab.delivered(&first)?;
    lab.refused_token(&second, Reason::Revoked)?;
    let again = lab.run(&["token", "unrevoke", &hex_of(&first)])?;
    ensure!(
        again.status.code() == Some(1) && said(&again).contains("is not revoked by name"),
        "{}",
        said(&again)
    );
    lab.json(&["token", "revoke", &hex_of(&first)])?;
    let issuer = lab.issuer()?;
    let expired = issuer.token_at(session(7, 0), unix_now() - 100, 10);
    let endless = issuer.token_at(session(7, 0), unix_now(), 3601);
    let damaged = hex_of(&third).replacen(&hex_of(&third)[32..36], "0000", 1);
    let unknown = hex_of(&third).replacen(&hex_of(&third)[8..16], "00001001", 1);
    for (token, said_of_it) in [
        (hex_of(&expired), "there is nothing to revoke"),
        (hex_of(&endless), "max_ttl of 3600 s"),
        (unknown, "add --service"),
        (damaged, "`bad_fast_tag`"),
        ("00".repeat(64), "`no_token`"),
        ("xyz".to_owned(), "hexadecimal"),
    ] {
        let output = lab.run(&["token", "revoke", &token])?;
        ensure!(output.status.code() == Some(1) && said(&output).contains(said_of_it), "{}", said(&output));
    }
    ensure!(revoked(&lab)?.len() == 2, "{:?}", revoked(&lab)?);
    Ok(())
}

fn what_was_issued_before_is_refused(family: Family) -> Result<()> {
    let lab = Lab::of(family, L2, 1)?;
    let daemon = lab.start()?;
    let cached = lab.token(7)?;
    lab.delivered(&cached)?;
    // Issued a moment ago: in this second, probably.
    let another = lab.token(7)?;
    let answer = lab.json(&["services", "revoke-before", "game"])?;
    let before = answer["revoked_before"].as_u64().context("a second")?;
    lab.refused_token(&cached, Reason::Revoked)?;
    lab.refused_token(&another, Reason::Revoked)?;
    // And in this second still: what is minted now is valid now.
    lab.delivered(&lab.mint(&[])?)?;
    let earlier = lab.json(&["services", "revoke-before", "game", "2001-02-03T04:05:06Z"])?;
    ensure!(earlier["revoked_before"] == before, "taken back: {earlier}");
    let future = (unix_now() + 60).to_string();
    let output = lab.run(&["services", "revoke-before", "game", &future])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("in the future"), "{}", said(&output));
    daemon.kill()?;
    let daemon = lab.start()?;
    lab.refused_token(&cached, Reason::Revoked)?;
    daemon.terminate()?;
    lab.remove_pins()?;
    let _daemon = lab.start()?;
    lab.refused_token(&cached, Reason::Revoked)?;
    lab.delivered(&lab.mint(&[])?)?;
    ensure!(lab.json(&["services", "list"])?[0]["revoked_before"] == before);
    Ok(())
}

#[test]
fn a_full_list_refuses_and_forgets_nothing() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let sessions: Vec<String> = (0..REVOCATIONS_MAX).map(|session| session.to_string()).collect();
    let revoke = |sessions: &[String]| {
        let sessions = sessions.iter().map(String::as_str);
        lab.run(&["sessions", "revoke", "--service", "game"].into_iter().chain(sessions).collect::<Vec<_>>())
    };
    let output = revoke(&sessions)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (first, last) = (lab.token(0)?, lab.token((REVOCATIONS_MAX - 1).into())?);
    lab.refused_token(&first, Reason::Revoked)?;
    lab.refused_token(&last, Reason::Revoked)?;

    let beyond = lab.token(REVOCATIONS_MAX.into())?;
    lab.delivered(&beyond)?;
    let output = revoke(&[REVOCATIONS_MAX.to_string()])?;
    let loud =
        output.status.code() == Some(1) && said(&output).contains("NOT revoked: the list has room for 65536");
    ensure!(loud, "{}", said(&output));
    ensure!(daemon.log().contains("NOT revoked"), "{}", daemon.log());
    lab.delivered(&beyond)?;
    lab.refused_token(&first, Reason::Revoked)?;
    lab.refused_token(&last, Reason::Revoked)?;
    let (_, page) = http(&lab.topology.balancer, "/metrics")?;
    for sample in [
        "tollgate_revocations{kind=\"session\"} 65536",
        "tollgate_revocations{kind=\"token\"} 0",
        "tollgate_revocations_capacity{} 65536",
        "tollgate_kernel_differences{} 0",
    ] {
        ensure!(page.lines().any(|line| line == sample), "{sample} is missing:\n{page}");
    }
    // What the error proposes works.
    lab.json(&["services", "revoke-before", "game"])?;
    lab.refused_token(&beyond, Reason::Revoked)?;
    daemon.kill()?;
    let _daemon = lab.start()?;
    lab.refused_token(&last, Reason::Revoked)
}

/// Of one command.
const TOGETHER: u64 = 3;

/// Revokes sessions, some with each command, until one has no answer. Returns the first of those that had.
fn revoke_until_it_ends(lab: &Lab, next: &AtomicU64, answers: &AtomicU64) -> Result<Vec<u64>> {
    let mut answered = Vec::new();
    loop {
        let first = next.fetch_add(TOGETHER, Ordering::Relaxed);
        let sessions: Vec<_> = (first..first + TOGETHER).map(|session| session.to_string()).collect();
        let sessions = sessions.iter().map(String::as_str);
        let revoke = ["sessions", "revoke", "--service", "game"].into_iter().chain(sessions);
        if !lab.run(&revoke.collect::<Vec<_>>())?.status.success() {
            return Ok(answered);
        }
        answered.push(first);
        answers.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_was_answered_is_in_force_after_a_crash() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let issuer = {
        let _daemon = lab.start()?;
        lab.issuer()?
    };
    let token = |session_id| issuer.token(session(session_id, 0), TTL);
    let other = token(1);
    let (next, mut answered) = (AtomicU64::new(TOGETHER), Vec::new());
    for crash in 0..10 {
        let daemon = lab.start()?;
        let answers = AtomicU64::new(0);
        thread::scope(|scope| {
            // Several, so that it always has one under way.
            let callers = [(); 3].map(|()| scope.spawn(|| revoke_until_it_ends(&lab, &next, &answers)));
            wait_for("answers", || Ok(answers.load(Ordering::Relaxed) >= crash))?;
            daemon.kill()?;
            for caller in callers {
                answered.extend(caller.join().unwrap_or_else(|panic| resume_unwind(panic))?);
            }
            anyhow::Ok(())
        })?;
        let _daemon = lab.start()?;
        let mut listed = BTreeSet::new();
        for one in revoked(&lab)? {
            listed.insert(one["session_id"].as_str().context("a session")?.parse::<u64>()?);
        }
        let of = |first: &u64| (*first..first + TOGETHER).filter(|one| listed.contains(one)).count() as u64;
        ensure!(answered.iter().all(|first| of(first) == TOGETHER), "{answered:?} answered, {listed:?}");
        let mut begun = (TOGETHER..next.load(Ordering::Relaxed)).step_by(TOGETHER as usize);
        ensure!(begun.all(|first| matches!(of(&first), 0 | TOGETHER)), "half a command: {listed:?}");
        if let Some(first) = answered.last() {
            lab.refused_token(&token(first + TOGETHER - 1), Reason::Revoked)?;
        }
        lab.delivered(&other)?;
    }
    ensure!(answered.len() >= 45, "{answered:?}");
    Ok(())
}

#[test]
fn what_cannot_be_revoked_is_said() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let _daemon = lab.start()?;
    for (args, status, expected) in [
        (&["sessions", "revoke", "7", "--service", "none"][..], 1, "there is game"),
        (&["sessions", "revoke", "7", "--service", "game", "--for", "0s"], 1, "for no time"),
        (&["sessions", "revoke", "--service", "game"], 2, "<N>"),
        (&["sessions", "revoke", "seven", "--service", "game"], 2, "invalid"),
        (&["sessions", "unrevoke", "7", "--service", "game"], 1, "session 7 is not revoked by name"),
        (&["sessions", "unrevoke", "7", "--service", "none"], 1, "there is game"),
        (&["services", "revoke-before", "none"], 1, "there is game"),
        (&["services", "revoke-before", "game", "yesterday"], 2, "2030-01-31T12:00:00Z"),
    ] {
        let output = lab.run(args)?;
        ensure!(
            output.status.code() == Some(status) && said(&output).contains(expected),
            "{}",
            said(&output)
        );
    }
    ensure!(revoked(&lab)?.is_empty());
    Ok(())
}
