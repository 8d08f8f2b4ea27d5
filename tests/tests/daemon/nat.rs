//! `forward = "nat"`: translations that last, ports that run out, and answers that nobody has asked for.

use std::{fs, net::SocketAddr, slice};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::{
    daemon::wait_for,
    topology::{Family, Network},
};

use crate::lab::{Lab, over_both, receive};

over_both!(translations_outlive_the_daemon, ports_run_out, answers_to_nobody_are_the_hosts);

const NAT: &str = "forward = \"nat\"\nkey_rotation = \"off\"";

fn translations_outlive_the_daemon(family: Family) -> Result<()> {
    let lab = Lab::of(family, NAT, 1)?;
    let daemon = lab.start()?;
    let token = lab.token(1)?.to_bytes();
    let clients = [(); 3].map(|()| lab.topology.client_socket(family.service()));
    let clients = clients.into_iter().collect::<Result<Vec<_>>>()?;
    let mut seen = Vec::new();
    for client in &clients {
        client.send(&[&token[..], b"question"].concat())?;
        seen.push(receive(&lab.backends)?.from);
    }
    for (client, from) in clients.iter().zip(&seen) {
        ensure!(seen.iter().filter(|other| *other == from).count() == 1, "two clients are behind {from}");
        client.send(&[&token[..], b"another"].concat())?;
        ensure!(receive(&lab.backends)?.from == *from, "a client has moved from {from}");
    }
    daemon.kill()?;
    let answers = |what: &[u8]| {
        for (client, from) in clients.iter().zip(&seen) {
            lab.backends[0].send_to(what, from)?;
            let answer = receive(slice::from_ref(client))?;
            ensure!(answer.bytes == what, "a client got {}", hex::encode(answer.bytes));
        }
        Ok(())
    };
    answers(b"without a daemon")?;
    let _daemon = lab.start()?;
    answers(b"with another")?;
    clients[0].send(&[&token[..], b"question"].concat())?;
    ensure!(receive(&lab.backends)?.from == seen[0], "a client has moved from {}", seen[0]);
    Ok(())
}

fn ports_run_out(family: Family) -> Result<()> {
    const PORTS: u64 = 8;
    const CLIENTS: u64 = 24;
    let lab = Lab::of(family, NAT, 1)?;
    let text = fs::read_to_string(lab.place.config())?;
    fs::write(lab.place.config(), format!("nat_ports = \"20000-20007\"\n{text}"))?;
    let _daemon = lab.start()?;
    let token = lab.token(1)?.to_bytes();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let client = lab.topology.client_socket(family.service())?;
        client.send(&[&token[..], &number.to_be_bytes()].concat())?;
        clients.push(client);
    }
    wait_for("all to be counted", || Ok(lab.counters()?.values().sum::<u64>() == CLIENTS))?;
    let counters = lab.counters()?;
    let [forwarded, refused] =
        [Reason::Forwarded, Reason::NatPorts].map(|reason| counters.get(reason.name()).copied().unwrap_or(0));
    ensure!(forwarded + refused == CLIENTS, "{counters:?}");
    ensure!((1..=PORTS).contains(&forwarded), "{forwarded} clients share {PORTS} ports");
    // Those that have a port are none the worse.
    for _ in 0..forwarded {
        let question = receive(&lab.backends)?;
        ensure!((20_000..=20_007).contains(&question.from.port()), "from {}", question.from);
        lab.backends[0].send_to(b"answer", question.from)?;
        let number: [u8; 8] = question.bytes[..].try_into().context("a number")?;
        let client = &clients[u64::from_be_bytes(number) as usize];
        ensure!(receive(slice::from_ref(client))?.bytes == b"answer");
    }
    Ok(())
}

fn answers_to_nobody_are_the_hosts(family: Family) -> Result<()> {
    let lab = Lab::of(family, NAT, 1)?;
    let _daemon = lab.start()?;
    let own = SocketAddr::new(Network::Front.address(family, 1), 45_678);
    let socket = lab.topology.local_socket(own)?;
    lab.backends[0].send_to(b"nobody has asked", own)?;
    let datagram = receive(slice::from_ref(&socket))?;
    ensure!(datagram.bytes == b"nobody has asked");
    ensure!(lab.counters()?.is_empty(), "{:?}", lab.counters()?);
    Ok(())
}
