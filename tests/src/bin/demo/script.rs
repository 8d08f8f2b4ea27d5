//! What happens, in order, and whether it was what should have happened.

use std::{
    collections::{BTreeMap, HashSet},
    io::{IsTerminal as _, Write as _},
    sync::atomic::Ordering,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{balance, reason::Reason};
use lb_tests::{
    daemon::{Daemon, Place, counters, service},
    issuer::Issuer,
    topology::{SERVICE, Topology},
};
use tollgate::balancer::{Share, table};

use crate::{
    not_interrupted,
    receivers::{Received, Receivers},
    sender::{Junk, SESSIONS, Sender, claims, session_id},
};

const NAME: &str = "tollgate-demo";
const BACKENDS: u8 = 3;
/// Valid datagrams.
const VALID: u64 = 120_000;

/// Runs the demo.
pub fn run(keep: bool) -> Result<()> {
    let begun = Instant::now();
    println!("A client, a balancer and {BACKENDS} backends, each in a network namespace, on one bridge.");
    let topology = Topology::new(NAME, BACKENDS)?;
    let place = Place::new(NAME)?;
    place.configure(&service("forward = \"l2\"\nstrip = true\nkey_rotation = \"off\"", BACKENDS))?;
    let mut daemon = Some(Daemon::start(&place, &topology.balancer)?);
    println!("tollgate filters {SERVICE} on the balancer's interface.");
    not_interrupted()?;

    let receivers = Receivers::start(&topology)?;
    let total = receivers.total.clone();
    let mut sender = Sender::new(&topology, Issuer::new(&place, &topology.balancer)?, &total)?;
    let show = |sender: &Sender<'_>| progress(sender.valid, total.load(Ordering::Relaxed));
    while sender.valid < VALID {
        sender.step()?;
        match sender.valid {
            at if at == VALID / 4 || at == VALID * 3 / 4 => {
                event("rotating the key while packets flow");
                let issuer = rotate(&place, &topology, &mut sender)?;
                event(&format!("key {} signs; every other session gets a new token", issuer.active().0));
                sender.renew(issuer);
            }
            at if at == VALID / 2 => {
                event("killing the daemon with SIGKILL; packets flow on");
                daemon.take().context("the daemon runs")?.kill()?;
            }
            at if at == VALID / 2 + VALID / 8 => {
                event("starting it again on what is pinned, while packets flow");
                daemon = Some(during(&mut sender, || Daemon::start(&place, &topology.balancer))?);
            }
            at if at % 1000 == 0 => show(&sender),
            _ => {}
        }
    }
    sender.drain()?;
    show(&sender);
    println!();
    let received = receivers.finish()?;
    let counted = counters(&place, &topology.balancer)?;
    let faults = report(&sender, &received, &counted);
    for fault in &faults {
        println!("NOT AS IT SHOULD BE: {fault}");
    }
    if keep {
        leave(topology, place, daemon)?;
    }
    ensure!(faults.is_empty(), "{} of the demo's claims did not hold", faults.len());
    println!(
        "Every valid datagram arrived at the backend of its session, stripped, and no other did. ({:.1} s)",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Does something on another thread while the sender goes on.
fn during<T: Send>(sender: &mut Sender<'_>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(work);
        while !thread.is_finished() {
            sender.step()?;
        }
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Rotates, and returns an issuer with the new keyset.
fn rotate(place: &Place, topology: &Topology, sender: &mut Sender<'_>) -> Result<Issuer> {
    during(sender, || {
        place.json(&topology.balancer, &["keys", "rotate", "--service", "game", "--wait"])?;
        Issuer::new(place, &topology.balancer)
    })
}

/// Prints the table, and returns what was not as it should be.
fn report(sender: &Sender<'_>, received: &[Received], counted: &BTreeMap<String, u64>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expected = BTreeMap::from([(Reason::Forwarded.name().to_owned(), sender.valid)]);
    println!("\n{:<18}{:>10}{:>12}{:>10}   counted as", "sent", "datagrams", "delivered", "dropped");
    let delivered: usize = received.iter().map(|received| received.datagrams.len()).sum();
    println!("{:<18}{:>10}{:>12}{:>10}   forwarded", "valid", sender.valid, delivered, 0);
    for (kind, sent) in &sender.junk {
        let reason = kind.reason().name();
        println!("{:<18}{sent:>10}{:>12}{sent:>10}   {reason}", kind.name(), 0);
        *expected.entry(reason.to_owned()).or_default() += sent;
    }
    if Junk::ALL.iter().any(|kind| !sender.junk.contains_key(kind)) {
        faults.push("not every kind of bad datagram was sent".to_owned());
    }

    println!("\n{:<18}{:>10}{:>10}", "tollgate counters", "packets", "sent");
    for reason in expected.keys().chain(counted.keys().filter(|reason| !expected.contains_key(*reason))) {
        let of = |map: &BTreeMap<String, u64>| map.get(reason).copied().unwrap_or(0);
        println!("{reason:<18}{:>10}{:>10}", of(counted), of(&expected));
        if of(counted) != of(&expected) {
            faults.push(format!(
                "{} packets are counted as {reason}, and {} were sent",
                of(counted),
                of(&expected)
            ));
        }
    }

    println!("\n{:<18}{:>10}{:>10}", "backend", "datagrams", "sessions");
    let mut arrived = HashSet::new();
    for (received, id) in received.iter().zip(1u16..) {
        let sessions: HashSet<u32> = received.datagrams.iter().map(|(session, _)| *session).collect();
        println!("{:<18}{:>10}{:>10}", format!("backend{id}"), received.datagrams.len(), sessions.len());
        if !received.strange.is_empty() {
            let count = received.strange.len();
            faults.push(format!("backend{id} got {count} datagrams that no application has sent"));
        }
        for session in sessions {
            if session >= SESSIONS || backend_of(session) != id {
                faults.push(format!("session {session} came to backend{id}"));
            }
        }
        for datagram in &received.datagrams {
            if !arrived.insert(*datagram) {
                faults.push(format!("datagram {} of session {} came twice", datagram.1, datagram.0));
            }
        }
    }
    println!();
    let missing: usize = (0..SESSIONS)
        .map(|session| {
            let sequences = 0..sender.sequences[session as usize];
            sequences.filter(|sequence| !arrived.contains(&(session, *sequence))).count()
        })
        .sum();
    if missing > 0 || arrived.len() as u64 != sender.valid {
        faults.push(format!("{missing} valid datagrams are missing, {} arrived", arrived.len()));
    }
    faults
}

/// The backend of a session: the one its token names, else the Maglev table's.
fn backend_of(number: u32) -> u16 {
    let claims = claims(number);
    if claims.backend_id != 0 {
        return claims.backend_id;
    }
    let shares: Vec<_> = (1..=u16::from(BACKENDS))
        .map(|backend_id| Share { backend_id, weight: 100, entry: backend_id })
        .collect();
    table(claims.service_id, &shares)[balance::position(session_id(number)) as usize]
}

/// Leaves everything as it is, and says how to look around.
fn leave(topology: Topology, place: Place, daemon: Option<Daemon>) -> Result<()> {
    let config = place.config();
    let (config, control) = (config.display(), place.path("control.sock"));
    let binary = lb_tests::daemon::binary()?;
    let netns = format!("nsenter --net=/run/netns/{}", topology.balancer.name());
    println!("Left for looking around:");
    println!("  {binary} --control {} status", control.display());
    println!("  {binary} --control {} counters", control.display());
    println!("  {binary} --control {} token mint --service game --session 7", control.display());
    println!("  {netns} curl -s http://127.0.0.1:9477/metrics");
    println!("  nsenter --net=/run/netns/{NAME}-backend1 tcpdump -ni eth0 udp");
    println!("To remove it:");
    println!("  pkill -f '{config}'; {netns} {binary} detach -c {config}");
    println!(
        "  for n in switch client lb backend1 backend2 backend3; do ip netns delete {NAME}-$n; done; rm -r {}\n",
        place.bpffs().display()
    );
    std::mem::forget((topology, place, daemon));
    Ok(())
}

/// On a terminal, one line that changes; else a line now and then.
fn progress(sent: u64, arrived: u64) {
    if std::io::stdout().is_terminal() {
        print!("\r  {sent:>7} of {VALID} valid datagrams sent, {arrived:>7} arrived");
        // A terminal that cannot be flushed shows progress later.
        let _ = std::io::stdout().flush();
    } else if sent.is_multiple_of(20_000) {
        println!("  {sent:>7} of {VALID} valid datagrams sent, {arrived:>7} arrived");
    }
}

fn event(what: &str) {
    let clear = if std::io::stdout().is_terminal() { "\r\x1b[K" } else { "" };
    println!("{clear}- {what}");
}
