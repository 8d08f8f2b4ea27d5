//! `forward = "nat"`: translations that persist, exhausted ports, and unsolicited answers.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{SocketAddr, UdpSocket},
    os::fd::FromRawFd as _,
    slice,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::{
    model::packet::{Icmp, Packet},
    testbed::{
        daemon::wait_for,
        issuer::session,
        topology::{Family, Network, PORT},
    },
};
use nix::{errno::Errno, libc};

use crate::testbed::{TTL, Testbed, over_both, receive};

over_both!(
    translations_outlive_the_daemon,
    ports_run_out,
    a_session_has_so_many_ports,
    answers_to_nobody_are_the_hosts,
    answers_end_with_their_session,
    answers_end_with_their_backend,
    answers_come_in_fragments,
    clients_learn_of_closed_ports_and_not_from_others,
);

const NAT: &str = "forward = \"nat\"\nkey_rotation = \"off\"";

fn translations_outlive_the_daemon(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, NAT, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?.to_bytes();
    let clients = [(); 3].map(|()| testbed.topology.client_socket(family.service()));
    let clients = clients.into_iter().collect::<Result<Vec<_>>>()?;
    let mut seen = Vec::new();
    for client in &clients {
        client.send(&[&token[..], b"question"].concat())?;
        seen.push(receive(&testbed.backends)?.from);
    }
    for (client, from) in clients.iter().zip(&seen) {
        ensure!(seen.iter().filter(|other| *other == from).count() == 1, "two clients are behind {from}");
        client.send(&[&token[..], b"another"].concat())?;
        ensure!(receive(&testbed.backends)?.from == *from, "a client has moved from {from}");
    }
    daemon.kill()?;
    let answers = |what: &[u8]| {
        for (client, from) in clients.iter().zip(&seen) {
            testbed.backends[0].send_to(what, from)?;
            let answer = receive(slice::from_ref(client))?;
            ensure!(answer.bytes == what, "a client got {}", hex::encode(answer.bytes));
        }
        Ok(())
    };
    answers(b"without a daemon")?;
    let _daemon = testbed.start()?;
    answers(b"with another")?;
    clients[0].send(&[&token[..], b"question"].concat())?;
    ensure!(receive(&testbed.backends)?.from == seen[0], "a client has moved from {}", seen[0]);
    Ok(())
}

fn ports_run_out(family: Family) -> Result<()> {
    const PORTS: u64 = 8;
    const CLIENTS: u64 = 24;
    let testbed = Testbed::of(family, NAT, 1)?;
    let text = fs::read_to_string(testbed.instance.config())?;
    fs::write(testbed.instance.config(), format!("nat_ports = \"20000-20007\"\n{text}"))?;
    let _daemon = testbed.start()?;
    let issuer = testbed.issuer()?;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let token = issuer.token(session(number, 0), TTL).to_bytes();
        let client = testbed.topology.client_socket(family.service())?;
        client.send(&[&token[..], &number.to_be_bytes()].concat())?;
        clients.push(client);
    }
    wait_for("all to be counted", || Ok(testbed.counters()?.values().sum::<u64>() == CLIENTS))?;
    let counters = testbed.counters()?;
    let [forwarded, refused] =
        [Reason::Forwarded, Reason::NatPorts].map(|reason| counters.get(reason.name()).copied().unwrap_or(0));
    ensure!(forwarded + refused == CLIENTS, "{counters:?}");
    ensure!((1..=PORTS).contains(&forwarded), "{forwarded} clients share {PORTS} ports");
    // Clients that have a port are not affected.
    for _ in 0..forwarded {
        let question = receive(&testbed.backends)?;
        ensure!((20_000..=20_007).contains(&question.from.port()), "from {}", question.from);
        testbed.backends[0].send_to(b"answer", question.from)?;
        let number: [u8; 8] = question.bytes[..].try_into().context("a number")?;
        let client = &clients[u64::from_be_bytes(number) as usize];
        ensure!(receive(slice::from_ref(client))?.bytes == b"answer");
    }
    Ok(())
}

