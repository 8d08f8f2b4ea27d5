//! The clock after a restart. The offset that the previous daemon published is compared with a wall clock that was set
//! meanwhile.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::{
    control::{ControlPage, OFFSET_STALE_NS, SECOND_NS},
    maps::CONTROL,
    reason::Reason,
};
use lb_tests::testbed::{
    daemon::{Daemon, http, said, wait_for},
    issuer::{session, unix_now},
    topology::Family,
};

use crate::testbed::{L2, TTL, Testbed, over_both};

over_both!(
    a_clock_that_was_set_back_brings_no_token_back,
    a_clock_that_was_set_forward_is_followed,
    a_clock_that_nobody_confirms_admits_nothing_new,
    what_was_issued_by_a_clock_that_was_ahead_can_be_revoked,
);

/// Changes the control page while no daemon is running.
pub fn change_live(testbed: &Testbed, change: impl FnOnce(&mut ControlPage)) -> Result<()> {
    let pin = testbed.pin(CONTROL);
    let mut map: Array<_, ControlPage> = Map::Array(MapData::from_pin(pin)?).try_into()?;
    let mut live = map.get(&0, 0)?;
    change(&mut live);
    Ok(map.set(0, live, 0)?)
}

/// Starts the daemon and waits until it reports why it is not ready.
fn start_unready(testbed: &Testbed, why: &str) -> Result<Daemon> {
    let daemon = Daemon::spawn(&testbed.instance, &testbed.topology.balancer)?;
    wait_for(why, || {
        let answer = http(&testbed.topology.balancer, "/readyz");
        Ok(answer.is_ok_and(|(status, reasons)| status == 503 && reasons.contains(why)))
    })?;
    Ok(daemon)
}

/// The sample of a metric.
fn sample(testbed: &Testbed, name: &str) -> Result<f64> {
    let (_, page) = http(&testbed.topology.balancer, "/metrics")?;
    let line =
        page.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{name}\n{page}"))?;
    Ok(line.trim().parse()?)
}

fn a_clock_that_was_set_back_brings_no_token_back(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    let clock = testbed.json(&["clock"])?;
    let follows = clock["held"] == false && clock["stale"] == false;
    ensure!(follows && clock["difference_seconds"].as_f64().is_some_and(|by| by.abs() < 0.5), "{clock}");
    let output = testbed.run(&["clock", "accept"])?;
    let nothing = output.status.code() == Some(1) && said(&output).contains("nothing to accept");
    ensure!(nothing, "{}", said(&output));
    daemon.terminate()?;

    // An hour ago, the clock was an hour ahead.
    change_live(&testbed, |live| live.offset_ns += 3600 * SECOND_NS)?;
    let daemon = start_unready(&testbed, "the wall clock was set back by 1h")?;
    testbed.refused_token(&token, Reason::Expired)?;
    let clock = testbed.json(&["clock"])?;
    ensure!(clock["held"] == true && clock["jumps_backward"] == 1, "{clock}");
    ensure!(sample(&testbed, "tollgate_clock_jumps_total{direction=\"backward\"}")? == 1.0);
    ensure!((-3601.0..-3599.0).contains(&sample(&testbed, "tollgate_clock_difference_seconds{}")?));
    ensure!(daemon.log().contains("the wall clock was set back by"), "{}", daemon.log());
    daemon.kill()?;
    let _daemon = start_unready(&testbed, "`tollgate clock accept`")?;
    testbed.refused_token(&token, Reason::Expired)?;

    let accepted = testbed.json(&["clock", "accept"])?;
    crate::api::check(&["clock", "accept"], &accepted)?;
    ensure!(accepted["seconds_back"].as_u64().is_some_and(|by| (3599..=3601).contains(&by)), "{accepted}");
    wait_for("readiness", || Ok(http(&testbed.topology.balancer, "/readyz")?.0 == 200))?;
    ensure!(testbed.json(&["clock"])?["held"] == false);
    testbed.refused_token(&token, Reason::Revoked)?;
    testbed.delivered(&testbed.mint(&[])?)?;
    Ok(())
}

fn a_clock_that_was_set_forward_is_followed(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    daemon.terminate()?;
    change_live(&testbed, |live| live.offset_ns -= 3600 * SECOND_NS)?;
    let daemon = testbed.start()?;
    ensure!(daemon.log().contains("the wall clock was set forward by"), "{}", daemon.log());
    ensure!(sample(&testbed, "tollgate_clock_jumps_total{direction=\"forward\"}")? == 1.0);
    testbed.delivered(&token)?;
    Ok(())
}

fn a_clock_that_nobody_confirms_admits_nothing_new(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let (cached, new) = (testbed.token(1)?, testbed.token(2)?);
    testbed.delivered(&cached)?;
    daemon.terminate()?;
    // Both tokens have the same lifetime, and the daemon holds the clock.
    change_live(&testbed, |live| {
        live.offset_ns += 10 * SECOND_NS;
        live.confirmed_ns -= OFFSET_STALE_NS + SECOND_NS;
    })?;
    let _daemon = start_unready(&testbed, "new tokens are not admitted")?;
    testbed.delivered(&cached)?;
    testbed.refused_token(&new, Reason::StaleClock)?;
    testbed.delivered(&cached)?;
    ensure!(testbed.json(&["clock"])?["stale"] == true);
    ensure!(sample(&testbed, "tollgate_clock_confirmed_age_seconds{}")? > 4000.0);
    testbed.json(&["clock", "accept"])?;
    testbed.delivered(&testbed.mint(&[])?)?;
    Ok(())
}

fn what_was_issued_by_a_clock_that_was_ahead_can_be_revoked(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    testbed.start()?.terminate()?;
    change_live(&testbed, |live| live.offset_ns += 3600 * SECOND_NS)?;
    let _daemon = start_unready(&testbed, "`tollgate clock accept`")?;
    // A token of an issuer whose clock is still an hour ahead.
    let ahead = unix_now() + 3600;
    let token = testbed.issuer()?.token_at(session(7, 0), ahead, TTL);
    testbed.delivered(&token)?;
    let answer = testbed.json(&["services", "revoke-before", "game"])?;
    let before = answer["revoked_before"].as_u64().context("a second")?;
    ensure!(before > u64::from(ahead), "{answer}");
    testbed.refused_token(&token, Reason::Revoked)?;
    let later = testbed.issuer()?.token_at(session(7, 0), u32::try_from(before)?, TTL);
    testbed.delivered(&later)?;

    // With the correct clock, for an hour no token can be issued that would be admitted. The error says so.
    testbed.json(&["clock", "accept"])?;
    testbed.refused_token(&later, Reason::NotYetValid)?;
    let output = testbed.run(&["token", "mint", "--service", "game", "--session", "7"])?;
    let said = said(&output);
    ensure!(output.status.code() == Some(1) && said.contains("would be refused"), "{said}");
    Ok(())
}
