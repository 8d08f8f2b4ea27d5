//! Delivery of packets: backends that are added and removed, the balancer's own stack, observe mode.

use std::net::{TcpListener, TcpStream, UdpSocket};

use anyhow::{Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::{PATIENCE, wait_for},
    issuer::session,
    topology::{BACK_INTERFACE, Family, INTERFACE, Layout, Network, Plan},
};

use crate::testbed::{L2, TTL, Testbed, over_both};

over_both!(
    a_backend_that_goes_away_is_not_used,
    a_backend_that_never_was_there,
    sessions_spread_and_stay,
    to_the_balancers_own_stack,
    unstripped_where_asked_for,
    observe_counts_and_delivers,
    the_backend_answers_by_itself,
    what_is_not_for_a_service_passes,
    the_largest_datagram_and_one_that_is_too_large,
    a_backend_with_another_network_card,
    clients_on_two_interfaces,
    a_bridge_that_is_filtered,
);

fn a_backend_that_goes_away_is_not_used(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 2)?;
    let _daemon = testbed.start()?;
    let issuer = testbed.issuer()?;
    let to_second = issuer.token(session(1, 2), TTL);
    ensure!(testbed.delivered(&to_second)? == 2, "a token that names a backend goes there");

    testbed.topology.plug("backend2", false)?;
    // Makes the kernel probe the neighbour again, which it does for stale entries.
    let address = testbed.topology.plan.backend(family, 2).to_string();
    testbed.topology.balancer.ip(&["neighbour", "flush", "to", &address, "dev", INTERFACE])?;
    let second = || Ok::<_, anyhow::Error>(testbed.json(&["backends", "list"])?["items"][1].clone());
    wait_for("the backend to be out", || Ok(second()?["up"] == false))?;
    ensure!(second()?["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", second()?);
    testbed.refused_token(&to_second, Reason::NoBackend)?;
    for number in 0..20 {
        let id = testbed.delivered(&issuer.token(session(number, 0), TTL))?;
        ensure!(id == 1, "session {number} went to backend {id}");
    }

    testbed.topology.plug("backend2", true)?;
    wait_for("the backend to be back", || Ok(second()?["up"] == true))?;
    ensure!(testbed.delivered(&to_second)? == 2);
    Ok(())
}

fn a_backend_that_never_was_there(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let text = std::fs::read_to_string(testbed.instance.config())?;
    let ghost = Network::Front.address(family, 99);
    let ghost = format!("[[service.backend]]\nid = 9\nname = \"ghost\"\naddress = \"{ghost}\"\n");
    std::fs::write(testbed.instance.config(), text + &ghost)?;
    let _daemon = testbed.start()?;
    let backends = testbed.json(&["backends", "list"])?;
    ensure!(backends["items"][0]["up"] == true && backends["items"][1]["up"] == false, "{backends}");
    testbed.delivered(&testbed.token(1)?)?;
    Ok(())
}

fn sessions_spread_and_stay(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 3)?;
    let _daemon = testbed.start()?;
    let issuer = testbed.issuer()?;
    let mut used = [0; 4];
    for number in 0..60 {
        let token = issuer.token(session(number, 0), TTL);
        let id = testbed.delivered(&token)?;
        used[id] += 1;
        ensure!(testbed.delivered(&token)? == id, "session {number} moved");
        ensure!(testbed.delivered(&issuer.token(session(number, 0), TTL))? == id, "session {number} moved");
    }
    ensure!(used[1..].iter().all(|count| *count >= 8), "{used:?}");
    Ok(())
}

fn to_the_balancers_own_stack(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, "forward = \"local\"\nkey_rotation = \"off\"", 0)?;
    let _daemon = testbed.start()?;
    testbed.send(b"junk that nobody gets")?;
    testbed.answered(&testbed.token(1)?)?;
    Ok(())
}

fn unstripped_where_asked_for(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, "forward = \"l2\"\nstrip = false", 1)?;
    let _daemon = testbed.start()?;
    let datagram = [&testbed.token(1)?.to_bytes()[..], b"hello"].concat();
    testbed.send(&datagram)?;
    testbed.arrives(&datagram)?;
    Ok(())
}

fn observe_counts_and_delivers(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, "forward = \"l2\"\nmode = \"observe\"", 2)?;
    let _daemon = testbed.start()?;
    testbed.send(b"no token, and yet")?;
    let id = testbed.arrives(b"no token, and yet")?;
    let mut forged = testbed.token(1)?.to_bytes();
    forged[63] ^= 1;
    testbed.send(&forged)?;
    ensure!(testbed.arrives(&forged)? == id, "a client stays on its backend");
    testbed.delivered(&testbed.token(1)?)?; // stripped as in enforce
    let counters = testbed.counters()?;
    for reason in [Reason::NoToken, Reason::BadFastTag, Reason::Forwarded] {
        ensure!(counters.get(reason.name()) == Some(&1), "{}: {counters:?}", reason.name());
    }
    Ok(())
}

fn the_backend_answers_by_itself(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let _daemon = testbed.start()?;
    testbed.answered(&testbed.token(1)?)?;
    Ok(())
}