fn answers_to_nobody_are_the_hosts(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, NAT, 1)?;
    let _daemon = testbed.start()?;
    let own = SocketAddr::new(Network::Front.address(family, 1), 45_678);
    let socket = testbed.topology.local_socket(own)?;
    testbed.backends[0].send_to(b"nobody has asked", own)?;
    let datagram = receive(slice::from_ref(&socket))?;
    ensure!(datagram.bytes == b"nobody has asked");
    ensure!(testbed.counters()?.is_empty(), "{:?}", testbed.counters()?);
    Ok(())
}

/// A token from many sockets gets as many ports as the configuration permits; the next session gets its own.
fn a_session_has_so_many_ports(family: Family) -> Result<()> {
    const LIMIT: usize = 5;
    let testbed = Testbed::of(family, NAT, 1)?;
    let text = fs::read_to_string(testbed.instance.config())?;
    fs::write(testbed.instance.config(), format!("nat_ports_per_session = {LIMIT}\n{text}"))?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?.to_bytes();
    let mut ports = BTreeSet::new();
    for _ in 0..200 {
        let client = testbed.topology.client_socket(family.service())?;
        client.send(&[&token[..], b"question"].concat())?;
        ports.insert(receive(&testbed.backends)?.from.port());
    }
    ensure!(ports.len() == LIMIT, "a session had {ports:?}");
    testbed.answered(&testbed.token(2)?)?;
    let counters = testbed.counters()?;
    ensure!(!counters.contains_key("nat_ports"), "{counters:?}");
    Ok(())
}

/// Sends a question as a session. Returns the client's socket, the index of the backend, and the source address that
/// the backend saw.
fn asked(testbed: &Testbed, session_id: u64) -> Result<(UdpSocket, usize, SocketAddr)> {
    let client = testbed.topology.client_socket(testbed.family.service())?;
    client.send(&[&testbed.token(session_id)?.to_bytes()[..], b"question"].concat())?;
    let question = receive(&testbed.backends)?;
    ensure!(question.bytes == b"question");
    Ok((client, question.index, question.from))
}

/// An answer that does not arrive, and is counted under this reason.
fn answer_is_refused(
    testbed: &Testbed,
    (client, index, to): &(UdpSocket, usize, SocketAddr),
    reason: Reason,
) -> Result<()> {
    let count = || anyhow::Ok(testbed.counters()?.get(reason.name()).copied().unwrap_or(0));
    let before = count()?;
    testbed.backends[*index].send_to(b"answer", to)?;
    wait_for(reason.name(), || Ok(count()? == before + 1))
        .with_context(|| format!("counted: {:?}", testbed.counters()))?;
    let answer = client.recv(&mut [0; 64]);
    ensure!(answer.is_err(), "the client got it");
    Ok(())
}

fn answers_end_with_their_session(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, NAT, 1)?;
    let _daemon = testbed.start()?;
    let (revoked, other) = (asked(&testbed, 7)?, asked(&testbed, 8)?);
    let answer = |(client, index, to): &(UdpSocket, usize, SocketAddr)| {
        testbed.backends[*index].send_to(b"answer", to)?;
        ensure!(receive(slice::from_ref(client))?.bytes == b"answer");
        Ok(())
    };
    answer(&revoked)?;
    answer(&other)?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    answer_is_refused(&testbed, &revoked, Reason::Revoked)?;
    answer(&other)?;
    answer_is_refused(&testbed, &revoked, Reason::Revoked)
}

/// The first backend stays, and the second is removed from the configuration.
fn answers_end_with_their_backend(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, NAT, 2)?;
    let daemon = testbed.start()?;
    let sessions = (1..=32).map(|id| asked(&testbed, id)).collect::<Result<Vec<_>>>()?;
    let at = |index| sessions.iter().find(|(_, at, _)| *at == index).context("a session at each backend");
    let (stays, goes) = (at(0)?, at(1)?);
    let answer = |(client, index, to): &(UdpSocket, usize, SocketAddr)| {
        testbed.backends[*index].send_to(b"answer", to)?;
        ensure!(receive(slice::from_ref(client))?.bytes == b"answer");
        Ok(())
    };
    answer(stays)?;
    answer(goes)?;
    daemon.terminate()?;
    testbed.instance.configure(&testbed.service(NAT, 1))?;
    let _daemon = testbed.start()?;
    answer(stays)?;
    answer_is_refused(&testbed, goes, Reason::NoBackend)?;
    answer(stays)
}

