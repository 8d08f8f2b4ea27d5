//! The frames that belong to a service if interfaces are stacked or MAC addresses change.

use std::{net::UdpSocket, slice};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::{Daemon, Instance, counters, said, wait_for},
    issuer::session,
    netns::Namespace,
    topology::{Family, INTERFACE, Network, Plan},
};
use serde_json::Value;

use crate::testbed::{L2, TTL, Testbed, over_both, receive};

over_both!(a_flooded_frame_is_forwarded_once, an_address_that_changes, frames_for_all_reach_nobody);

/// The virtual router 10 of VRRP.
const VIRTUAL_ROUTER: &str = "00:00:5e:00:01:0a";
const LOCAL: &str = "forward = \"local\"\nkey_rotation = \"off\"";
const OBSERVED: &str = "forward = \"l2\"\nmode = \"observe\"\nkey_rotation = \"off\"";

/// Makes a host send to an address in frames with this destination MAC address.
fn sends_to(host: &Namespace, family: Family, station: &str) -> Result<()> {
    let service = family.service().ip().to_string();
    host.ip(&["neighbour", "replace", &service, "lladdr", station, "dev", INTERFACE])
}

/// The MAC address of an interface.
fn address(host: &Namespace, interface: &str) -> Result<String> {
    let output = host.command("ip")?.args(["-json", "link", "show", interface]).output()?;
    let links: Value = serde_json::from_slice(&output.stdout)?;
    Ok(links[0]["address"].as_str().with_context(|| said(&output))?.to_owned())
}

/// The MAC addresses that the daemon lists for the interface.
fn listed(testbed: &Testbed) -> Result<Vec<String>> {
    let status = testbed.json(&["status"])?;
    let macs = status["interfaces"][0]["macs"].as_array().with_context(|| status.to_string())?;
    Ok(macs.iter().filter_map(|mac| mac.as_str().map(str::to_owned)).collect())
}

fn lists(testbed: &Testbed, mac: &str) -> Result<()> {
    wait_for(mac, || Ok(listed(testbed)?.iter().any(|listed| listed == mac)))
}

fn not_ours(instance: &Instance, balancer: &Namespace) -> Result<u64> {
    instance.json(balancer, &["counters"])?["not_ours"]["packets"].as_u64().context("not_ours")
}

/// Two balancers on a segment whose switch floods every frame to both: a packet without a token is forwarded by one
/// of them, and a valid one arrives once.
fn a_flooded_frame_is_forwarded_once(family: Family) -> Result<()> {
    let plan = Plan { backends: 1, two_balancers: true, edge: true, ..Plan::default() };
    let testbed = Testbed::of(family, OBSERVED, plan)?;
    let first = &testbed.topology.balancer;
    let second = testbed.topology.second_balancer.as_ref().context("a second balancer")?;
    let _daemon = testbed.start()?;
    let instance = Instance::new(&format!("{}-second", testbed.name()))?;
    instance.configure(&testbed.service(OBSERVED, 1))?;
    let _other = Daemon::start(&instance, second)?;
    testbed.topology.flood()?;
    // In promiscuous mode, an interface receives all flooded frames.
    for balancer in [first, second] {
        balancer.ip(&["link", "set", INTERFACE, "promisc", "on"])?;
    }
    let of = |counts: &std::collections::BTreeMap<String, u64>, reason: Reason| {
        counts.get(reason.name()).copied().unwrap_or(0)
    };
    let counted = |reason| -> Result<[u64; 2]> {
        Ok([of(&testbed.counters()?, reason), of(&counters(&instance, second, "game")?, reason)])
    };
    // The edge sends to one of the two, depending on the client's port; both receive the frame.
    let strangers = [not_ours(&testbed.instance, first)?, not_ours(&instance, second)?];
    testbed.send(b"no token")?;
    testbed.arrives(b"no token")?;
    testbed.nothing_arrived()?;
    let once = counted(Reason::NoToken)?;
    ensure!(once.iter().sum::<u64>() == 1, "one packet was counted {once:?} times");
    let strangers_after = [not_ours(&testbed.instance, first)?, not_ours(&instance, second)?];
    let other = usize::from(once[0] == 1);
    ensure!(strangers_after[other] > strangers[other], "the frame did not come to the other balancer");
    let token = testbed.issuer()?.token(session(1, 0), TTL);
    testbed.send(&[&token.to_bytes()[..], b"once"].concat())?;
    receive(&testbed.backends)?;
    testbed.nothing_arrived()
}

