//! Start, stop, crash, restart: the data path goes on.

use anyhow::{Result, ensure};
use lb_common::reason::Reason;
use lb_tests::daemon::{Daemon, http, said};

use crate::lab::{Flow, L2, Lab};

#[test]
fn a_restart_loses_nothing() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let flow = Flow::start(&lab, vec![lab.token(1)?, lab.token(2)?])?;
    let status = daemon.terminate()?;
    ensure!(status.success(), "SIGTERM: {status}");
    let daemon = lab.start()?;
    daemon.kill()?;
    let _daemon = lab.start()?;
    let sent = flow.finish()?;
    ensure!(sent > 100, "{sent} datagrams are no traffic");
    // Counters go on where they were.
    let counted = lab.counters()?[Reason::Forwarded.name()];
    ensure!(counted == u64::from(sent), "{counted} counted, {sent} sent");
    Ok(())
}

#[test]
fn without_a_daemon_it_filters_on() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let token = lab.token(1)?;
    daemon.terminate()?;
    lab.delivered(&token)?;
    let mut forged = token.to_bytes();
    forged[63] ^= 1;
    lab.send(&forged)?;
    lab.send(b"junk")?;
    // What comes after both has arrived, and neither has.
    lab.delivered(&token)?;
    let _daemon = lab.start()?;
    let counters = lab.counters()?;
    ensure!(
        counters[Reason::BadFastTag.name()] == 1 && counters[Reason::NoToken.name()] == 1,
        "{counters:?}"
    );
    Ok(())
}

#[test]
fn a_second_daemon_is_refused() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let _first = lab.start()?;
    let mut second = Daemon::spawn(&lab.place, &lab.topology.balancer)?;
    let status = second.ended()?;
    ensure!(status.code() == Some(1), "{status}");
    ensure!(second.log().contains("in use by process"), "{}", second.log());
    // The first is none the worse.
    lab.delivered(&lab.token(1)?)?;
    Ok(())
}

#[test]
fn detach_removes_everything() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let config = lab.place.config();
    let detach = ["detach", "-c", config.to_str().unwrap()];
    let output = lab.run(&detach)?;
    ensure!(output.status.code() == Some(1), "detached under a running daemon: {}", said(&output));
    daemon.terminate()?;
    let output = lab.run(&detach)?;
    ensure!(output.status.success(), "{}", said(&output));
    let pins = std::fs::read_dir(lab.place.bpffs()).map_or(0, Iterator::count);
    ensure!(pins == 0, "{pins} pins are left");
    // Nothing is filtered any more: junk reaches the balancer's own socket.
    let socket = lab.topology.local_socket()?;
    lab.send(b"junk")?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    ensure!(buffer[..len] == *b"junk");
    // Once more is fine, too.
    ensure!(lab.run(&detach)?.status.success());
    Ok(())
}

#[test]
fn another_size_of_the_token_cache_begins_empty() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let token = lab.token(1)?;
    lab.delivered(&token)?;
    daemon.terminate()?;
    let text = std::fs::read_to_string(lab.place.config())?;
    std::fs::write(lab.place.config(), text.replace("sessions = 4096", "sessions = 8192"))?;
    let daemon = lab.start()?;
    ensure!(daemon.log().contains("begins empty"), "{}", daemon.log());
    ensure!(lab.json(&["status"])?["sessions_max"] == 8192);
    lab.delivered(&token)?;
    Ok(())
}

#[test]
fn ready_only_while_it_filters() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let (status, _) = http(&lab.topology.balancer, "/healthz")?;
    ensure!(status == 200, "/healthz: {status}");
    let status = lab.json(&["status"])?;
    ensure!(status["ready"] == true && status["interfaces"][0]["mode"] == "native", "{status}");
    daemon.terminate()?;
    ensure!(http(&lab.topology.balancer, "/readyz").is_err());
    Ok(())
}
