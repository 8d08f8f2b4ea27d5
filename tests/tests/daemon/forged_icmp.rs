//! Forged ICMP errors and redirects: the kernel applies them to its own routes, and the next hops and MTUs of the
//! backends stay those of the routing table.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::PacketBuilder;
use lb_tests::testbed::{
    daemon::{said, wait_for},
    decap::Decap,
    forward::Forward,
    issuer::session,
    netns::Namespace,
    topology::{Family, INTERFACE, Layout, Network, Plan},
};
use nix::{errno::Errno, libc};

use crate::testbed::{TTL, Testbed, over_both};

over_both!(a_path_mtu, a_redirect);

/// ICMPv6 Redirect (RFC 4861, 4.5).
const ND_REDIRECT: u8 = 137;
/// Longer than any path MTU that is forged here.
const LONG: usize = 1300;

/// Forged "fragmentation needed" (RFC 792) and "packet too big" (RFC 4443) change the kernel's path MTU, not a
/// backend's.
fn a_path_mtu(family: Family) -> Result<()> {
    for forward in [Forward::Ipip, Forward::Nat] {
        let (testbed, _decap) = routed(family, forward)?;
        let _daemon = testbed.start()?;
        long_ones_arrive(&testbed).context("before")?;
        let victim = Victim::new(&testbed)?;
        let mtu: u16 = if family == Family::V4 { 600 } else { 1280 };
        let body = match (victim.quoted[0].ip(), victim.quoted[1].ip()) {
            (IpAddr::V4(_), _) => [&[3, 4, 0, 0, 0, 0][..], &mtu.to_be_bytes(), &victim.quote()?].concat(),
            (IpAddr::V6(_), _) => [&[2, 0, 0, 0, 0, 0][..], &mtu.to_be_bytes(), &victim.quote()?].concat(),
        };
        // From any source: here, the client's own address.
        let attacker = Network::Front.address(family, 2);
        victim.believes(&testbed, attacker, &body, &format!("mtu {mtu}"))?;
        routes_are_read_again(&testbed)?;
        let listed = testbed.json(&["backends", "list"])?["items"][0]["mtu"].clone();
        ensure!(listed == 1500, "{}: the MTU to the backend is {listed}", forward.name());
        long_ones_arrive(&testbed).with_context(|| format!("{}, after", forward.name()))?;
    }
    Ok(())
}

/// A forged redirect (RFC 792; RFC 4861, 4.5) changes the kernel's next hop, not a backend's.
fn a_redirect(family: Family) -> Result<()> {
    let (testbed, _decap) = routed(family, Forward::Ipip)?;
    let balancer = &testbed.topology.balancer;
    accept_redirects(balancer)?;
    let (router, attacker) = match family {
        Family::V4 => {
            (testbed.topology.plan.router(family, Network::Front, 1), Network::Front.address(family, 2))
        }
        Family::V6 => {
            let router = link_local(&testbed.topology.routers[0])?;
            // A redirect must come from the gateway of the route (RFC 4861, 8.1).
            let (to, via) = (Network::Back.prefix(family, 0), router.to_string());
            balancer.ip(&["-6", "route", "replace", &to, "via", &via, "dev", INTERFACE])?;
            (router, link_local(&testbed.topology.client)?)
        }
    };
    let _daemon = testbed.start()?;
    long_ones_arrive(&testbed).context("before")?;
    let backend = testbed.json(&["backends", "list"])?["items"][0].clone();
    ensure!(backend["gateway"] == router.to_string(), "{backend}");

    let victim = Victim::new(&testbed)?;
    let body = match (attacker, victim.quoted[1].ip()) {
        (IpAddr::V4(attacker), _) => [&[5, 1, 0, 0][..], &attacker.octets(), &victim.quote()?].concat(),
        (IpAddr::V6(target), IpAddr::V6(destination)) => redirect_v6(target, destination, &[]),
        (IpAddr::V6(_), IpAddr::V4(_)) => bail!("two families"),
    };
    victim.believes(&testbed, router, &body, &format!("via {attacker} "))?;
    routes_are_read_again(&testbed)?;
    let after = testbed.json(&["backends", "list"])?["items"][0].clone();
    ensure!((&after["gateway"], &after["mac"]) == (&backend["gateway"], &backend["mac"]), "{after}");
    long_ones_arrive(&testbed).context("after")
}