/// A datagram in a broadcast frame is dropped, regardless of its IP address. In observe mode, a socket of this host
/// receives it.
fn frames_for_all_reach_nobody(family: Family) -> Result<()> {
    for fields in [L2, OBSERVED, LOCAL] {
        let testbed = Testbed::of(family, fields, 1)?;
        // The backend is on the same segment, so it also receives the frame from the switch.
        for option in
            ["net.ipv4", "net.ipv6"].map(|of| format!("{of}.conf.eth0.drop_unicast_in_l2_multicast"))
        {
            testbed.topology.backends[0].sysctl(&option, "1")?;
        }
        let _daemon = testbed.start()?;
        let token = testbed.token(1)?;
        testbed.delivered(&token)?;
        for station in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01"] {
            sends_to(&testbed.topology.client, family, station)?;
            testbed
                .refused_token(&token, Reason::Unsupported)
                .with_context(|| format!("{fields}: {station}"))?;
        }
    }
    let testbed = Testbed::of(family, &format!("{LOCAL}\nmode = \"observe\""), 1)?;
    let _daemon = testbed.start()?;
    sends_to(&testbed.topology.client, family, "ff:ff:ff:ff:ff:ff")?;
    testbed.send(b"to all")?;
    testbed.arrives(b"to all")?;
    Ok(())
}

/// The interface gets another address while datagrams arrive. Datagrams to the new address are filtered from the first
/// one on, and soon forwarded; datagrams to the previous address are no longer accepted.
fn an_address_that_changes(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, LOCAL, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    let balancer = &testbed.topology.balancer;
    let before = address(balancer, INTERFACE)?;
    ensure!(listed(&testbed)? == slice::from_ref(&before), "{:?}", listed(&testbed)?);

    // No daemon updates the program: then it drops all packets.
    daemon.kill()?;
    balancer.ip(&["link", "set", INTERFACE, "address", "02:00:00:00:00:88"])?;
    sends_to(&testbed.topology.client, family, "02:00:00:00:00:88")?;
    for _ in 0..20 {
        testbed.send(b"no token")?;
        testbed.send(&[&token.to_bytes()[..], b"valid"].concat())?;
    }
    testbed.nothing_arrived()?;
    let _daemon = testbed.start()?;
    testbed.delivered(&token)?;

    // Under traffic: no packet without a token passes, and valid packets pass again within a moment.
    let next = "02:00:00:00:00:99";
    let begun = std::time::Instant::now();
    balancer.ip(&["link", "set", INTERFACE, "address", next])?;
    sends_to(&testbed.topology.client, family, next)?;
    let mut buffer = [0; 64];
    loop {
        testbed.send(b"no token")?;
        testbed.send(&[&token.to_bytes()[..], b"valid"].concat())?;
        if let Ok(len) = testbed.backends[0].recv(&mut buffer) {
            ensure!(buffer[..len] == *b"valid", "{:?} got in", &buffer[..len]);
            break;
        }
        ensure!(begun.elapsed().as_secs() < 2, "nothing has arrived: {:?}", testbed.counters()?);
    }
    lists(&testbed, next)?;
    ensure!(!listed(&testbed)?.contains(&before), "{:?}", listed(&testbed)?);
    Ok(())
}

#[test]
fn a_virtual_router_has_its_frames() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    sends_to(&testbed.topology.client, Family::V4, VIRTUAL_ROUTER)?;
    testbed.send(&[&token.to_bytes()[..], b"unknown"].concat())?;
    testbed.nothing_arrived()?;
    daemon.terminate()?;
    let text = std::fs::read_to_string(testbed.instance.config())?;
    std::fs::write(testbed.instance.config(), format!("virtual_macs = [\"{VIRTUAL_ROUTER}\"]\n{text}"))?;
    let _daemon = testbed.start()?;
    ensure!(listed(&testbed)?.iter().any(|mac| mac == VIRTUAL_ROUTER), "{:?}", listed(&testbed)?);
    let checked =
        testbed.run(&["check", "-c", testbed.instance.config().to_str().context("a path in UTF-8")?])?;
    ensure!(said(&checked).contains(VIRTUAL_ROUTER), "{}", said(&checked));
    testbed.delivered(&token)?;
    Ok(())
}

