//! What `tollgate check` and the daemon's log report about this host's addresses, interfaces, drivers and sockets;
//! and that the kernel behaves as reported.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::{Daemon, said, wait_for},
    netns::{Namespace, run},
    topology::{Family, INTERFACE, Layout, Network, PORT, Plan},
};
use serde_json::Value;

use crate::testbed::{L2, Testbed, over_both, receive};

over_both!(
    an_address_that_no_interface_has,
    an_address_on_another_interface,
    packets_that_arrive_on_another_interface,
    packets_that_arrive_on_another_member_of_a_bridge,
    an_application_that_listens_on_every_address,
    an_application_on_another_address,
);

const LOCAL: &str = "forward = \"local\"\nkey_rotation = \"off\"";
/// A second interface of the balancer, on a wire to the client.
const SECOND: &str = "second";

/// The warnings of `check` about one subject: finding and hint.
fn warnings(testbed: &Testbed, subject: &str) -> Result<Vec<(String, String)>> {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let warned = lines(testbed, subject)?.into_iter().filter(|line| line["verdict"] == "warning");
    Ok(warned.map(|line| (text(&line, "found"), text(&line, "hint"))).collect())
}

/// The lines of `check` about one subject.
fn lines(testbed: &Testbed, subject: &str) -> Result<Vec<Value>> {
    let config = testbed.instance.config();
    let output = testbed.run(&["check", "-o", "json", "-c", config.to_str().context("a path in UTF-8")?])?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    let lines = report["checks"].as_array().context("checks")?.iter();
    Ok(lines.filter(|line| line["name"] == subject).cloned().collect())
}

/// Checks that there is one warning about the service, that its text and the daemon's log contain these parts, and that
/// the log has the same hint. Returns the hint.
fn warned(testbed: &Testbed, parts: &[&str]) -> Result<String> {
    let found = warnings(testbed, "service game")?;
    let [(text, hint)] = found.as_slice() else { bail!("not one warning: {found:?}") };
    let daemon = testbed.start()?;
    let log = daemon.log();
    for part in parts {
        ensure!(text.contains(part), "`{part}` is not in: {text}");
        ensure!(log.contains(part), "`{part}` is not in: {log}");
    }
    ensure!(log.contains(hint), "`{hint}` is not in: {log}");
    daemon.terminate()?;
    testbed.remove_pins()?;
    Ok(hint.clone())
}

/// Checks that neither `check` nor the daemon's log warns about the service.
fn not_warned(testbed: &Testbed) -> Result<()> {
    let found = warnings(testbed, "service game")?;
    ensure!(found.is_empty(), "{found:?}");
    let daemon = testbed.start()?;
    ensure!(!daemon.log().contains("service game: "), "{}", daemon.log());
    daemon.terminate()?;
    testbed.remove_pins()
}

/// Runs the first command in backquotes of a hint.
fn follow(host: &Namespace, hint: &str) -> Result<()> {
    let command = hint.split('`').nth(1).with_context(|| hint.to_owned())?;
    run(host.command("sh")?.args(["-c", command]))
}