/// A redirect that names the router itself writes the sender's MAC address into the router's neighbour entry (RFC 4861,
/// 8.3), as a neighbour advertisement does. Neither changes a permanent entry.
#[test]
fn a_permanent_neighbour_entry_takes_no_redirect() -> Result<()> {
    let (testbed, _decap) = routed(Family::V6, Forward::Ipip)?;
    let balancer = &testbed.topology.balancer;
    accept_redirects(balancer)?;
    let (router, attacker) = (link_local(&testbed.topology.routers[0])?, mac(&testbed.topology.client)?);
    let (to, via) = (Network::Back.prefix(Family::V6, 0), router.to_string());
    balancer.ip(&["-6", "route", "replace", &to, "via", &via, "dev", INTERFACE])?;
    let genuine = mac(&testbed.topology.routers[0])?;
    let set = |state: &str| {
        let entry = ["-6", "neighbour", "replace", &via, "lladdr", &genuine, "dev", INTERFACE, "nud", state];
        balancer.ip(&entry)
    };
    let _daemon = testbed.start()?;
    let victim = Victim::new(&testbed)?;
    let (IpAddr::V6(target), IpAddr::V6(destination)) = (router, victim.quoted[1].ip()) else {
        bail!("an IPv4 address");
    };
    let bytes: Vec<u8> =
        attacker.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    let body = redirect_v6(target, destination, &[&[2, 1][..], &bytes].concat());
    let has = |wanted: &str| {
        let shown = balancer.command("ip")?.args(["-6", "neighbour", "show", &via]).output()?;
        Ok(said(&shown).contains(wanted))
    };
    // The kernel accepts this redirect.
    set("stale")?;
    wait_for("the kernel to take the redirect", || {
        victim.tell(&testbed, router, &body)?;
        has(&attacker)
    })?;
    set("permanent")?;
    for _ in 0..10 {
        victim.tell(&testbed, router, &body)?;
    }
    wait_for("the daemon to have the router again", || {
        Ok(testbed.json(&["backends", "list"])?["items"][0]["mac"] == *genuine)
    })?;
    ensure!(has(&genuine)?, "the permanent entry has changed");
    long_ones_arrive(&testbed)
}

/// `check` and the log report where redirects are accepted, and the reported setting disables them.
#[test]
fn where_redirects_are_taken_is_said() -> Result<()> {
    let (testbed, _decap) = routed(Family::V4, Forward::Ipip)?;
    let balancer = &testbed.topology.balancer;
    accept_redirects(balancer)?;
    let config = testbed.instance.config();
    let check = || testbed.json(&["check", "-c", config.to_str().context("a path of text")?]);
    let warnings = |report: &serde_json::Value| -> Result<Vec<String>> {
        let lines = report["checks"].as_array().context("checks")?.iter();
        let about = lines.filter(|line| line["verdict"] == "warning" && line["name"] == "interface eth0");
        Ok(about.filter_map(|line| line["hint"].as_str().map(str::to_owned)).collect())
    };
    let said = warnings(&check()?)?;
    let [hint] = said.as_slice() else { bail!("{said:?}") };
    let daemon = testbed.start()?;
    ensure!(daemon.log().contains("interface eth0 accepts ICMP redirects"), "{}", daemon.log());
    daemon.terminate()?;
    // Applied without the program `sysctl` of procps, which minimal systems lack.
    let command = hint.trim_matches('`');
    let settings = command.strip_prefix("sysctl -w ").with_context(|| command.to_owned())?;
    for setting in settings.split(' ') {
        let (name, value) = setting.split_once('=').with_context(|| command.to_owned())?;
        balancer.sysctl(name, value)?;
    }
    ensure!(warnings(&check()?)?.is_empty(), "{}", check()?);
    let daemon = testbed.start()?;
    ensure!(!daemon.log().contains("redirects"), "{}", daemon.log());
    Ok(())
}

fn routed(family: Family, forward: Forward) -> Result<(Testbed, Vec<Decap>)> {
    let fields = format!("forward = \"{}\"\nkey_rotation = \"off\"", forward.name());
    let testbed =
        Testbed::of(family, &fields, Plan { backends: 2, layout: Layout::Routed, ..Plan::default() })?;
    let decap = if forward.encapsulates() { testbed.decap()? } else { Vec::new() };
    Ok((testbed, decap))
}

fn accept_redirects(host: &Namespace) -> Result<()> {
    for setting in [
        "ipv4.conf.all.accept_redirects",
        "ipv4.conf.eth0.accept_redirects",
        "ipv6.conf.eth0.accept_redirects",
    ] {
        host.sysctl(&format!("net.{setting}"), "1")?;
    }
    for setting in ["ipv4.conf.eth0.forwarding", "ipv6.conf.eth0.forwarding"] {
        host.sysctl(&format!("net.{setting}"), "0")?;
    }
    Ok(())
}

/// A long datagram reaches backend 1.
fn long_ones_arrive(testbed: &Testbed) -> Result<()> {
    let token = testbed.issuer()?.token(session(1, 1), TTL);
    let data = vec![7; LONG];
    testbed.send(&[&token.to_bytes()[..], &data].concat())?;
    ensure!(testbed.arrives(&data)? == 1);
    Ok(())
}

