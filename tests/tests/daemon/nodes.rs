//! Two balancers with one address, reached through equal-cost routes.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::{Daemon, Instance, counters},
    forward::Forward,
    issuer::session,
    topology::{Family, Plan},
};

use crate::testbed::{TTL, Testbed, over_both, receive};

over_both!(a_session_has_one_backend_whichever_balancer_it_meets);

const SESSIONS: u64 = 12;
const FLOWS: u64 = 4;

fn a_session_has_one_backend_whichever_balancer_it_meets(family: Family) -> Result<()> {
    for forward in [Forward::L2, Forward::Gue, Forward::Nat] {
        spread(family, forward).with_context(|| forward.name())?;
    }
    Ok(())
}

fn spread(family: Family, forward: Forward) -> Result<()> {
    let fields = format!("forward = \"{}\"\nkey_rotation = \"off\"", forward.name());
    let plan = Plan { backends: 3, two_balancers: true, edge: true, ..Plan::default() };
    let testbed = Testbed::of(family, &fields, plan)?;
    let _daemon = testbed.start()?;
    let second = testbed.topology.second_balancer.as_ref().context("a second balancer")?;
    let instance = Instance::new(&format!("{}-second", testbed.name()))?;
    instance.configure(&testbed.service(&fields, 3))?;
    let _other = Daemon::start(&instance, second)?;
    let _decap = testbed.decap()?;
    let keyset = instance.path("keyset.json");
    fs::write(&keyset, testbed.run(&["keys", "export", "--service", "game"])?.stdout)?;
    instance.json(second, &["keys", "import", keyset.to_str().context("a path in UTF-8")?])?;

    let issuer = testbed.issuer()?;
    let mut used = [false; 3];
    for number in 0..SESSIONS {
        let token = issuer.token(session(number, 0), TTL).to_bytes();
        let mut at = None;
        for flow in 0..FLOWS {
            // Each session has its own port, so each takes its own route.
            let client = testbed.topology.client_socket(family.service())?;
            client.send(&[&token[..], b"question"].concat())?;
            let question = receive(&testbed.backends)
                .with_context(|| format!("session {number}, flow {flow}: {:?}", testbed.counters()))?;
            ensure!(question.bytes == b"question", "{}", hex::encode(question.bytes));
            let index = *at.get_or_insert(question.index);
            ensure!(
                question.index == index,
                "session {number} is at backends {index} and {}",
                question.index
            );
            used[index] = true;
            testbed.backends[index].send_to(b"answer", question.from)?;
            let mut buffer = [0; 64];
            client.set_read_timeout(Some(lb_tests::testbed::daemon::PATIENCE))?;
            let len = client.recv(&mut buffer).with_context(|| format!("no answer to flow {flow}"))?;
            ensure!(buffer[..len] == *b"answer");
        }
    }
    ensure!(used == [true; 3], "{used:?}");
    let both = [testbed.counters()?, counters(&instance, second, "game")?];
    let forwarded = both.each_ref().map(|one| one.get(Reason::Forwarded.name()).copied().unwrap_or(0));
    ensure!(forwarded.iter().sum::<u64>() == SESSIONS * FLOWS, "{both:?}");
    ensure!(forwarded.iter().all(|count| *count > 0), "all flows met one balancer: {both:?}");
    Ok(())
}
