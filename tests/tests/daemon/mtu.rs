//! Packets that exceed the MTU: datagrams to a backend, and answers of the backend.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _, slice};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::wait_for,
    forward::Forward,
    topology::{BACK_INTERFACE, Family, Layout, Network, Plan},
};
use nix::{errno::Errno, libc};

use crate::testbed::{Testbed, over_both, receive, set_option};

over_both!(clients_learn_what_fits, backends_learn_what_fits);

/// The MTU of the route behind the balancer, and of the link before the client.
const NARROW: usize = 1400;

const fn header(family: Family) -> usize {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// A smaller MTU behind the balancer, of a route or of a link: a packet that exceeds it is counted, and the client
/// learns the MTU.
fn clients_learn_what_fits(family: Family) -> Result<()> {
    for (forward, layout, outer, strip) in [
        (Forward::L2, Layout::TwoInterfaces, 0, false),
        (Forward::Ipip, Layout::Routed, header(family), true),
        (Forward::Gue, Layout::Routed, header(family) + 8, false),
        (Forward::Nat, Layout::Routed, 0, true),
    ] {
        let fields = format!("forward = \"{}\"\nstrip = {strip}\nkey_rotation = \"off\"", forward.name());
        let testbed = Testbed::of(family, &fields, Plan { backends: 1, layout, ..Plan::default() })?;
        narrow(&testbed)?;
        let _daemon = testbed.start()?;
        let _decap = if forward.encapsulates() { testbed.decap()? } else { Vec::new() };
        let listed = testbed.json(&["backends", "list"])?["items"][0]["mtu"].clone();
        ensure!(listed == NARROW, "{}: the route's MTU is listed as {listed}", forward.name());
        steps(&testbed, outer, strip).with_context(|| forward.name())?;
    }
    Ok(())
}

fn narrow(testbed: &Testbed) -> Result<()> {
    let (balancer, narrow) = (&testbed.topology.balancer, NARROW.to_string());
    if testbed.topology.plan.layout == Layout::TwoInterfaces {
        return balancer.ip(&["link", "set", BACK_INTERFACE, "mtu", &narrow]);
    }
    let router = testbed.topology.plan.router(testbed.family, Network::Front, 1).to_string();
    let destination = Network::Back.prefix(testbed.family, 0);
    balancer.ip(&[testbed.family.option(), "route", "replace", &destination, "via", &router, "mtu", &narrow])
}

fn steps(testbed: &Testbed, outer: usize, strip: bool) -> Result<()> {
    let token = testbed.token(1)?.to_bytes();
    // A new socket each time: an error that is queued at a socket does not show the current state of the kernel.
    let client = || {
        let client = testbed.topology.client_socket(testbed.family.service())?;
        may_fragment(&client, testbed.family, false)?;
        anyhow::Ok(client)
    };
    let datagram = |packet: usize| {
        let len = packet - header(testbed.family) - 8;
        [&token[..], &vec![7; len - token.len()]].concat()
    };
    let arrives = |packet: usize| {
        let sent = datagram(packet);
        client()?.send(&sent)?;
        testbed.arrives(if strip { &sent[token.len()..] } else { &sent })
    };
    // Length of the IP packet as the client sends it: a token that is stripped does not have to fit.
    let fits = NARROW - outer + if strip { token.len() } else { 0 };
    arrives(fits)?;
    wait_for("the client's kernel to know", || Ok(is_too_big(client()?.send(&datagram(fits + 1)))))
        .with_context(|| format!("counted {:?}", testbed.counters()))?;
    let counted = testbed.counters()?;
    ensure!(counted.get(Reason::TooBig.name()).is_some_and(|count| *count >= 1), "{counted:?}");
    let learnt = path_mtu(&client()?, testbed.family)?;
    ensure!(learnt == fits, "the client has learnt {learnt}, and {fits} fits");
    arrives(learnt)?;
    Ok(())
}

/// Whether the kernel already knew that the datagram exceeds the MTU.
fn is_too_big(sent: io::Result<usize>) -> bool {
    matches!(sent, Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE))
}

/// A smaller MTU in front of the client: the router there sends ICMP errors to the service's address, and they must
/// reach the backend.
fn backends_learn_what_fits(family: Family) -> Result<()> {
    for forward in [Forward::L2, Forward::Ipip, Forward::Gue] {
        let fields = format!("forward = \"{}\"\nkey_rotation = \"off\"", forward.name());
        let testbed = Testbed::of(family, &fields, Plan { backends: 2, edge: true, ..Plan::default() })?;
        let edge = testbed.topology.edge.as_ref().context("an edge")?;
        edge.ip(&["link", "set", BACK_INTERFACE, "mtu", &NARROW.to_string()])?;
        let _daemon = testbed.start()?;
        let _decap = if forward.encapsulates() { testbed.decap()? } else { Vec::new() };
        answers(&testbed).with_context(|| forward.name())?;
    }
    Ok(())
}

fn answers(testbed: &Testbed) -> Result<()> {
    let token = testbed.token(1)?.to_bytes();
    let client = testbed.topology.client_socket(testbed.family.service())?;
    client.send(&[&token[..], b"question"].concat())?;
    let question = receive(&testbed.backends)?;
    let backend = &testbed.backends[question.index];
    may_fragment(backend, testbed.family, false)?;
    let long = vec![7; NARROW];
    let is_known = || Ok(is_too_big(backend.send_to(&long, question.from)));
    wait_for("the backend's kernel to know", is_known)
        .with_context(|| format!("counted {:?}", testbed.counters()))?;
    let counted = testbed.counters()?;
    ensure!(counted.get(Reason::IcmpError.name()).is_some_and(|count| *count >= 1), "{counted:?}");
    // From now on, the kernel fragments the answers.
    may_fragment(backend, testbed.family, true)?;
    backend.send_to(&long, question.from)?;
    let answer = receive(slice::from_ref(&client)).context("no answer in pieces")?;
    ensure!(answer.bytes == long, "the answer came as {}", hex::encode(answer.bytes));
    Ok(())
}

/// Whether the kernel fragments a socket's packets that exceed the known MTU, or refuses them.
fn may_fragment(socket: &UdpSocket, family: Family, may: bool) -> Result<()> {
    match family {
        Family::V4 => {
            let value = if may { libc::IP_PMTUDISC_WANT } else { libc::IP_PMTUDISC_DO };
            set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
        }
        Family::V6 => {
            let value = if may { libc::IPV6_PMTUDISC_WANT } else { libc::IPV6_PMTUDISC_DO };
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
        }
    }
}

/// The longest IP packet to the peer of a connected socket, as far as the kernel knows.
fn path_mtu(socket: &UdpSocket, family: Family) -> Result<usize> {
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option is an int, and both pointers are valid for the duration of the call.
    Errno::result(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len)
    })?;
    Ok(usize::try_from(value)?)
}