fn service_address(family: Family) -> String {
    let address = family.service().ip();
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn take_address_off(testbed: &Testbed, interface: &str) -> Result<()> {
    testbed.topology.balancer.ip(&["address", "del", &service_address(testbed.family), "dev", interface])
}

/// Connects the client to a second interface of the balancer.
fn second_wire(testbed: &Testbed) -> Result<()> {
    let (balancer, client) = (&testbed.topology.balancer, &testbed.topology.client);
    let peer = ["peer", "name", SECOND, "netns", client.name()];
    balancer.ip(&[&["link", "add", SECOND, "type", "veth"][..], &peer].concat())?;
    for (host, number) in [(balancer, 1), (client, 2)] {
        for address in [format!("10.99.0.{number}/24"), format!("fd99::{number}/64")] {
            let nodad = if address.contains(':') { &["nodad"][..] } else { &[] };
            host.ip(&[&["address", "add", &address, "dev", SECOND], nodad].concat())?;
        }
        run(host.command("ethtool")?.args(["-K", SECOND, "tx", "off", "rx", "off"]))?;
        host.ip(&["link", "set", SECOND, "up"])?;
    }
    Ok(())
}

/// Whether the client gets an answer when it asks for the MAC address of the service.
fn is_answered(testbed: &Testbed) -> Result<bool> {
    let client = &testbed.topology.client;
    let (family, address) = (testbed.family.option(), testbed.family.service().ip().to_string());
    let of = if testbed.family == Family::V4 { "ipv4" } else { "ipv6" };
    client.sysctl(&format!("net.{of}.neigh.{INTERFACE}.retrans_time_ms"), "20")?;
    client.ip(&[family, "neighbour", "flush", "dev", INTERFACE])?;
    let mut shown = String::new();
    wait_for("the client's neighbour entry", || {
        // Fails once the kernel knows that no host answers.
        let _ = testbed.send(b"who has it?");
        let show = [family, "neighbour", "show", address.as_str(), "dev", INTERFACE];
        shown = said(&client.command("ip")?.args(show).output()?);
        Ok(shown.contains("lladdr") || shown.contains("FAILED"))
    })
    .with_context(|| shown.clone())?;
    Ok(shown.contains("lladdr"))
}

/// In every forwarding mode; also if any address can be bound to (`ip_nonlocal_bind`).
fn an_address_that_no_interface_has(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    for setting in ["net.ipv4.ip_nonlocal_bind", "net.ipv6.ip_nonlocal_bind"] {
        testbed.topology.balancer.sysctl(setting, "1")?;
    }
    let protocol = if family == Family::V4 { "ARP" } else { "neighbour discovery" };
    let address = family.service().ip().to_string();
    for forward in ["local", "l2", "ipip", "gue", "nat"] {
        let fields = format!("forward = \"{forward}\"\nkey_rotation = \"off\"");
        let is_local = forward == "local";
        testbed.instance.configure(&testbed.service(&fields, if is_local { 0 } else { 1 }))?;
        let found = warnings(&testbed, "service game")?;
        ensure!(found.is_empty(), "{forward}: {found:?}");
        take_address_off(&testbed, INTERFACE)?;
        let found = warnings(&testbed, "service game")?;
        let [(text, hint)] = found.as_slice() else { bail!("{forward}: {found:?}") };
        for part in [address.as_str(), "on no interface of this host", protocol, "router"] {
            ensure!(text.contains(part), "{forward}: `{part}` is not in: {text}");
        }
        ensure!(text.contains("no socket") == is_local, "{forward}: {text}");
        ensure!(hint.contains("unless a router has a route") != is_local, "{forward}: {hint}");
        follow(&testbed.topology.balancer, hint)?;
    }
    testbed.instance.configure(&testbed.service(L2, 1))?;
    not_warned(&testbed)?;
    ensure!(is_answered(&testbed)?, "no host answers for an address of the interface");
    take_address_off(&testbed, INTERFACE)?;
    ensure!(!is_answered(&testbed)?, "a host answers for an address that none has");
    warned(&testbed, &["on no interface of this host", protocol])?;
    Ok(())
}

/// The kernel answers for an IPv4 address on all interfaces, unless `arp_ignore` is set, and for an IPv6 address only
/// on the interface that has it.
fn an_address_on_another_interface(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    second_wire(&testbed)?;
    let balancer = &testbed.topology.balancer;
    not_warned(&testbed)?;
    take_address_off(&testbed, INTERFACE)?;
    let add = |interface: &str| {
        let nodad = if family == Family::V6 { &["nodad"][..] } else { &[] };
        balancer.ip(&[&["address", "add", &service_address(family), "dev", interface], nodad].concat())
    };
    add("lo")?;
    let on_lo = ["on lo and on no filtered interface", "does not answer"];
    if family == Family::V4 {
        ensure!(is_answered(&testbed)?);
        not_warned(&testbed)?;
        balancer.sysctl("net.ipv4.conf.eth0.arp_ignore", "1")?;
    }
    ensure!(!is_answered(&testbed)?);
    warned(&testbed, &on_lo)?;
    balancer.sysctl("net.ipv4.conf.eth0.arp_ignore", "0")?;
    take_address_off(&testbed, "lo")?;
    add(SECOND)?;
    let elsewhere = format!("an interface not in `interfaces` ({SECOND}) are neither checked nor forwarded");
    if family == Family::V4 {
        ensure!(is_answered(&testbed)?);
        warned(&testbed, &[&elsewhere])?;
    } else {
        ensure!(!is_answered(&testbed)?);
        let found = warnings(&testbed, "service game")?;
        let on_second = format!("on {SECOND} and on no filtered interface");
        ensure!(found.len() == 2 && found[0].0.contains(&on_second), "{found:?}");
        ensure!(found[1].0.contains(&elsewhere), "{found:?}");
    }
    testbed.instance.configure_on(&[INTERFACE, SECOND], &testbed.service(L2, 1))?;
    not_warned(&testbed)
}

/// The address of an application is reachable through every interface of its host.
fn packets_that_arrive_on_another_interface(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, LOCAL, 0)?;
    let (balancer, client) = (&testbed.topology.balancer, &testbed.topology.client);
    // No packets arrive on an interface that is down.
    balancer.ip(&["link", "add", "idle", "type", "bridge"])?;
    not_warned(&testbed)?;
    second_wire(&testbed)?;
    let hint = warned(&testbed, &[&format!("an interface not in `interfaces` ({SECOND}) are not filtered")])?;
    ensure!(hint.contains("iifname { \"eth0\" }"), "{hint}");
    let via = if family == Family::V4 { "10.99.0.1" } else { "fd99::1" };
    client.ip(&[family.option(), "route", "add", &service_address(family), "via", via, "dev", SECOND])?;
    let daemon = testbed.start()?;
    testbed.send(b"no token")?;
    ensure!(receive(&testbed.backends)?.bytes == b"no token", "it was not delivered as it came");
    follow(balancer, &hint[hint.find("`nft").context("a firewall rule")?..])?;
    testbed.send(b"no token")?;
    testbed.nothing_arrived()?;
    run(balancer.command("nft")?.args(["delete", "table", "inet", "tollgate"]))?;
    daemon.terminate()?;
    testbed.instance.configure_on(&[INTERFACE, SECOND], &testbed.service(LOCAL, 0))?;
    let found = warnings(&testbed, "service game")?;
    ensure!(found.is_empty(), "{found:?}");
    let daemon = testbed.start()?;
    ensure!(!daemon.log().contains("service game: "), "{}", daemon.log());
    testbed.refused(b"no token", Reason::NoToken)
}

