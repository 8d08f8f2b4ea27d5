//! Where packets go: backends that come and go, the balancer's own stack, observe mode.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Result, ensure};
use lb_common::reason::Reason;
use lb_tests::{
    daemon::{PATIENCE, wait_for},
    issuer::session,
    topology::{INTERFACE, SERVICE},
};

use crate::lab::{L2, Lab, TTL};

#[test]
fn a_backend_that_goes_away_is_not_used() -> Result<()> {
    let lab = Lab::new(L2, 2)?;
    let _daemon = lab.start()?;
    let issuer = lab.issuer()?;
    let to_second = issuer.token(session(1, 2), TTL);
    ensure!(lab.delivered(&to_second)? == 2, "a token that names a backend goes there");

    lab.topology.plug("backend2", false)?;
    // The kernel asks again for what it is not sure of: make it unsure.
    let address = lb_tests::topology::backend_address(2).to_string();
    lab.topology.balancer.ip(&["neighbour", "flush", "to", &address, "dev", INTERFACE])?;
    let second = || Ok::<_, anyhow::Error>(lab.json(&["backends", "list"])?[1].clone());
    wait_for("the backend to be out", || Ok(second()?["up"] == false))?;
    ensure!(second()?["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", second()?);
    lab.refused_token(&to_second, Reason::NoBackend)?;
    for number in 0..20 {
        let id = lab.delivered(&issuer.token(session(number, 0), TTL))?;
        ensure!(id == 1, "session {number} went to backend {id}");
    }

    lab.topology.plug("backend2", true)?;
    wait_for("the backend to be back", || Ok(second()?["up"] == true))?;
    ensure!(lab.delivered(&to_second)? == 2);
    Ok(())
}

#[test]
fn a_backend_that_never_was_there() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let text = std::fs::read_to_string(lab.place.config())?;
    let ghost = "[[service.backend]]\nid = 9\nname = \"ghost\"\naddress = \"10.77.0.99\"\n";
    std::fs::write(lab.place.config(), text + ghost)?;
    let _daemon = lab.start()?;
    let backends = lab.json(&["backends", "list"])?;
    ensure!(backends[0]["up"] == true && backends[1]["up"] == false, "{backends}");
    lab.delivered(&lab.token(1)?)?;
    Ok(())
}

#[test]
fn sessions_spread_and_stay() -> Result<()> {
    let lab = Lab::new(L2, 3)?;
    let _daemon = lab.start()?;
    let issuer = lab.issuer()?;
    let mut used = [0; 4];
    for number in 0..60 {
        let token = issuer.token(session(number, 0), TTL);
        let id = lab.delivered(&token)?;
        used[id] += 1;
        ensure!(lab.delivered(&token)? == id, "session {number} moved");
        ensure!(lab.delivered(&issuer.token(session(number, 0), TTL))? == id, "session {number} moved");
    }
    ensure!(used[1..].iter().all(|count| *count >= 8), "{used:?}");
    Ok(())
}

#[test]
fn to_the_balancers_own_stack() -> Result<()> {
    let lab = Lab::new("forward = \"local\"\nkey_rotation = \"off\"", 0)?;
    let _daemon = lab.start()?;
    let socket = lab.topology.local_socket()?;
    let token = lab.token(1)?;
    lab.send(b"junk that nobody gets")?;
    lab.send(&[&token.to_bytes()[..], b"hello"].concat())?;
    let mut buffer = [0; 256];
    let len = socket.recv(&mut buffer)?;
    ensure!(buffer[..len] == *b"hello", "the stack got {:?}", &buffer[..len]);
    Ok(())
}

#[test]
fn unstripped_where_asked_for() -> Result<()> {
    let lab = Lab::new("forward = \"l2\"\nstrip = false", 1)?;
    let _daemon = lab.start()?;
    let datagram = [&lab.token(1)?.to_bytes()[..], b"hello"].concat();
    lab.send(&datagram)?;
    lab.arrives(&datagram)?;
    Ok(())
}

