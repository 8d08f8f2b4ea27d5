//! Where packets go: backends that come and go, the balancer's own stack, observe mode.

use anyhow::{Result, ensure};
use lb_common::reason::Reason;
use lb_tests::{daemon::wait_for, issuer::session, topology::INTERFACE};

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