/// A firewall rule for input sees the bridge, not the member that received a packet: only a filter on that member
/// helps.
fn packets_that_arrive_on_another_member_of_a_bridge(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, LOCAL, 0)?;
    let (balancer, client) = (&testbed.topology.balancer, &testbed.topology.client);
    second_wire(&testbed)?;
    balancer.ip(&["link", "add", "br0", "type", "bridge"])?;
    balancer.ip(&["link", "set", "br0", "up"])?;
    for interface in [INTERFACE, SECOND] {
        balancer.ip(&["link", "set", interface, "master", "br0"])?;
    }
    let (prefix, on_second, via) = match family {
        Family::V4 => (Network::Front.prefix(family, 1), "10.99.0.1/24", "10.99.0.1"),
        Family::V6 => (Network::Front.prefix(family, 1), "fd99::1/64", "fd99::1"),
    };
    let nodad = if family == Family::V6 { &["nodad"][..] } else { &[] };
    for (address, interface) in
        [(prefix.as_str(), INTERFACE), (&service_address(family), INTERFACE), (on_second, SECOND)]
    {
        balancer.ip(&["address", "del", address, "dev", interface])?;
        balancer.ip(&[&["address", "add", address, "dev", "br0"], nodad].concat())?;
    }
    let hint = warned(&testbed, &[&format!("an interface not in `interfaces` ({SECOND}) are not filtered")])?;
    ensure!(hint == format!("add {SECOND} to `interfaces`"), "{hint}");
    client.ip(&[family.option(), "route", "add", &service_address(family), "via", via, "dev", SECOND])?;
    let daemon = testbed.start()?;
    testbed.send(b"no token")?;
    ensure!(receive(&testbed.backends)?.bytes == b"no token", "the warning is wrong: it was not delivered");
    daemon.terminate()?;
    testbed.instance.configure_on(&[INTERFACE, SECOND], &testbed.service(LOCAL, 0))?;
    let found = warnings(&testbed, "service game")?;
    ensure!(found.is_empty(), "{found:?}");
    let _daemon = testbed.start()?;
    testbed.refused(b"no token", Reason::NoToken)
}

/// Sends a datagram from the client to an address of the balancer that no service has.
fn past_the_filter(testbed: &Testbed, to: IpAddr, application: &UdpSocket) -> Result<bool> {
    let to = SocketAddr::from((to, PORT));
    let sender = testbed.topology.client.enter(|| {
        let any = if to.is_ipv4() { Family::V4.any() } else { Family::V6.any() };
        UdpSocket::bind((any, 0))
    })??;
    sender.send_to(b"no token", to)?;
    let mut buffer = [0; 64];
    Ok(application.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == b"no token"))
}

