//! Revocation of sessions, of tokens, and of everything that a service issued: immediate, regardless of caches, and
//! persistent across restarts.

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
    maps::{CONTROL, REVOCATIONS_MAX},
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
    testbed::{L2, TTL, Testbed, over_both},
};

over_both!(
    a_revoked_session_is_refused_with_the_next_packet,
    a_revoked_token_leaves_its_session_alone,
    what_was_issued_before_is_refused,
);

/// The program's clock advances with the kernel's ticks, so it is behind the daemon's by one tick at most.
const A_TICK: Duration = Duration::from_millis(10);

/// The revocations by name: sessions and tokens.
fn revoked(testbed: &Testbed) -> Result<Vec<serde_json::Value>> {
    Ok(testbed.json(&["sessions", "list", "--revoked"])?["items"].as_array().context("a list")?.clone())
}

fn hex_of(token: &Header) -> String {
    hex::encode(token.to_bytes())
}

fn a_revoked_session_is_refused_with_the_next_packet(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let (token, another, other) = (testbed.token(7)?, testbed.token(7)?, testbed.token(8)?);
    testbed.delivered(&token)?;
    testbed.delivered(&other)?;
    let answer = testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    ensure!(answer["items"][0]["session_id"] == "7" && answer["items"][0]["service_id"] == 42, "{answer}");
    // An hour, the default of `max_ttl`, and the skew of both clocks.
    let lasts = answer["items"][0]["until"].as_u64().context("a second")? - u64::from(unix_now());
    ensure!((3602..=3605).contains(&lasts), "{lasts} s");
    // One token is cached, the other is new.
    testbed.refused_token(&token, Reason::Revoked)?;
    testbed.refused_token(&another, Reason::Revoked)?;
    testbed.delivered(&other)?;
    let inspected = testbed.json(&["token", "inspect", &hex_of(&another)])?;
    ensure!(inspected["verdict"] == "revoked", "{inspected}");
    let cached = testbed.json(&["sessions", "list", "--service", "game"])?;
    let cached = cached["items"].as_array().context("a list")?;
    ensure!(cached.len() == 3, "{cached:?}");
    ensure!(cached.iter().all(|one| one["revoked"] == (one["session_id"] == "7")), "{cached:?}");

    // After a crash, and without the kernel's maps.
    daemon.kill()?;
    let daemon = testbed.start()?;
    testbed.refused_token(&token, Reason::Revoked)?;
    daemon.terminate()?;
    testbed.remove_pins()?;
    let _daemon = testbed.start()?;
    testbed.refused_token(&token, Reason::Revoked)?;
    testbed.delivered(&other)?;
    ensure!(revoked(&testbed)?.len() == 1, "{:?}", revoked(&testbed)?);

    // A removed revocation has no effect, not even on cached tokens.
    let lifted = testbed.json(&["sessions", "unrevoke", "7", "--service", "game"])?;
    ensure!(lifted["items"][0]["session_id"] == "7", "{lifted}");
    testbed.delivered(&token)?;
    testbed.delivered(&another)?;
    ensure!(revoked(&testbed)?.is_empty(), "{:?}", revoked(&testbed)?);

    // For a limited time.
    testbed.json(&["sessions", "revoke", "8", "9", "--service", "42", "--for", "2s"])?;
    testbed.refused_token(&other, Reason::Revoked)?;
    wait_for("the end of a revocation", || Ok(revoked(&testbed)?.is_empty()))?;
    thread::sleep(A_TICK);
    testbed.delivered(&other)?;
    Ok(())
}

/// A cached session records the number of additions to the list up to which it was checked. If the counter of additions
/// is lost, this record is invalid, too.
#[test]
fn a_pin_that_is_gone_hides_no_revocation() -> Result<()> {
    let testbed = Testbed::of(Family::V4, L2, 1)?;
    let daemon = testbed.start()?;
    let (token, revoked) = (testbed.token(7)?, testbed.token(8)?);
    testbed.json(&["sessions", "revoke", "8", "--service", "game"])?;
    testbed.delivered(&token)?;
    daemon.terminate()?;
    fs::remove_file(testbed.pin(CONTROL))?;
    let _daemon = testbed.start()?;
    testbed.refused_token(&revoked, Reason::Revoked)?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    testbed.refused_token(&token, Reason::Revoked)?;
    Ok(())
}

/// A daemon may end after it has added to the list and before it has increased the counter.
#[test]
fn an_addition_that_was_not_counted_is_in_force() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    let (cached, new) = (testbed.token(7)?, testbed.token(7)?);
    testbed.delivered(&cached)?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.kill()?;
    change_live(&testbed, |live| live.revocations -= 1)?;
    let _daemon = testbed.start()?;
    testbed.refused_token(&cached, Reason::Revoked)?;
    testbed.refused_token(&new, Reason::Revoked)?;
    Ok(())
}

