//! The program's clock: the kernel's ticks plus an offset that the daemon publishes once.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use lb_common::{control::SECOND_NS, reason::Reason, scratch::BURST_NS, token::mint::Grant};
use lb_tests::model::{
    case::{Case, both},
    fixture::{self, Fixture, SESSION},
    packet::Packet,
    program::{Outcome, Program, Verdict, pin_to_cpu, small},
};
use tollgate::datapath::Options;

use crate::{
    matrix::case_groups,
    proof::{self, TS, forwarded, refused},
};

/// Longer than a tick, and longer than a test run can be delayed.
const LONG: Duration = Duration::from_secs(30);

fn unix_seconds() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn run(program: &Program, issued_at: u64, expires_at: u64, nonce: u64) -> Result<Outcome> {
    let grant = Grant {
        issued_at: u32::try_from(issued_at)?,
        expires_at: u32::try_from(expires_at)?,
        nonce: nonce.to_be_bytes(),
        ..fixture::grant()
    };
    program.run(&Packet::with_token(&fixture::key().bearer(&grant)).bytes())
}

#[test]
fn tokens_become_valid_and_expire() -> Result<()> {
    let mut program = Program::load()?;
    program.start_clock(unix_seconds()? * SECOND_NS)?;
    let now = unix_seconds()?;
    // Within the tolerance for skew and for the delay of a slow machine between two lines.
    ensure!(run(&program, now - 60, now + 60, 1)?.verdict == Verdict::Transmit);
    ensure!(run(&program, now - 60, now - 3, 2)?.verdict == Verdict::Drop);
    ensure!(run(&program, now + 40, now + 60, 3)?.verdict == Verdict::Drop);
    // Valid for the duration of the skew, and expired soon after.
    let deadline = Instant::now() + LONG;
    while run(&program, now - 60, now, 4)?.verdict == Verdict::Transmit {
        ensure!(Instant::now() < deadline, "the program's clock does not advance");
        std::thread::yield_now();
    }
    let counts = program.counts()?;
    let packets = |reason| counts.reasons.get(&(fixture::SERVICE_INDEX, reason)).map_or(0, |c| c.packets);
    ensure!(packets(Reason::NotYetValid) == 1 && packets(Reason::Expired) == 2, "{counts:?}");
    Ok(())
}

/// A budget of one HMAC per tenth of a second recovers.
#[test]
fn the_budget_fills_again() -> Result<()> {
    pin_to_cpu(0)?;
    let mut program = Program::load_with(&Options { hmac_cost_ns: BURST_NS, ..small() })?;
    program.start_clock(unix_seconds()? * SECOND_NS)?;
    let now = unix_seconds()?;
    let mut nonces = 0..;
    let mut new_token = || run(&program, now, now + 3600, nonces.next().unwrap_or_default());
    let deadline = Instant::now() + LONG;
    let mut admitted = 0;
    while admitted < 3 {
        ensure!(Instant::now() < deadline, "{admitted} new tokens were admitted in {LONG:?}");
        admitted += u32::from(new_token()?.verdict == Verdict::Transmit);
    }
    let counts = program.counts()?;
    let refused = counts.reasons.get(&(fixture::SERVICE_INDEX, Reason::HmacBudget));
    ensure!(refused.is_some(), "the budget never ran out: {counts:?}");
    ensure!(program.hmacs()? == 3);
    Ok(())
}

/// The clock is not confirmed for an hour, and then for longer. It advances with the kernel's ticks, so tokens expire
/// on time, and new tokens are admitted for an hour and six minutes.
#[test]
fn a_daemon_that_is_gone() -> Result<()> {
    let mut program = Program::load()?;
    let kernel_ns = program.start_clock(unix_seconds()? * SECOND_NS)?;
    let gone_for = |program: &mut Program, seconds| {
        program.datapath().control_page.set_confirmed_ns(kernel_ns - seconds * SECOND_NS);
    };
    let now = unix_seconds()?;
    gone_for(&mut program, 3600);
    ensure!(run(&program, now - 3600, now - 3300, 1)?.verdict == Verdict::Drop);
    ensure!(run(&program, now - 3590, now + 10, 2)?.verdict == Verdict::Transmit);
    ensure!(run(&program, now, now + 300, 3)?.verdict == Verdict::Transmit);
    gone_for(&mut program, 4001);
    ensure!(run(&program, now, now + 300, 3)?.verdict == Verdict::Transmit, "it was admitted before");
    ensure!(run(&program, now, now + 300, 4)?.verdict == Verdict::Drop);
    // The daemon is back.
    gone_for(&mut program, 0);
    ensure!(run(&program, now, now + 300, 4)?.verdict == Verdict::Transmit);
    let counts = program.counts()?;
    let packets = |reason| counts.reasons.get(&(fixture::SERVICE_INDEX, reason)).map_or(0, |c| c.packets);
    let counted = [Reason::Forwarded, Reason::Expired, Reason::StaleClock].map(packets);
    ensure!(counted == [4, 1, 1] && counts.packets() == 6, "{counts:?}");
    ensure!(program.hmacs()? == 3);
    Ok(())
}

case_groups! {
    confirmation: "A clock that is not confirmed" => both(|_| cases());
}

fn cases() -> Vec<Case> {
    // Ticks long enough that more than an hour has passed since the kernel's clock was at 0.
    let confirmed =
        |seconds| Fixture { tick_ns: 1000, clock_age_ns: seconds * SECOND_NS, ..proof::fixture() };
    let bearer = Packet::default();
    let proof = |seq| Packet::with_proof(&fixture::key().proof(&fixture::grant()), seq, TS);
    let good =
        |name, seconds, packet: &Packet| forwarded(name, SESSION, packet).with_fixture(confirmed(seconds));
    let stale =
        |name, packet: &Packet| refused(name, packet, Reason::StaleClock).with_fixture(confirmed(4001));
    let before = |packet: &Packet| vec![good("before", 0, packet)];
    let mut forged = bearer.clone();
    forged.payload[47] ^= 1;
    let expired =
        Fixture { now_ns: u64::from(fixture::grant().expires_at + 2) * SECOND_NS, ..confirmed(4001) };
    vec![
        good("a new token, 3,999 s after the last confirmation", 3999, &bearer),
        stale("a new token, 4,001 s after", &bearer),
        good("a cached token, 4,001 s after", 4001, &bearer).after(before(&bearer)),
        good("a new PROOF token, 3,999 s after", 3999, &proof(1)),
        stale("a new PROOF token, 4,001 s after", &proof(1)),
        good("the next proof of a cached token, 4,001 s after", 4001, &proof(2)).after(before(&proof(1))),
        refused("a forged token, 4,001 s after", &forged, Reason::BadFastTag).with_fixture(confirmed(4001)),
        refused("a cached token that has expired, 4,001 s after", &bearer, Reason::Expired)
            .with_fixture(expired)
            .after(before(&bearer)),
    ]
}
