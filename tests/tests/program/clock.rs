//! Time goes on by itself: from the kernel's ticks and the offset that is published once.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use lb_common::{live::SECOND_NS, reason::Reason, scratch::BURST_NS, token::mint::Grant};
use lb_tests::{
    packet::Packet,
    program::{Outcome, Program, Verdict, pin_to_cpu, small},
    world,
};
use tollgate::datapath::Options;

/// More than a tick, and more than a test run can be late.
const LONG: Duration = Duration::from_secs(30);

fn unix_seconds() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn run(program: &Program, issued_at: u64, expires_at: u64, nonce: u64) -> Result<Outcome> {
    let grant = Grant {
        issued_at: u32::try_from(issued_at)?,
        expires_at: u32::try_from(expires_at)?,
        nonce: nonce.to_be_bytes(),
        ..world::grant()
    };
    program.run(&Packet::with_token(&world::key().bearer(&grant)).bytes())
}

#[test]
fn tokens_become_valid_and_expire() -> Result<()> {
    let mut program = Program::load()?;
    program.start_clock(unix_seconds()? * SECOND_NS)?;
    let now = unix_seconds()?;
    // Within the margins of skew and of what a slow machine may lose between two lines.
    ensure!(run(&program, now - 60, now + 60, 1)?.verdict == Verdict::Transmit);
    ensure!(run(&program, now - 60, now - 3, 2)?.verdict == Verdict::Drop);
    ensure!(run(&program, now + 40, now + 60, 3)?.verdict == Verdict::Drop);
    // Not yet expired by the skew, and soon enough it is.
    let deadline = Instant::now() + LONG;
    while run(&program, now - 60, now, 4)?.verdict == Verdict::Transmit {
        ensure!(Instant::now() < deadline, "the program's clock stands still");
        std::thread::yield_now();
    }
    let counts = program.counts()?;
    let packets = |reason| counts.reasons.get(&(world::SERVICE_INDEX, reason)).map_or(0, |c| c.packets);
    ensure!(packets(Reason::NotYetValid) == 1 && packets(Reason::Expired) == 2, "{counts:?}");
    Ok(())
}

/// A budget of one HMAC in a tenth of a second fills again.
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
    let refused = counts.reasons.get(&(world::SERVICE_INDEX, Reason::HmacBudget));
    ensure!(refused.is_some(), "the budget never ran out: {counts:?}");
    ensure!(program.hmacs()? == 3);
    Ok(())
}