fn an_application_that_listens_on_every_address(family: Family) -> Result<()> {
    let mut testbed = Testbed::of(family, LOCAL, 0)?;
    let other = Network::Front.address(family, 1);
    not_warned(&testbed)?;
    testbed.backends.clear();
    not_warned(&testbed)?;
    let listen = |address: IpAddr| testbed.topology.local_socket((address, PORT).into());
    // On another interface, or not reachable from outside.
    for address in [SocketAddr::new(family.any(), PORT + 1), ([127, 0, 0, 1], PORT).into()] {
        let _socket = testbed.topology.local_socket(address)?;
        not_warned(&testbed)?;
    }
    let socket = listen(family.any())?;
    let every = format!("listens on every address of this host ({})", family.any());
    let hint = warned(&testbed, &[&every, &other.to_string()])?;
    let daemon = testbed.start()?;
    ensure!(
        past_the_filter(&testbed, other, &socket)?,
        "the filter was not bypassed, contrary to the warning"
    );
    follow(&testbed.topology.balancer, &hint)?;
    ensure!(!past_the_filter(&testbed, other, &socket)?, "the firewall rule lets it through");
    testbed.backends.push(socket);
    testbed.delivered(&testbed.token(1)?)?;
    testbed.backends.clear();
    run(testbed.topology.balancer.command("nft")?.args(["delete", "table", "inet", "tollgate"]))?;
    daemon.terminate()?;
    testbed.remove_pins()?;
    // The standard library's sockets on `::` take IPv4, too (IPV6_V6ONLY is off).
    let socket = listen(Family::V6.any())?;
    for other in Family::BOTH.map(|family| Network::Front.address(family, 1)) {
        warned(&testbed, &["listens on every address of this host (::)", &other.to_string()])?;
        ensure!(past_the_filter(&testbed, other, &socket)?);
    }
    drop(socket);
    testbed.backends.push(listen(family.service().ip())?);
    not_warned(&testbed)
}

/// An application that binds each of its addresses.
fn an_application_on_another_address(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, LOCAL, 0)?;
    let other = Network::Front.address(family, 1);
    let socket = testbed.topology.local_socket((other, PORT).into())?;
    warned(&testbed, &[&format!("on port {PORT} of {other}, which is not filtered")])?;
    ensure!(
        past_the_filter(&testbed, other, &socket)?,
        "the filter was not bypassed, contrary to the warning"
    );
    // The address of another service is filtered.
    let game = testbed.service(LOCAL, 0);
    let chat = game
        .replace("id = 42", "id = 43")
        .replace("\"game\"", "\"chat\"")
        .replace(&family.service().ip().to_string(), &other.to_string());
    testbed.instance.configure(&format!("{game}\n{chat}"))?;
    not_warned(&testbed)?;
    ensure!(warnings(&testbed, "service chat")?.is_empty());
    let _daemon = testbed.start()?;
    ensure!(!past_the_filter(&testbed, other, &socket)?);
    Ok(())
}

/// The kernel does not use an IPv6 address that another host on the segment has.
#[test]
fn an_address_that_another_host_has() -> Result<()> {
    let testbed = Testbed::of(Family::V6, L2, 1)?;
    let (balancer, client) = (&testbed.topology.balancer, &testbed.topology.client);
    let address = service_address(Family::V6);
    take_address_off(&testbed, INTERFACE)?;
    client.ip(&["address", "add", &address, "dev", INTERFACE, "nodad"])?;
    balancer.sysctl("net.ipv6.conf.eth0.accept_dad", "1")?;
    balancer.ip(&["address", "add", &address, "dev", INTERFACE])?;
    wait_for("duplicate address detection", || {
        let shown = balancer.command("ip")?.args(["-6", "address", "show", "dadfailed"]).output()?;
        Ok(said(&shown).contains(&address))
    })?;
    warned(&testbed, &["duplicate address detection failed"])?;
    client.ip(&["address", "del", &address, "dev", INTERFACE])?;
    take_address_off(&testbed, INTERFACE)?;
    balancer.ip(&["address", "add", &address, "dev", INTERFACE, "nodad"])?;
    not_warned(&testbed)
}