/// A token that a lower `max_ttl` refuses is valid again once `max_ttl` is raised: its session stays revoked.
#[test]
fn a_session_stays_revoked_whatever_max_ttl_is() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let with_max_ttl = |seconds: &str| {
        let fields = format!("{L2}\nmax_ttl = \"{seconds}\"");
        testbed.instance.configure(&testbed.service(&fields, 1))
    };
    let daemon = testbed.start()?;
    let token = testbed.token(7)?;
    daemon.terminate()?;
    with_max_ttl("1s")?;
    let daemon = testbed.start()?;
    let answer = testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    let lasts = answer["items"][0]["until"].as_u64().context("a second")? - u64::from(unix_now());
    ensure!((3602..=3605).contains(&lasts), "{lasts} s");
    daemon.terminate()?;
    with_max_ttl("1h")?;
    let _daemon = testbed.start()?;
    testbed.refused_token(&token, Reason::Revoked)?;
    Ok(())
}

fn a_revoked_token_leaves_its_session_alone(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let _daemon = testbed.start()?;
    let (first, second, third) = (testbed.token(7)?, testbed.token(7)?, testbed.token(7)?);
    testbed.delivered(&first)?;
    let answer = testbed.json(&["token", "revoke", &hex_of(&first)])?;
    ensure!(answer["nonce"] == hex::encode(first.nonce().to_le_bytes()), "{answer}");
    ensure!(answer["until"] == u64::from(first.expires_at()) + 2, "{answer}");
    testbed.refused_token(&first, Reason::Revoked)?;
    // By the claims of the token alone.
    testbed.json(&["token", "revoke", &hex_of(&second)[..80], "--service", "game"])?;
    testbed.refused_token(&second, Reason::Revoked)?;
    testbed.delivered(&third)?;
    testbed.json(&["token", "unrevoke", &hex_of(&first)])?;
    testbed.delivered(&first)?;
    testbed.refused_token(&second, Reason::Revoked)?;
    let again = testbed.run(&["token", "unrevoke", &hex_of(&first)])?;
    ensure!(
        again.status.code() == Some(1) && said(&again).contains("is not revoked by name"),
        "{}",
        said(&again)
    );
    testbed.json(&["token", "revoke", &hex_of(&first)])?;
    let issuer = testbed.issuer()?;
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
        let output = testbed.run(&["token", "revoke", &token])?;
        ensure!(output.status.code() == Some(1) && said(&output).contains(said_of_it), "{}", said(&output));
    }
    ensure!(revoked(&testbed)?.len() == 2, "{:?}", revoked(&testbed)?);
    Ok(())
}

fn what_was_issued_before_is_refused(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let cached = testbed.token(7)?;
    testbed.delivered(&cached)?;
    // Issued a moment ago, probably in this second.
    let another = testbed.token(7)?;
    let answer = testbed.json(&["services", "revoke-before", "game"])?;
    let before = answer["revoked_before"].as_u64().context("a second")?;
    testbed.refused_token(&cached, Reason::Revoked)?;
    testbed.refused_token(&another, Reason::Revoked)?;
    // Even in the same second, a token that is minted now is valid now.
    testbed.delivered(&testbed.mint(&[])?)?;
    let earlier = testbed.json(&["services", "revoke-before", "game", "2001-02-03T04:05:06Z"])?;
    ensure!(earlier["revoked_before"] == before, "taken back: {earlier}");
    let future = (unix_now() + 60).to_string();
    let output = testbed.run(&["services", "revoke-before", "game", &future])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("in the future"), "{}", said(&output));
    daemon.kill()?;
    let daemon = testbed.start()?;
    testbed.refused_token(&cached, Reason::Revoked)?;
    daemon.terminate()?;
    testbed.remove_pins()?;
    let _daemon = testbed.start()?;
    testbed.refused_token(&cached, Reason::Revoked)?;
    testbed.delivered(&testbed.mint(&[])?)?;
    ensure!(testbed.json(&["services", "list"])?["items"][0]["revoked_before"] == before);
    Ok(())
}

