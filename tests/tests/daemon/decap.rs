//! `tollgate decap` on a backend: encapsulated frames arrive, and sockets receive the inner datagrams.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    slice,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    model::tunnel::{BACKEND_MAC, Kind, Tunnel, datagram},
    testbed::{
        daemon::{PATIENCE, said, wait_for},
        decap::Decap,
        netns::Namespace,
        topology::{Family, INTERFACE, Network},
    },
};
use nix::{
    ifaddrs::getifaddrs,
    sys::{
        signal::Signal,
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};
use serde_json::Value;

use crate::testbed::{Testbed, receive};

#[test]
fn a_backend_gets_what_was_inside() -> Result<()> {
    let backend = Backend::new()?;
    let decap = backend.decap("10.9.0.0/24,fd00:9::/64")?;
    let (v4, v6) = (Family::V4, Family::V6);
    for (outer, kind, inner) in [
        (4, Kind::Ipip, v4),
        (6, Kind::Ipip, v4),
        (6, Kind::Ipip, v6),
        (4, Kind::Gue { summed: true }, v4),
        (4, Kind::Gue { summed: false }, v4),
        (6, Kind::Gue { summed: true }, v4),
        (6, Kind::Gue { summed: true }, v6),
        (6, Kind::Gue { summed: false }, v6),
    ] {
        // Congestion on the path changes the inner checksum.
        for (inner_class, class) in [(0, 0), (2, 3)] {
            let text = format!("{inner} in v{outer} {kind:?}, {class}");
            let packet = backend.datagram(inner, inner_class, text.as_bytes());
            backend.send(&Tunnel { class, ..Tunnel::new(outer, kind, packet) })?;
            backend.receives(inner, &text)?;
        }
    }
    let report = decap.stop(Signal::SIGTERM)?;
    ensure!(report["mode"] == "native", "{report}");
    ensure!(count(&report, "ipip")? == 6 && count(&report, "gue")? == 10, "{report}");
    ensure!(!backend.host().has_xdp(INTERFACE)?, "the program is still attached");
    Ok(())
}

/// A terminal that is closed sends SIGHUP.
#[test]
fn signals_that_do_not_end_it() -> Result<()> {
    let backend = Backend::new()?;
    let decap = backend.decap("10.9.0.7")?;
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE] {
        decap.signal(signal)?;
    }
    let is_logged = |signal| decap.log().contains(signal);
    wait_for("its log", || Ok(["SIGHUP: ", "SIGUSR1: ", "SIGUSR2: "].into_iter().all(is_logged)))?;
    backend.send(&Tunnel::new(4, Kind::Ipip, backend.datagram(Family::V4, 0, b"inner")))?;
    backend.receives(Family::V4, "inner")?;
    let report = decap.stop(Signal::SIGQUIT)?;
    ensure!(count(&report, "ipip")? == 1, "{report}");
    ensure!(!backend.host().has_xdp(INTERFACE)?, "the program is still attached");
    Ok(())
}

/// The kernel verifies the inner checksum: a datagram that was damaged on the path reaches no socket, even if its outer
/// checksum was not verified. The next datagram does.
#[test]
fn what_is_damaged_inside_reaches_nobody() -> Result<()> {
    let backend = Backend::new()?;
    let decap = backend.decap("10.9.0.7")?;
    let mut damaged = backend.datagram(Family::V4, 0, b"damaged");
    *damaged.last_mut().context("it is not empty")? ^= 1;
    backend.send(&Tunnel::new(4, Kind::Ipip, damaged))?;
    backend.send(&Tunnel::new(4, Kind::Ipip, backend.datagram(Family::V4, 0, b"whole")))?;
    backend.receives(Family::V4, "whole")?;
    let report = decap.stop(Signal::SIGINT)?;
    ensure!(count(&report, "ipip")? == 2, "{report}");
    Ok(())
}

#[test]
fn nobody_elses_packet_is_opened() -> Result<()> {
    let backend = Backend::new()?;
    let stack = backend.host().enter(raw_socket)??;
    let decap = backend.decap("10.9.0.8,fd00:9::/64")?;
    let foreign = backend.datagram(Family::V4, 0, b"foreign");
    let foreign = Tunnel::new(4, Kind::Gue { summed: true }, foreign);
    backend.send(&foreign)?;
    backend.send(&Tunnel::new(6, Kind::Ipip, backend.datagram(Family::V4, 0, b"known")))?;
    backend.receives(Family::V4, "known")?;
    // The datagram of an unknown sender reached the host's stack unchanged.
    let deadline = Instant::now() + PATIENCE;
    let mut frame = [0; 2048];
    loop {
        ensure!(Instant::now() < deadline, "the stack never saw it");
        match recv(stack.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(len) if frame[..len] == foreign.bytes() => break,
            Ok(_) | Err(nix::Error::EAGAIN) => {}
            Err(error) => return Err(error).context("a packet socket"),
        }
    }
    let report = decap.stop(Signal::SIGTERM)?;
    ensure!(count(&report, "foreign")? == 1 && count(&report, "gue")? == 0, "{report}");
    Ok(())
}

