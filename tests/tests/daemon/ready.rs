//! `/readyz`: whether an upstream balancer should send packets to this node, for one service or for any.

use std::os::unix::net::UnixDatagram;

use anyhow::{Context as _, Result, ensure};
use lb_tests::testbed::{
    daemon::{Daemon, http, service_named, wait_for},
    topology::{Family, Network, PORT},
};

use crate::testbed::{L2, Testbed, over_both};

over_both!(an_interface_that_is_down, a_node_that_delivers_one_service, a_node_that_delivers_nothing,);

const LOCAL: &str = "forward = \"local\"\nkey_rotation = \"off\"";

fn an_interface_that_is_down(family: Family) -> Result<()> {
    // The only service needs no other host.
    let testbed = Testbed::of(family, LOCAL, 0)?;
    let _daemon = testbed.start()?;
    ensure!(testbed.ready(Some("game"))?.0 == 200);
    testbed.topology.plug("lb", false)?;
    testbed.not_ready("interface eth0 is down, or has no carrier")?;
    let (status, reason) = testbed.ready(Some("game"))?;
    ensure!(status == 503 && reason.contains("eth0 is down"), "{status} {reason}");
    ensure!(testbed.json(&["status"])?["ready"] == false);
    testbed.topology.plug("lb", true)?;
    testbed.ready_again()?;
    testbed.topology.balancer.ip(&["link", "set", "eth0", "down"])?;
    testbed.not_ready("interface eth0 is down, or has no carrier")?;
    Ok(())
}

/// No host has this address.
fn nobody(family: Family) -> std::net::IpAddr {
    Network::Front.address(family, 66)
}

fn a_node_that_delivers_one_service(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, LOCAL, 0)?;
    let ip = family.service().ip();
    let local = service_named(42, "game", (ip, PORT).into(), LOCAL, &[]);
    let dead = service_named(43, "dead", (ip, PORT + 1).into(), L2, &[nobody(family)]);
    testbed.instance.configure(&format!("{local}\n{dead}"))?;
    let _daemon = testbed.start()?;
    wait_for("the backend to be given up", || Ok(testbed.ready(Some("dead"))?.0 == 503))?;
    let (_, reason) = testbed.ready(Some("dead"))?;
    ensure!(reason.contains("service dead has no backend that can be used"), "{reason}");
    ensure!(testbed.ready(Some("game"))? == (200, "ok\n".to_owned()));
    ensure!(testbed.ready(None)? == (200, "ok\n".to_owned()));
    let (status, which) = testbed.ready(Some("gone"))?;
    ensure!(status == 404 && which.contains("dead, game"), "{status} {which}");
    let (status, _) = http(&testbed.topology.balancer, "/readyz?sevice=dead")?;
    ensure!(status == 400, "a misspelt parameter: {status}");
    Ok(())
}

/// No service has a backend: `/readyz` reports that the node should get no traffic, but the service manager is notified
/// that the daemon filters.
fn a_node_that_delivers_nothing(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let text = service_named(42, "game", family.service(), L2, &[nobody(family)]);
    testbed.instance.configure(&text)?;
    let manager = testbed.instance.path("notify");
    let told = UnixDatagram::bind(&manager)?;
    told.set_read_timeout(Some(lb_tests::testbed::daemon::PATIENCE))?;
    let mut command = testbed.instance.tollgate(&testbed.topology.balancer, &["run", "-c"])?;
    command.arg(testbed.instance.config()).env("NOTIFY_SOCKET", &manager);
    let _daemon = Daemon::spawn_as(&testbed.instance, command)?;
    let mut buffer = [0; 4096];
    let len = told.recv(&mut buffer).context("no message to the service manager")?;
    let said = String::from_utf8_lossy(&buffer[..len]).into_owned();
    ensure!(said.starts_with("READY=1") && said.contains("not ready for traffic"), "{said}");
    testbed.not_ready("service game has no backend that can be used")?;
    // A backend gets the address.
    let backend = &testbed.topology.backends[0];
    let address = format!("{}/{}", nobody(family), if family == Family::V4 { 24 } else { 64 });
    backend.ip(&["address", "add", &address, "dev", "eth0"])?;
    testbed.ready_again()?;
    ensure!(testbed.ready(Some("game"))?.0 == 200);
    Ok(())
}