/// Changes the route to backend 2 and waits until the daemon has applied the change. By then, it has read all routes
/// again.
fn routes_are_read_again(testbed: &Testbed) -> Result<()> {
    let plan = &testbed.topology.plan;
    let second = plan.router(testbed.family, Network::Front, 2).to_string();
    let backend = plan.backend(testbed.family, 2).to_string();
    testbed.topology.balancer.ip(&[testbed.family.option(), "route", "replace", &backend, "via", &second])?;
    wait_for("the daemon to follow the route to backend 2", || {
        Ok(testbed.json(&["backends", "list"])?["items"][1]["gateway"] == second)
    })
}

/// An unconnected UDP socket of the balancer's host: any such socket makes the kernel accept the error.
struct Victim {
    _socket: UdpSocket,
    /// The datagram that the forged error is about: from the balancer, to backend 1.
    quoted: [SocketAddr; 2],
}

impl Victim {
    fn new(testbed: &Testbed) -> Result<Self> {
        let family = testbed.family;
        let socket = testbed.topology.balancer.enter(|| UdpSocket::bind((family.any(), 0)))??;
        let from = (Network::Front.address(family, 1), socket.local_addr()?.port());
        let to = (testbed.topology.plan.backend(family, 1), 9);
        Ok(Self { _socket: socket, quoted: [from.into(), to.into()] })
    }

    /// The packet that the error quotes.
    fn quote(&self) -> Result<Vec<u8>> {
        let mut packet = Vec::new();
        let [from, to] = self.quoted;
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
            _ => bail!("two families"),
        };
        builder.udp(from.port(), to.port()).write(&mut packet, &[0; 32])?;
        Ok(packet)
    }

    /// Sends a forged ICMP message to the balancer repeatedly, until its kernel has created the exception.
    fn believes(&self, testbed: &Testbed, from: IpAddr, message: &[u8], shown: &str) -> Result<()> {
        let backend = self.quoted[1].ip().to_string();
        let mut route = String::new();
        wait_for("the kernel to believe it", || {
            self.tell(testbed, from, message)?;
            let command = ["route", "get", &backend];
            route = said(&testbed.topology.balancer.command("ip")?.args(command).output()?);
            Ok(route.replace('\n', " ").contains(shown))
        })
        .with_context(|| format!("no `{shown}` in: {route}"))
    }

    /// Sends an ICMP message, whose checksum is not set yet, from the client's host with another source address.
    fn tell(&self, testbed: &Testbed, from: IpAddr, message: &[u8]) -> Result<()> {
        let [kind, code, _, _, rest @ ..] = message else { bail!("no ICMP message") };
        let (word, body) = rest.split_first_chunk::<4>().context("no ICMP message")?;
        let mut packet = Vec::new();
        match (from, self.quoted[0].ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), 64)
                    .icmpv4_raw(*kind, *code, *word)
                    .write(&mut packet, body)?;
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                // Neighbour discovery has a hop limit of 255 (RFC 4861, 8.1).
                PacketBuilder::ipv6(from.octets(), to.octets(), 255)
                    .icmpv6_raw(*kind, *code, *word)
                    .write(&mut packet, body)?;
            }
            _ => bail!("two families"),
        }
        testbed.topology.client.enter(|| send_raw(&packet, self.quoted[0].ip()))?
    }
}

/// Target, destination and options, after the reserved word.
fn redirect_v6(target: Ipv6Addr, destination: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[ND_REDIRECT, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &destination.octets(), options].concat()
}

/// Sends an IP packet with its own header, through a raw socket (raw(7)).
fn send_raw(packet: &[u8], to: IpAddr) -> Result<()> {
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: a new socket; no other code closes it.
    let socket = unsafe {
        let socket =
            Errno::result(libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW))?;
        OwnedFd::from_raw_fd(socket)
    };
    let address = nix::sys::socket::SockaddrStorage::from(SocketAddr::from((to, 0)));
    nix::sys::socket::sendto(socket.as_raw_fd(), packet, &address, nix::sys::socket::MsgFlags::empty())?;
    Ok(())
}

/// The output of `ip -json address` for a host's interface.
fn shown(host: &Namespace) -> Result<serde_json::Value> {
    let output = host.command("ip")?.args(["-json", "address", "show", "dev", INTERFACE]).output()?;
    Ok(serde_json::from_slice::<serde_json::Value>(&output.stdout)?[0].take())
}

fn link_local(host: &Namespace) -> Result<IpAddr> {
    let shown = shown(host)?;
    let addresses = shown["addr_info"].as_array().context("addresses")?;
    let found = addresses.iter().find(|address| address["scope"] == "link" && address["family"] == "inet6");
    Ok(found.and_then(|address| address["local"].as_str()).context("a link-local address")?.parse()?)
}

fn mac(host: &Namespace) -> Result<String> {
    Ok(shown(host)?["address"].as_str().context("a MAC address")?.to_owned())
}
