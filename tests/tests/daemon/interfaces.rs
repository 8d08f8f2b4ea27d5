//! Configured interfaces that are stacked on each other, and that are renamed.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::{Daemon, http, said, wait_for},
    netns::run,
    topology::{Family, INTERFACE},
};

use crate::testbed::{Flow, L2, Testbed, over_both};

over_both!(interfaces_that_stack, interfaces_that_come_to_stack, a_name_that_another_interface_takes);

const LOCAL: &str = "forward = \"local\"\nkey_rotation = \"off\"";

/// On stacked interfaces, each datagram would be checked twice, the second time without its token. Other kinds of
/// stacks, and those of several levels, are in the unit tests of `control::links`.
fn interfaces_that_stack(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, LOCAL, 0)?;
    let balancer = &testbed.topology.balancer;
    for commands in
        ["link add br0 type bridge", "link add card1 type veth peer name peer1", "link set card1 master br0"]
    {
        balancer.ip(&commands.split(' ').collect::<Vec<_>>())?;
    }
    let relation = "card1 is in the bridge br0";
    for order in [["card1", "br0"], ["br0", "card1"]] {
        testbed.instance.configure_on(&order, &testbed.service(LOCAL, 0))?;
        let config = testbed.instance.config();
        let checked = testbed.run(&["check", "-c", config.to_str().context("a path of text")?])?;
        ensure!(
            checked.status.code() == Some(1) && said(&checked).contains(relation),
            "{order:?}: {}",
            said(&checked)
        );
        let mut daemon = Daemon::spawn(&testbed.instance, balancer)?;
        ensure!(daemon.ended()?.code() == Some(1), "{order:?}: it started");
        ensure!(daemon.log().contains(relation), "{order:?}: {}", daemon.log());
        let links = said(&balancer.command("ip")?.args(["link"]).output()?);
        ensure!(!links.contains("xdp"), "{order:?}: {links}");
    }
    // The two ends of a veth are not stacked.
    for end in ["card1", "peer1"] {
        balancer.ip(&["link", "set", end, "up"])?;
    }
    testbed.instance.configure_on(&["card1", "peer1"], &testbed.service(LOCAL, 0))?;
    testbed.start()?;
    Ok(())
}

fn interfaces_that_come_to_stack(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, LOCAL, 0)?;
    let balancer = &testbed.topology.balancer;
    for commands in [
        "link add br0 type bridge",
        "link add port0 type veth peer name peer0",
        "link set peer0 up",
        "link set port0 master br0 up",
        "link set br0 up",
    ] {
        balancer.ip(&commands.split(' ').collect::<Vec<_>>())?;
    }
    testbed.instance.configure_on(&["eth0", "br0"], &testbed.service(LOCAL, 0))?;
    let daemon = testbed.start()?;
    balancer.ip(&["link", "set", INTERFACE, "master", "br0"])?;
    testbed.not_ready("eth0 is in the bridge br0")?;
    let differences = testbed.json(&["status"])?["differences"].to_string();
    ensure!(differences.contains("eth0 is in the bridge br0"), "{differences}");
    let (_, metrics) = http(balancer, "/metrics")?;
    ensure!(metrics.contains("tollgate_kernel_differences{} 1"), "{metrics}");
    wait_for("the log", || Ok(daemon.log().contains("eth0 is in the bridge br0")))?;
    balancer.ip(&["link", "set", INTERFACE, "nomaster"])?;
    testbed.ready_again()
}