/// The kernel passes an interface's frames to the upper device that has their address: here a bridge, and a device
/// whose address was added from another namespace, as for the macvlan of a container.
#[test]
fn what_is_above_the_interface_has_its_frames() -> Result<()> {
    let testbed = Testbed::new(LOCAL, 1)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    let balancer = &testbed.topology.balancer;

    // Like `dev_uc_add` for a macvlan, this sends no notification.
    let asked = "02:00:00:00:00:66";
    run(balancer, "bridge", &["fdb", "add", asked, "dev", INTERFACE, "self"])?;
    lists(&testbed, asked)?;
    sends_to(&testbed.topology.client, Family::V4, asked)?;
    testbed.refused(b"no token", Reason::NoToken)?;
    run(balancer, "bridge", &["fdb", "del", asked, "dev", INTERFACE, "self"])?;
    wait_for("the address to go", || Ok(!listed(&testbed)?.iter().any(|mac| mac == asked)))?;

    let of_bridge = "02:00:00:00:00:55";
    balancer.ip(&["link", "add", "br0", "address", of_bridge, "type", "bridge", "mcast_snooping", "0"])?;
    balancer.ip(&["link", "set", "br0", "up"])?;
    balancer.ip(&["link", "set", INTERFACE, "master", "br0"])?;
    lists(&testbed, of_bridge)?;
    let addresses = [Network::Front.prefix(Family::V4, 1), format!("{}/32", Family::V4.service().ip())];
    for address in &addresses {
        balancer.ip(&["address", "del", address, "dev", INTERFACE])?;
        balancer.ip(&["address", "add", address, "dev", "br0"])?;
    }
    sends_to(&testbed.topology.client, Family::V4, of_bridge)?;
    testbed.refused(b"no token", Reason::NoToken)?;
    testbed.delivered(&token)?;

    // Behind the bridge: frames to the guest are not filtered.
    let guest = Guest::on(&testbed, "br0")?;
    sends_to(&testbed.topology.client, Family::V4, &guest.address)?;
    testbed.send(b"for the guest")?;
    let mut buffer = [0; 64];
    guest.socket.set_read_timeout(Some(lb_tests::testbed::daemon::PATIENCE))?;
    let len = guest.socket.recv(&mut buffer).context("the guest received nothing")?;
    ensure!(buffer[..len] == *b"for the guest");
    testbed.nothing_arrived()
}

/// A machine behind a bridge that also has the address of the service.
struct Guest {
    address: String,
    socket: UdpSocket,
    _namespace: Namespace,
}

impl Guest {
    fn on(testbed: &Testbed, bridge: &str) -> Result<Self> {
        let namespace = Namespace::new(&format!("{}-guest", testbed.name()))?;
        let balancer = &testbed.topology.balancer;
        balancer.ip(&[
            "link",
            "add",
            "tap0",
            "type",
            "veth",
            "peer",
            "name",
            INTERFACE,
            "netns",
            namespace.name(),
        ])?;
        balancer.ip(&["link", "set", "tap0", "master", bridge, "up"])?;
        namespace.ip(&["link", "set", INTERFACE, "up"])?;
        let service = Family::V4.service();
        namespace.ip(&["address", "add", &format!("{}/24", service.ip()), "dev", INTERFACE])?;
        let socket = namespace.enter(|| UdpSocket::bind(service))??;
        Ok(Self { address: address(&namespace, INTERFACE)?, socket, _namespace: namespace })
    }
}

fn run(host: &Namespace, program: &str, args: &[&str]) -> Result<()> {
    lb_tests::testbed::netns::run(host.command(program)?.args(args))
}

/// Frames of such an interface have no Ethernet header, so nothing could be filtered.
#[test]
fn an_interface_without_ethernet_is_refused() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let balancer = &testbed.topology.balancer;
    // VXLAN-GPE carries packets without one. A TUN device would need /dev/net/tun, which many containers do not have.
    balancer.ip(&["link", "add", "gpe0", "type", "vxlan", "dstport", "4790", "gpe", "external"])?;
    testbed.instance.configure_on(&[INTERFACE, "gpe0"], &testbed.service(L2, 1))?;
    let mut daemon = Daemon::spawn(&testbed.instance, balancer)?;
    let status = daemon.ended()?;
    let log = daemon.log();
    ensure!(status.code() == Some(1) && log.contains("`gpe0`") && log.contains("Ethernet header"), "{log}");
    Ok(())
}