#[test]
fn observe_counts_and_delivers() -> Result<()> {
    let lab = Lab::new("forward = \"l2\"\nmode = \"observe\"", 2)?;
    let _daemon = lab.start()?;
    lab.send(b"no token, and yet")?;
    let id = lab.arrives(b"no token, and yet")?;
    let mut forged = lab.token(1)?.to_bytes();
    forged[63] ^= 1;
    lab.send(&forged)?;
    ensure!(lab.arrives(&forged)? == id, "a client stays on its backend");
    lab.delivered(&lab.token(1)?)?; // stripped as in enforce
    let counters = lab.counters()?;
    for reason in [Reason::NoToken, Reason::BadFastTag, Reason::Forwarded] {
        ensure!(counters.get(reason.name()) == Some(&1), "{}: {counters:?}", reason.name());
    }
    Ok(())
}

#[test]
fn the_backend_answers_by_itself() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let _daemon = lab.start()?;
    let client = lab.topology.client_socket()?;
    client.send(&[&lab.token(1)?.to_bytes()[..], b"question"].concat())?;
    let mut buffer = [0; 256];
    let (len, from) = lab.backends[0].recv_from(&mut buffer)?;
    ensure!(buffer[..len] == *b"question");
    ensure!(from.port() == client.local_addr()?.port(), "the backend sees {from}");
    lab.backends[0].send_to(b"answer", from)?;
    // The client's socket takes datagrams from the service's address only.
    let len = client.recv(&mut buffer)?;
    ensure!(buffer[..len] == *b"answer");
    Ok(())
}

#[test]
fn what_is_not_for_a_service_passes() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let _daemon = lab.start()?;
    let balancer = &lab.topology.balancer;
    let other = balancer.enter(|| UdpSocket::bind((*SERVICE.ip(), SERVICE.port() + 1)))??;
    other.set_read_timeout(Some(PATIENCE))?;
    let client = lab.topology.client.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    client.send_to(b"no token", other.local_addr()?)?;
    let mut buffer = [0; 64];
    let len = other.recv(&mut buffer)?;
    ensure!(buffer[..len] == *b"no token");
    // TCP at the service's own address and port is not UDP.
    let _listener = balancer.enter(|| TcpListener::bind(SERVICE))??;
    lab.topology.client.enter(|| TcpStream::connect_timeout(&SERVICE.into(), PATIENCE))??;
    ensure!(lab.counters()?.is_empty(), "{:?}", lab.counters()?);
    let not_ours = lab.json(&["counters"])?["not_ours"]["packets"].as_u64();
    ensure!(not_ours.is_some_and(|packets| packets >= 2), "{not_ours:?}");
    Ok(())
}

#[test]
fn the_largest_datagram_and_one_that_is_too_large() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let _daemon = lab.start()?;
    let token = lab.token(1)?.to_bytes();
    // IPv4 and UDP headers and 1472 bytes are an Ethernet frame's 1500.
    let data = vec![7; 1472 - token.len()];
    lab.send(&[&token[..], &data].concat())?;
    lab.arrives(&data)?;
    // One byte more comes in two fragments, and neither passes.
    lab.send(&[&token[..], &data, b"!"].concat())?;
    wait_for("both fragments", || Ok(lab.counters()?.get(Reason::Fragment.name()) == Some(&2)))?;
    lab.nothing_arrived()
}

#[test]
fn a_backend_with_another_network_card() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let _daemon = lab.start()?;
    let token = lab.token(1)?;
    lab.delivered(&token)?;
    let card = "02:00:00:00:00:77";
    let backend = &lab.topology.backends[0];
    backend.ip(&["link", "set", INTERFACE, "down"])?;
    backend.ip(&["link", "set", INTERFACE, "address", card])?;
    backend.ip(&["link", "set", INTERFACE, "up"])?;
    // As the kernel does by itself when it finds the old one gone.
    let address = lb_tests::topology::backend_address(1).to_string();
    lab.topology.balancer.ip(&["neighbour", "flush", "to", &address, "dev", INTERFACE])?;
    wait_for("the new address", || {
        let backend = &lab.json(&["backends", "list"])?[0];
        Ok(backend["mac"] == card && backend["up"] == true)
    })?;
    lab.delivered(&token)?;
    Ok(())
}