/// The interface that has the traffic is renamed, and another one gets its name: both are filtered, without a gap.
fn a_name_that_another_interface_takes(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, LOCAL, 0)?;
    let (balancer, client) = (&testbed.topology.balancer, &testbed.topology.client);
    let add = ["link", "add", "spare", "type", "veth", "peer", "name", "spare0", "netns", client.name()];
    balancer.ip(&add)?;
    let (own, other, len) = match family {
        Family::V4 => ("10.99.0.1", "10.99.0.2", 24),
        Family::V6 => ("fd99::1", "fd99::2", 64),
    };
    for (host, interface, address) in [(balancer, "spare", own), (client, "spare0", other)] {
        // Sets correct checksums: no network card computes those that a veth leaves partial.
        run(host.command("ethtool")?.args(["-K", interface, "tx", "off", "rx", "off"]))?;
        host.ip(&["address", "add", &format!("{address}/{len}"), "dev", interface])?;
        host.ip(&["link", "set", interface, "up"])?;
    }
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    let flow = Flow::start(&testbed, vec![token])?;
    flow.pass(50)?;
    balancer.ip(&["link", "set", INTERFACE, "name", "old0"])?;
    flow.pass(50)?;
    testbed.ready_again()?;
    balancer.ip(&["link", "set", "spare", "name", INTERFACE])?;
    on_both(&testbed)?;
    flow.pass(50)?;
    ensure!(
        daemon.log().contains("interface eth0 is called old0 now and is still filtered"),
        "{}",
        daemon.log()
    );
    ensure!(daemon.log().contains("another interface is called eth0 now"), "{}", daemon.log());
    // After a restart, both are still filtered.
    daemon.terminate()?;
    let daemon = testbed.start()?;
    on_both(&testbed)?;
    ensure!(daemon.log().matches("without missing a packet").count() == 2, "{}", daemon.log());
    ensure!(flow.finish()? > 150, "no traffic");

    testbed.refused(b"junk", Reason::NoToken)?;
    let service = format!("{}/{}", family.service().ip(), if family == Family::V4 { 32 } else { 128 });
    client.ip(&[family.option(), "route", "add", &service, "via", own, "dev", "spare0"])?;
    let received = || {
        let output = balancer.command("ip")?.args(["-s", "-json", "link", "show", INTERFACE]).output()?;
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        shown[0]["stats64"]["rx"]["packets"].as_u64().context("received packets")
    };
    let before = received()?;
    testbed.refused(b"junk", Reason::NoToken)?;
    testbed.delivered(&token)?;
    ensure!(received()? >= before + 2, "not through the new eth0");

    // The first interface is removed, and is no longer reported as missing.
    balancer.ip(&["link", "delete", "old0"])?;
    wait_for("one interface", || {
        Ok(testbed.json(&["status"])?["interfaces"].as_array().is_some_and(|list| list.len() == 1))
    })?;
    testbed.ready_again()
}

fn on_both(testbed: &Testbed) -> Result<()> {
    let mut seen = serde_json::Value::Null;
    wait_for("the program on both", || {
        seen = testbed.json(&["status"])?["interfaces"].take();
        let list = seen.as_array().context("interfaces")?;
        let names: Vec<_> = list.iter().filter_map(|interface| interface["name"].as_str()).collect();
        Ok(names == ["eth0", "old0"] && list.iter().all(|interface| interface["attached"] == true))
    })
    .with_context(|| format!("{seen}"))
}

/// An interface name with a dot, such as a VLAN interface's; the name of a pin must not contain one.
#[test]
fn a_name_with_a_dot() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let balancer = &testbed.topology.balancer;
    balancer.ip(&["link", "add", "eth0.5", "type", "veth", "peer", "name", "peer"])?;
    for end in ["eth0.5", "peer"] {
        balancer.ip(&["link", "set", end, "up"])?;
    }
    testbed.instance.configure_on(&["eth0.5"], &testbed.service(L2, 1))?;
    let daemon = testbed.start()?;
    daemon.terminate()?;
    let log = fs::read_to_string(testbed.instance.path("log"))?;
    ensure!(log.contains("the XDP program stays attached to eth0.5"), "{log}");
    let config = testbed.instance.config();
    let detached = testbed.run(&["detach", "-c", config.to_str().context("a path of text")?])?;
    ensure!(said(&detached).contains("detached from eth0.5"), "{}", said(&detached));
    Ok(())
}