fn what_is_not_for_a_service_passes(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let _daemon = testbed.start()?;
    let (balancer, service) = (&testbed.topology.balancer, family.service());
    let other = balancer.enter(|| UdpSocket::bind((service.ip(), service.port() + 1)))??;
    other.set_read_timeout(Some(PATIENCE))?;
    let client = testbed.topology.client.enter(|| UdpSocket::bind((family.any(), 0)))??;
    client.send_to(b"no token", other.local_addr()?)?;
    let mut buffer = [0; 64];
    let len = other.recv(&mut buffer)?;
    ensure!(buffer[..len] == *b"no token");
    // TCP at the service's own address and port is not UDP.
    let _listener = balancer.enter(|| TcpListener::bind(service))??;
    testbed.topology.client.enter(|| TcpStream::connect_timeout(&service, PATIENCE))??;
    ensure!(testbed.counters()?.is_empty(), "{:?}", testbed.counters()?);
    let not_ours = testbed.json(&["counters"])?["not_ours"]["packets"].as_u64();
    ensure!(not_ours.is_some_and(|packets| packets >= 2), "{not_ours:?}");
    Ok(())
}

fn the_largest_datagram_and_one_that_is_too_large(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?.to_bytes();
    // With the IP and UDP headers, the packet has 1500 bytes, the maximum of an Ethernet frame.
    let headers = if family == Family::V4 { 28 } else { 48 };
    let data = vec![7; 1500 - headers - token.len()];
    testbed.send(&[&token[..], &data].concat())?;
    testbed.arrives(&data)?;
    // One more byte makes two fragments, and neither passes.
    testbed.send(&[&token[..], &data, b"!"].concat())?;
    wait_for("both fragments", || Ok(testbed.counters()?.get(Reason::Fragment.name()) == Some(&2)))?;
    testbed.nothing_arrived()
}

fn a_backend_with_another_network_card(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    let card = "02:00:00:00:00:77";
    let backend = &testbed.topology.backends[0];
    backend.ip(&["link", "set", INTERFACE, "down"])?;
    backend.ip(&["link", "set", INTERFACE, "address", card])?;
    backend.ip(&["link", "set", INTERFACE, "up"])?;
    // The kernel does the same when it finds that the old address does not answer.
    let address = testbed.topology.plan.backend(family, 1).to_string();
    testbed.topology.balancer.ip(&["neighbour", "flush", "to", &address, "dev", INTERFACE])?;
    wait_for("the new address", || {
        let backend = &testbed.json(&["backends", "list"])?["items"][0];
        Ok(backend["mac"] == card && backend["up"] == true)
    })?;
    testbed.delivered(&token)?;
    Ok(())
}

fn clients_on_two_interfaces(family: Family) -> Result<()> {
    let testbed =
        Testbed::of(family, L2, Plan { backends: 1, layout: Layout::TwoInterfaces, ..Plan::default() })?;
    testbed.instance.configure_on(&[INTERFACE, BACK_INTERFACE], &testbed.service(L2, 1))?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    // The datagram arrives on one interface and leaves through the other.
    testbed.delivered(&token)?;
    testbed.refused(b"junk", Reason::NoToken)?;
    // The datagram arrives on and leaves through the second interface: a client on the side of the backends.
    let beside = &testbed.topology.routers[0];
    let (service, balancer) = (family.service(), Network::Back.address(family, 1).to_string());
    beside.ip(&[family.option(), "route", "add", &service.ip().to_string(), "via", &balancer])?;
    let client = beside.enter(|| {
        let client = UdpSocket::bind((family.any(), 0))?;
        client.connect(service)?;
        anyhow::Ok(client)
    })??;
    client.send(b"junk")?;
    client.send(&[&token.to_bytes()[..], b"from beside"].concat())?;
    testbed.arrives(b"from beside")?;
    ensure!(testbed.counters()?[Reason::NoToken.name()] == 2, "{:?}", testbed.counters()?);
    Ok(())
}

fn a_bridge_that_is_filtered(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let balancer = &testbed.topology.balancer;
    balancer.ip(&["link", "add", "br0", "type", "bridge"])?;
    balancer.ip(&["link", "set", INTERFACE, "master", "br0"])?;
    balancer.ip(&["link", "set", "br0", "up"])?;
    for address in [Network::Front.prefix(family, 1), family.service().ip().to_string()] {
        balancer.ip(&["address", "delete", &address, "dev", INTERFACE])?;
        let nodad = if family == Family::V6 { &["nodad"][..] } else { &[] };
        balancer.ip(&[&["address", "add", &address, "dev", "br0"], nodad].concat())?;
    }
    testbed.instance.configure_on(&["br0"], &testbed.service(L2, 1))?;
    let _daemon = testbed.start()?;
    let status = testbed.json(&["status"])?;
    ensure!(status["interfaces"][0]["mode"] == "generic", "{status}");
    testbed.refused(b"junk", Reason::NoToken)?;
    testbed.answered(&testbed.token(1)?)?;
    Ok(())
}
