//! The metrics page.

use std::{
    env,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::{control::ControlPage, maps, reason::Reason};
use lb_tests::testbed::{
    daemon::{http, said, wait_for},
    topology::Family,
};

use crate::testbed::{L2, Testbed, over_both};

over_both!(the_page_and_the_command_agree);

#[test]
fn promtool_finds_nothing() -> Result<()> {
    let testbed = Testbed::new(L2, 2)?;
    let _daemon = testbed.start()?;
    testbed.delivered(&testbed.token(1)?)?;
    let (status, page) = http(&testbed.topology.balancer, "/metrics")?;
    ensure!(status == 200, "/metrics: {status}");
    let promtool = env::var("PROMTOOL").context("PROMTOOL does not name promtool")?;
    let mut promtool = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start promtool")?;
    promtool.stdin.take().context("a pipe")?.write_all(page.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let found = said(&output);
    ensure!(output.status.success() && found.trim().is_empty(), "{found}");
    Ok(())
}

/// A drop that no service counts is shown, too. The tables did not change; the test makes the control page name a newer
/// generation.
#[test]
fn what_is_dropped_for_no_service_is_shown() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?.to_bytes();
    let pinned = Map::Array(MapData::from_pin(testbed.pin(maps::CONTROL))?);
    let mut live: Array<_, ControlPage> = pinned.try_into()?;
    let value = live.get(&0, 0)?;
    live.set(0, ControlPage { begun: value.begun + 2, ..value }, 0)?;
    testbed.send(&token)?;
    let shown =
        || anyhow::Ok(testbed.json(&["counters"])?["tables_changed"]["packets"].as_u64().unwrap_or(0));
    wait_for("tables_changed", || Ok(shown()? > 0))?;
    let row = said(&testbed.run(&["counters"])?);
    ensure!(row.contains("tables_changed"), "{row}");
    let (_, page) = http(&testbed.topology.balancer, "/metrics")?;
    let sample = "tollgate_packets_total{service=\"\",reason=\"tables_changed\"} ";
    let sample = page.lines().find_map(|line| line.strip_prefix(sample)).context("no such sample")?;
    ensure!(sample.parse::<u64>()? > 0, "{sample}");
    testbed.nothing_arrived()
}

#[test]
fn every_promised_name_is_there() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    let (_, page) = http(&testbed.topology.balancer, "/metrics")?;
    for name in [
        "tollgate_packets_total{",
        "tollgate_bytes_total{",
        "tollgate_backend_packets_total{",
        "tollgate_backend_bytes_total{",
        "tollgate_backend_up{",
        "tollgate_key_info{",
        "tollgate_key_age_seconds{",
        "tollgate_key_rotation_age_seconds{",
        "tollgate_sessions{",
        "tollgate_hmac_total{",
        "tollgate_store_revision{",
        "tollgate_store_connected{",
        "tollgate_kernel_differences{",
        "tollgate_build_info{",
        "tollgate_revocations{",
        "tollgate_revocations_capacity{",
        "tollgate_clock_jumps_total{",
        "tollgate_clock_difference_seconds{",
        "tollgate_clock_confirmed_age_seconds{",
    ] {
        ensure!(page.lines().any(|line| line.starts_with(name)), "{name} is missing:\n{page}");
    }
    Ok(())
}

fn the_page_and_the_command_agree(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    for _ in 0..3 {
        testbed.delivered(&token)?;
    }
    testbed.refused(b"junk", Reason::NoToken)?;
    testbed.refused(&[0x0b; 80], Reason::BadHeader)?;
    let counters = testbed.counters()?;
    let (_, page) = http(&testbed.topology.balancer, "/metrics")?;
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::NotOurs) {
        let value = value(&page, &["tollgate_packets_total{", "\"game\"", &format!("\"{}\"", reason.name())]);
        let counted = counters.get(reason.name()).copied().unwrap_or(0);
        ensure!(value.unwrap_or(0) == counted, "{}: {value:?} and {counted}\n{page}", reason.name());
    }
    let report = testbed.json(&["counters", "--service", "game"])?;
    let reasons = report["services"][0]["reasons"].as_array().context("the service's counters")?;
    ensure!(reasons.len() == Reason::ALL.len() - 2, "all reasons that a service can have: {report}");
    let mut bytes = 0;
    for reason in reasons {
        let name = reason["reason"].as_str().context("a name")?;
        let value = value(&page, &["tollgate_bytes_total{", "\"game\"", &format!("\"{name}\"")]).unwrap_or(0);
        ensure!(reason["bytes"] == value, "{reason} and {value}");
        bytes += value;
    }
    // The Ethernet, IP and UDP headers of five datagrams: three with 64 + 16 bytes, then one with 4 and one with 80.
    let headers = if family == Family::V4 { 42 } else { 62 };
    ensure!(bytes == 5 * headers + 3 * 80 + 4 + 80, "{bytes} bytes are counted");
    let backend = &testbed.json(&["backends", "list"])?["items"][0];
    let of_backend = |name: &str| value(&page, &[name, "\"game\""]);
    ensure!(
        of_backend("tollgate_backend_packets_total{") == backend["packets"].as_u64(),
        "{backend}\n{page}"
    );
    ensure!(of_backend("tollgate_backend_bytes_total{") == backend["bytes"].as_u64(), "{backend}\n{page}");
    ensure!(of_backend("tollgate_backend_up{") == Some(1), "{page}");
    ensure!(value(&page, &["tollgate_kernel_differences{"]) == Some(0), "{page}");
    ensure!(value(&page, &["tollgate_backend_packets_total{", "\"game\""]) == Some(3), "{page}");
    ensure!(value(&page, &["tollgate_hmac_total{"]) == Some(1), "{page}");
    ensure!(value(&page, &["tollgate_sessions{"]) == Some(1), "{page}");
    Ok(())
}

/// The value of the line that contains all of these parts.
fn value(page: &str, parts: &[&str]) -> Option<u64> {
    let line =
        page.lines().find(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}