#[test]
fn a_full_list_refuses_and_forgets_nothing() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    let sessions: Vec<String> = (0..REVOCATIONS_MAX).map(|session| session.to_string()).collect();
    let revoke = |sessions: &[String]| {
        let sessions = sessions.iter().map(String::as_str);
        testbed
            .run(&["sessions", "revoke", "--service", "game"].into_iter().chain(sessions).collect::<Vec<_>>())
    };
    let output = revoke(&sessions)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (first, last) = (testbed.token(0)?, testbed.token((REVOCATIONS_MAX - 1).into())?);
    testbed.refused_token(&first, Reason::Revoked)?;
    testbed.refused_token(&last, Reason::Revoked)?;

    let beyond = testbed.token(REVOCATIONS_MAX.into())?;
    testbed.delivered(&beyond)?;
    let output = revoke(&[REVOCATIONS_MAX.to_string()])?;
    let loud =
        output.status.code() == Some(1) && said(&output).contains("NOT revoked: the capacity is 65536");
    ensure!(loud, "{}", said(&output));
    ensure!(daemon.log().contains("NOT revoked"), "{}", daemon.log());
    testbed.delivered(&beyond)?;
    testbed.refused_token(&first, Reason::Revoked)?;
    testbed.refused_token(&last, Reason::Revoked)?;
    let (_, page) = http(&testbed.topology.balancer, "/metrics")?;
    for sample in [
        "tollgate_revocations{kind=\"session\"} 65536",
        "tollgate_revocations{kind=\"token\"} 0",
        "tollgate_revocations_capacity{} 65536",
        "tollgate_kernel_differences{} 0",
    ] {
        ensure!(page.lines().any(|line| line == sample), "{sample} is missing:\n{page}");
    }
    // The hint in the error works.
    testbed.json(&["services", "revoke-before", "game"])?;
    testbed.refused_token(&beyond, Reason::Revoked)?;
    daemon.kill()?;
    let _daemon = testbed.start()?;
    testbed.refused_token(&last, Reason::Revoked)
}

/// Number of sessions that one command revokes.
const TOGETHER: u64 = 3;

/// Revokes sessions, several with each command, until one command fails. Returns the first session of each command
/// that succeeded.
fn revoke_until_it_ends(testbed: &Testbed, next: &AtomicU64, answers: &AtomicU64) -> Result<Vec<u64>> {
    let mut answered = Vec::new();
    loop {
        let first = next.fetch_add(TOGETHER, Ordering::Relaxed);
        let sessions: Vec<_> = (first..first + TOGETHER).map(|session| session.to_string()).collect();
        let sessions = sessions.iter().map(String::as_str);
        let revoke = ["sessions", "revoke", "--service", "game"].into_iter().chain(sessions);
        if !testbed.run(&revoke.collect::<Vec<_>>())?.status.success() {
            return Ok(answered);
        }
        answered.push(first);
        answers.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_was_answered_is_in_force_after_a_crash() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let issuer = {
        let _daemon = testbed.start()?;
        testbed.issuer()?
    };
    let token = |session_id| issuer.token(session(session_id, 0), TTL);
    let other = token(1);
    let (next, mut answered) = (AtomicU64::new(TOGETHER), Vec::new());
    for crash in 0..10 {
        let daemon = testbed.start()?;
        let answers = AtomicU64::new(0);
        thread::scope(|scope| {
            // Several threads, so that a request is always pending.
            let callers = [(); 3].map(|()| scope.spawn(|| revoke_until_it_ends(&testbed, &next, &answers)));
            wait_for("answers", || Ok(answers.load(Ordering::Relaxed) >= crash))?;
            daemon.kill()?;
            for caller in callers {
                answered.extend(caller.join().unwrap_or_else(|panic| resume_unwind(panic))?);
            }
            anyhow::Ok(())
        })?;
        let _daemon = testbed.start()?;
        let mut listed = BTreeSet::new();
        for one in revoked(&testbed)? {
            listed.insert(one["session_id"].as_str().context("a session")?.parse::<u64>()?);
        }
        let of = |first: &u64| (*first..first + TOGETHER).filter(|one| listed.contains(one)).count() as u64;
        ensure!(answered.iter().all(|first| of(first) == TOGETHER), "{answered:?} answered, {listed:?}");
        let mut begun = (TOGETHER..next.load(Ordering::Relaxed)).step_by(TOGETHER as usize);
        ensure!(begun.all(|first| matches!(of(&first), 0 | TOGETHER)), "half a command: {listed:?}");
        if let Some(first) = answered.last() {
            testbed.refused_token(&token(first + TOGETHER - 1), Reason::Revoked)?;
        }
        testbed.delivered(&other)?;
    }
    ensure!(answered.len() >= 45, "{answered:?}");
    Ok(())
}

#[test]
fn what_cannot_be_revoked_is_said() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    for (args, status, expected) in [
        (&["sessions", "revoke", "7", "--service", "none"][..], 1, "there is game"),
        (&["sessions", "revoke", "7", "--service", "game", "--for", "0s"], 1, "a second or longer"),
        (&["sessions", "revoke", "--service", "game"], 2, "<N>"),
        (&["sessions", "revoke", "seven", "--service", "game"], 2, "invalid"),
        (&["sessions", "unrevoke", "7", "--service", "game"], 1, "session 7 is not revoked by name"),
        (&["sessions", "unrevoke", "7", "--service", "none"], 1, "there is game"),
        (&["services", "revoke-before", "none"], 1, "there is game"),
        (&["services", "revoke-before", "game", "yesterday"], 2, "2030-01-31T12:00:00Z"),
    ] {
        let output = testbed.run(args)?;
        ensure!(
            output.status.code() == Some(status) && said(&output).contains(expected),
            "{}",
            said(&output)
        );
    }
    ensure!(revoked(&testbed)?.is_empty());
    Ok(())
}