/// `check` reports the mode in which `run` attaches the program.
#[test]
fn drivers_with_native_xdp_and_without() -> Result<()> {
    let testbed = Testbed::new(LOCAL, 0)?;
    let balancer = &testbed.topology.balancer;
    balancer.ip(&["link", "add", "br0", "type", "bridge"])?;
    balancer.ip(&["link", "set", "br0", "up"])?;
    for (interface, mode, verdict, part, runs) in [
        (INTERFACE, "auto", "ok", "has native XDP", Some("native")),
        (INTERFACE, "native", "ok", "has native XDP", Some("native")),
        (INTERFACE, "generic", "warning", "does not use it", Some("generic")),
        ("br0", "auto", "warning", "generic mode is slow", Some("generic")),
        ("br0", "native", "failed", "no native XDP", None),
        ("br0", "generic", "ok", "as configured", Some("generic")),
    ] {
        testbed.instance.configure_on(&[interface], &testbed.service(LOCAL, 0))?;
        let text = std::fs::read_to_string(testbed.instance.config())?;
        std::fs::write(testbed.instance.config(), format!("xdp_mode = \"{mode}\"\n{text}"))?;
        let about = || lines(&testbed, &format!("interface {interface}"));
        let is_there = |lines: &[Value], verdict: &str, part: &str| {
            lines.iter().any(|line| {
                line["verdict"] == verdict && line["found"].as_str().is_some_and(|found| found.contains(part))
            })
        };
        let found = about()?;
        ensure!(is_there(&found, verdict, part), "{interface} {mode}: {found:?}");
        let ok = found.iter().all(|line| line["verdict"] != "failed");
        ensure!(ok == runs.is_some(), "{interface} {mode}: {found:?}");
        let Some(runs) = runs else {
            let mut daemon = Daemon::spawn(&testbed.instance, balancer)?;
            ensure!(!daemon.ended()?.success(), "{interface} {mode}: it started");
            continue;
        };
        let daemon = Daemon::spawn(&testbed.instance, balancer)?;
        wait_for("the program to be attached", || Ok(daemon.log().contains("program attached")))?;
        ensure!(
            testbed.json(&["status"])?["interfaces"][0]["mode"] == runs,
            "{interface} {mode}: {}",
            daemon.log()
        );
        let found = about()?;
        ensure!(is_there(&found, "ok", &format!("attached in {runs} mode")), "{interface} {mode}: {found:?}");
        daemon.terminate()?;
        testbed.remove_pins()?;
    }
    // A driver with native XDP whose current settings do not allow it: `auto` does not fall back to generic mode.
    let queues = |count: u8| format!("numtxqueues {count} numrxqueues {count}");
    let add = format!("link add many {} type veth peer name few {}", queues(4), queues(1));
    balancer.ip(&add.split(' ').collect::<Vec<_>>())?;
    testbed.instance.configure_on(&["few"], &testbed.service(LOCAL, 0))?;
    let found = warnings(&testbed, "interface few")?;
    ensure!(found.iter().any(|(text, _)| text.contains("number of queues")), "{found:?}");
    ensure!(!Daemon::spawn(&testbed.instance, balancer)?.ended()?.success(), "it started");
    Ok(())
}

/// A veth transmits redirected frames while its peer has GRO or an XDP program.
#[test]
fn drivers_that_send_what_is_redirected_and_others() -> Result<()> {
    let testbed =
        Testbed::of(Family::V4, L2, Plan { backends: 1, layout: Layout::TwoInterfaces, ..Plan::default() })?;
    let balancer = &testbed.topology.balancer;
    for interface in [INTERFACE, "eth1"] {
        let found = warnings(&testbed, &format!("interface {interface}"))?;
        ensure!(found.iter().all(|(text, _)| !text.contains("redirects from")), "{found:?}");
    }
    second_wire(&testbed)?;
    let backend = testbed.topology.plan.backend(Family::V4, 1).to_string();
    balancer.ip(&["route", "replace", &backend, "dev", SECOND])?;
    let found = warnings(&testbed, &format!("interface {SECOND}"))?;
    let [(text, hint)] = found.as_slice() else { bail!("{found:?}") };
    ensure!(text.contains("sends no frames that XDP redirects"), "{text}");
    ensure!(hint.contains("GRO"), "{hint}");
    run(testbed.topology.client.command("ethtool")?.args(["-K", SECOND, "gro", "on"]))?;
    let found = warnings(&testbed, &format!("interface {SECOND}"))?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}