#[test]
fn errors_say_what_to_try() -> Result<()> {
    let backend = Backend::new()?;
    let mut first = backend.decap("10.9.0.7")?;
    let many = (1..=17).map(|host| format!("10.9.0.{host}")).collect::<Vec<_>>().join(",");
    for (args, status, expected) in [
        (&["-i", "eth0", "--from", "10.9.0.7"][..], 1, "another XDP program is on it"),
        (&["-i", "eth9", "--from", "10.9.0.7"], 1, "there is no interface `eth9`"),
        (&["-i", "lo", "--from", "10.9.0.7"], 1, "has no MAC address"),
        (&["-i", "eth0"], 2, "--from"),
        (&["-i", "eth0", "--from", "10.9.0.7/24"], 2, "more bits than"),
        (&["-i", "eth0", "--from", "lb-1"], 2, "is not an IP address"),
        (&["-i", "eth0", "--from", &many], 1, "capacity is 16"),
    ] {
        let output = backend.testbed.instance.run(backend.host(), &[&["decap"], args].concat())?;
        ensure!(output.status.code() == Some(status), "{args:?}: {}: {}", output.status, said(&output));
        ensure!(said(&output).contains(expected), "{args:?}: {}", said(&output));
    }
    // The first process is still attached, and ends when its interface is removed.
    backend.host().ip(&["link", "delete", INTERFACE])?;
    let status = first.ended()?;
    ensure!(status.code() == Some(1) && first.log().contains("`eth0` is gone"), "{status}: {}", first.log());
    Ok(())
}

/// A backend with a service of both families, and a balancer that sends it whole frames.
struct Backend {
    testbed: Testbed,
    wire: OwnedFd,
    /// The IPv6 socket of the service; the testbed has the IPv4 socket.
    v6: UdpSocket,
}

impl Backend {
    fn new() -> Result<Self> {
        let testbed = Testbed::new("forward = \"ipip\"", 1)?;
        let mac = BACKEND_MAC.map(|byte| format!("{byte:02x}")).join(":");
        testbed.topology.backends[0].ip(&["link", "set", INTERFACE, "address", &mac])?;
        let wire = testbed.topology.balancer.enter(raw_socket)??;
        let v6 = testbed.topology.backend_socket(0, Family::V6.service())?;
        Ok(Self { testbed, wire, v6 })
    }

    fn host(&self) -> &Namespace {
        &self.testbed.topology.backends[0]
    }

    fn decap(&self, from: &str) -> Result<Decap> {
        Decap::start(&self.testbed.instance, self.host(), from)
    }

    fn send(&self, tunnel: &Tunnel) -> Result<()> {
        let frame = tunnel.bytes();
        let sent = send(self.wire.as_raw_fd(), &frame, MsgFlags::empty()).context("a packet socket")?;
        ensure!(sent == frame.len(), "{sent} bytes were sent");
        Ok(())
    }

    /// A datagram from the client to the service.
    fn datagram(&self, family: Family, class: u8, payload: &[u8]) -> Vec<u8> {
        let client = SocketAddr::new(Network::Front.address(family, 2), 40_000);
        datagram(client, family.service(), class, payload)
    }

    /// Waits for the next datagram at the service's socket, which must be this one.
    fn receives(&self, family: Family, text: &str) -> Result<()> {
        let sockets = if family == Family::V4 { &self.testbed.backends } else { slice::from_ref(&self.v6) };
        let received = receive(sockets).context(text.to_owned())?.bytes;
        ensure!(received == text.as_bytes(), "{} where {text} was sent", String::from_utf8_lossy(&received));
        Ok(())
    }
}

/// Sends and receives whole frames on this namespace's interface.
fn raw_socket() -> Result<OwnedFd> {
    let mut addresses = getifaddrs()?;
    let address = addresses.find_map(|found| {
        let is_it = found.interface_name == INTERFACE;
        found.address.filter(|_| is_it)?.as_link_addr().copied()
    });
    let address = address.with_context(|| format!("{INTERFACE} has no link address"))?;
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll)?;
    bind(raw.as_raw_fd(), &address)?;
    setsockopt(&raw, ReceiveTimeout, &TimeVal::new(0, 100_000))?;
    Ok(raw)
}

/// Packets of an outcome in a report.
fn count(report: &Value, outcome: &str) -> Result<u64> {
    let all = report["outcomes"].as_array().context("the report has no outcomes")?;
    let found = all.iter().find(|count| count["outcome"] == outcome);
    found.and_then(|count| count["packets"].as_u64()).with_context(|| format!("no {outcome} in {report}"))
}
