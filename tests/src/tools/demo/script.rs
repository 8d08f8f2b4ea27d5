//! The steps of the demo, in order, and the check of their results.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::testbed::{
    cleanup,
    daemon::{Daemon, Instance, binary, counters, service},
    decap::Decap,
    forward::Forward,
    issuer::Issuer,
    topology::{Family, Topology},
};

use crate::{
    progress::event,
    receivers::{Received, Receivers},
    report::Report,
    sender::Sender,
};

/// The prefix of all names that the demo creates.
pub const NAME: &str = "tollgate-demo";
/// Number of backends.
pub const BACKENDS: u8 = 3;
/// Valid datagrams between two events. More are sent during the events themselves.
const PHASE: u64 = 25_000;
const PHASES: u64 = 5;

/// Whether a demo created something of this name.
pub fn is_ours(name: &str) -> bool {
    name.strip_prefix(NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The options of the run.
#[derive(Clone, Copy)]
pub struct Options {
    /// Forwarding mode.
    pub forward: Forward,
    /// Family of service, client and backends.
    pub family: Family,
    /// Keep everything for inspection.
    pub keep: bool,
}

impl Options {
    /// Whether answers pass the balancer, which then counts them.
    pub const fn answers(self) -> bool {
        matches!(self.forward, Forward::Nat)
    }
}

/// Runs the demo.
pub fn run(options: Options) -> Result<()> {
    let begun = Instant::now();
    let Options { forward, family, keep } = options;
    match forward {
        Forward::Local => println!("A client and a balancer, each in a network namespace, on one bridge."),
        _ => println!(
            "A client, a balancer and {BACKENDS} backends, each in a network namespace, on one bridge."
        ),
    }
    let topology = Topology::new(NAME, if forward == Forward::Local { 0 } else { BACKENDS })?;
    let instance = Instance::new(NAME)?;
    let fields = format!("forward = \"{}\"\nstrip = true\nkey_rotation = \"off\"", forward.name());
    instance.configure(&service(family, &fields, &forward.backends(&topology, family)))?;
    let daemon = Daemon::start(&instance, &topology.balancer)?;
    println!("tollgate filters {} on the balancer's interface.", family.service());
    let decap = if forward.encapsulates() {
        Decap::on_backends(&topology, &instance, &topology.tunnel_sources())?
    } else {
        Vec::new()
    };
    if !decap.is_empty() {
        println!("tollgate decap takes the outer {} headers off on the backends.", forward.name());
    }

    let (daemon, sender, received) = traffic(options, &topology, &instance, daemon)?;
    let counted = counters(&instance, &topology.balancer, "game")?;
    let of_backends = counted_of_backends(&instance, &topology)?;
    let report = Report {
        options,
        sender: &sender,
        received: &received,
        counted: &counted,
        counted_of_backends: &of_backends,
    };
    let mut faults = report.print();
    if sender.by_key.len() != 3 {
        faults.push(format!("{} keys have signed, and 3 should have", sender.by_key.len()));
    }
    println!();
    for fault in &faults {
        println!("NOT AS IT SHOULD BE: {fault}");
    }
    if keep {
        leave(options, topology, instance, (daemon, decap))?;
    }
    ensure!(faults.is_empty(), "{} deviations", faults.len());
    let at = if forward == Forward::Local {
        "at the balancer's own socket"
    } else {
        "at the backend of its session"
    };
    println!(
        "Every valid datagram arrived {at}, stripped, and no other did.{} ({:.1} s)",
        if options.answers() { " Each was answered, from the service's address." } else { "" },
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// All traffic, and the events during it. Returns the daemon that runs at the end.
fn traffic(
    options: Options,
    topology: &Topology,
    instance: &Instance,
    daemon: Daemon,
) -> Result<(Daemon, Sender, Vec<Received>)> {
    let receivers = Receivers::start(options, topology)?;
    let issuer = Issuer::new(instance, &topology.balancer, "game")?;
    let mut sender = Sender::new(options, topology, issuer, Arc::clone(&receivers.valid))?;

    sender.send_valid(PHASE)?;
    rotate(topology, instance, &mut sender)?;
    sender.send_valid(PHASE)?;

    let killed = daemon.pid();
    daemon.kill()?;
    event(&format!("killed the daemon (process {killed}, SIGKILL); packets flow on"));
    sender.send_valid(PHASE)?;
    let (daemon, meanwhile) = sender.send_during(|| Daemon::start(instance, &topology.balancer))?;
    let started = daemon.pid();
    event(&format!(
        "started it again (process {started}) on what is pinned; {} valid datagrams were sent without it",
        PHASE + meanwhile
    ));
    let status = instance.json(&topology.balancer, &["status"])?;
    ensure!(status["pid"] == started, "process {started} should answer, and does not: {status}");

    sender.send_valid(PHASE)?;
    rotate(topology, instance, &mut sender)?;
    sender.send_valid(PHASE)?;
    sender.drain()?;
    ensure!(sender.valid >= PHASE * PHASES, "only {} valid datagrams were sent", sender.valid);
    Ok((daemon, sender, receivers.finish()?))
}

/// Replaces the key while packets flow.
fn rotate(topology: &Topology, instance: &Instance, sender: &mut Sender) -> Result<()> {
    let (issuer, meanwhile) = sender.send_during(|| {
        instance.json(&topology.balancer, &["keys", "rotate", "--service", "game", "--wait"])?;
        Issuer::new(instance, &topology.balancer, "game")
    })?;
    event(&format!(
        "rotated the key while {meanwhile} valid datagrams were sent; key {} signs, and every other session gets \
         a new token",
        issuer.active().0
    ));
    sender.renew(issuer);
    Ok(())
}

/// Packets of each backend, as the daemon reports them.
fn counted_of_backends(instance: &Instance, topology: &Topology) -> Result<Vec<u64>> {
    let list = instance.json(&topology.balancer, &["backends", "list"])?;
    let list = list["items"].as_array().context("a list of backends")?;
    list.iter().map(|backend| backend["packets"].as_u64().context("a backend's packets")).collect()
}

/// Leaves everything as it is, and prints how to inspect it.
fn leave(
    options: Options,
    topology: Topology,
    instance: Instance,
    (daemon, decap): (Daemon, Vec<Decap>),
) -> Result<()> {
    let tollgate = format!("{} --control {}", binary()?, instance.path("control.sock").display());
    println!("Left for looking around; the daemon is process {}:", daemon.pid());
    println!("  {tollgate} status");
    println!("  {tollgate} counters");
    println!("  {tollgate} token mint --service game --session 7");
    println!("  nsenter --net={}/{NAME}-lb curl -s http://127.0.0.1:9477/metrics", cleanup::NAMESPACES);
    let listener = if options.forward == Forward::Local { "lb" } else { "backend1" };
    println!("  nsenter --net={}/{NAME}-{listener} tcpdump -ni eth0 udp", cleanup::NAMESPACES);
    println!("  less {}", instance.path("log").display());
    println!("To remove it:\n  cargo xtask demo --remove\n");
    std::mem::forget((topology, instance, daemon, decap));
    Ok(())
}