/// A datagram that the backend's kernel fragments is reassembled at the client.
fn answers_come_in_fragments(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, NAT, 1)?;
    let _daemon = testbed.start()?;
    let (client, index, to) = asked(&testbed, 1)?;
    for len in [1472, 1500, 4000, 30_000] {
        let answer: Vec<u8> = (0..len).map(|byte: u32| byte as u8).collect();
        testbed.backends[index].send_to(&answer, to)?;
        let arrived = receive(slice::from_ref(&client))
            .with_context(|| format!("an answer of {len} bytes; counted: {:?}", testbed.counters()))?;
        ensure!(arrived.bytes == answer, "{len} bytes became {}", arrived.bytes.len());
    }
    let counters = testbed.counters()?;
    ensure!(counters.keys().all(|reason| ["forwarded", "reply"].contains(&&reason[..])), "{counters:?}");
    ensure!(counters["reply"] > 24, "30,000 bytes are more fragments than {}", counters["reply"]);
    Ok(())
}

/// A client learns from the backend that the port of the backend is closed, and never from a host that has not received
/// the datagram.
fn clients_learn_of_closed_ports_and_not_from_others(family: Family) -> Result<()> {
    let mut testbed = Testbed::of(family, NAT, 1)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?.to_bytes();
    let (client, index, node) = asked(&testbed, 1)?;
    let backend = SocketAddr::new(testbed.backends[index].local_addr()?.ip(), PORT);
    let errors = testbed.topology.backends[index].enter(|| raw_icmp(family))??;
    for id in 0..500 {
        let left =
            Packet { from: node, to: backend, id, flow_label: id.into(), ..Packet::with_payload(vec![]) };
        let (kind, code) = if family == Family::V4 { (3, 3) } else { (1, 4) };
        let error = Packet {
            from: backend,
            to: node,
            ..Packet::icmp_error(Icmp { kind, code, rest: [0; 4] }, &left.ip_packet(), usize::MAX)
        };
        errors.send_to(&error.ip_packet()[family.header_len()..], SocketAddr::new(node.ip(), 0))?;
    }
    // Sent after the errors on the same link: the client has received none of them.
    testbed.backends[index].send_to(b"answer", node)?;
    ensure!(receive(slice::from_ref(&client))?.bytes == b"answer");
    ensure!(!testbed.counters()?.contains_key("icmp_error"), "{:?}", testbed.counters()?);

    testbed.backends.clear();
    wait_for("the client to be told", || {
        // During this loop the budget of guesses recovers; the kernel also limits the errors that it sends.
        if client.send(&[&token[..], b"question"].concat()).is_err() {
            return Ok(true);
        }
        let told = client.recv(&mut [0; 64]);
        Ok(told.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
    })
    .with_context(|| format!("counted: {:?}", testbed.counters()))?;
    ensure!(testbed.counters()?.contains_key("icmp_error"), "{:?}", testbed.counters()?);
    Ok(())
}

/// A socket that sends ICMP messages unchanged; for IPv6, the kernel computes the checksum.
fn raw_icmp(family: Family) -> Result<UdpSocket> {
    let (domain, protocol) = match family {
        Family::V4 => (libc::AF_INET, libc::IPPROTO_ICMP),
        Family::V6 => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
    };
    // SAFETY: a new descriptor that nothing else owns. `UdpSocket` can send on any socket with internet addresses.
    unsafe {
        let socket = Errno::result(libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol))?;
        Ok(UdpSocket::from_raw_fd(socket))
    }
}
