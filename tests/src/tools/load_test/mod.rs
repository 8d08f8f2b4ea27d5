//! Load test: legitimate traffic at a steady rate, next to floods of junk at the highest rate that the machine can
//! send.
//!
//! ```text
//!              sending CPU                     veth pair                     receiving CPU
//!  flood: live frames, one thread ──┐   load1 ─────────── load0    ┌── 1 application, a UDP socket
//!  clients: UDP sockets, 10,000/s ──┴──▶     ring of 256 frames ───┴── 2 the receive thread: XDP, then the stack
//! ```
//!
//! The node under test is Tollgate: the real daemon with a service on its own host (`local`). It is compared with a
//! program that only drops frames with the flood's source address and passes all others: the minimum that a filter
//! must do. Each runs on its own pair, alternating, under the same floods: the sender limits the rate, not the node.
//!
//! The ring of the veth stands for that of a network card: a frame that finds it full is lost before a program
//! processes it. The machine is saturated while frames of the flood are lost there. As with the interrupts of a network
//! card, the receive thread has priority over all other work of its CPU, except for the application. Clients have
//! priority over the flood on their CPU, because they stand for other hosts than the flood's.

mod clients;
mod flood;
mod junk;
mod pair;
mod report;

use std::{collections::BTreeMap, panic::resume_unwind, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::token::Header;
use nix::{errno::Errno, libc, unistd::Pid};

pub use self::{
    clients::Delivery,
    flood::Sent,
    junk::Junk,
    report::{COMPARED, Missed, Report, lost_unsaturated},
};
use self::{
    clients::{Clients, Stage},
    flood::{EmptyProgram, Flooder},
    pair::{NODE, Pair},
};
use crate::{
    model::packet::Family,
    testbed::{
        daemon::{Daemon, Instance, counters, service},
        issuer::Issuer,
    },
};

/// Lifetime of a token, seconds.
const TTL: u32 = 300;
/// Real-time priorities, the highest first: the kernel timestamps packets before the application reads them.
const APPLICATION: i32 = 60;
const CLIENTS: i32 = 50;
const RECEIVING: i32 = 40;

/// Packets that do not belong to the flood: the first of those that are replayed, and packets of the hosts' own
/// kernels.
const FEW: u64 = 20;
/// Frames per second that any machine can receive. Fewer arrive, because no frames are sent while a live run starts.
pub const MODERATE: u32 = 200_000;

/// The length of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// The time without a flood, before and after each.
    pub quiet: Duration,
    /// The duration of a flood.
    pub flood: Duration,
    /// The number of comparisons with the empty program, for the floods that have a goal.
    pub rounds: usize,
}

/// The CPUs of sender and receiver.
#[derive(Clone, Copy, Debug)]
pub struct Cpus {
    /// Clients and floods.
    pub sending: usize,
    /// The node under test.
    pub receiving: usize,
}

/// A flood, and the legitimate traffic delivered during it.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The class of junk.
    pub junk: Junk,
    /// The frames sent.
    pub flood: Sent,
    /// Frames of the flood that reached the program of the node.
    pub judged: u64,
    /// Legitimate packets before, during and after it.
    pub deliveries: [Delivery; 3],
}

impl Measurement {
    /// Frames of the flood that were lost in the full ring.
    pub const fn overflowed(&self) -> u64 {
        self.flood.frames.saturating_sub(self.judged)
    }

    /// Whether the node could not receive all frames.
    pub const fn is_saturated(&self) -> bool {
        self.overflowed() > 0
    }
}

/// A node with Tollgate, and one with the program that drops floods.
pub struct Bench {
    cpus: Cpus,
    tollgate: Pair,
    empty: Pair,
    issuer: Issuer,
    instance: Instance,
    random: fastrand::Rng,
    // Declared before the pairs, because the programs end with the namespaces of the pairs.
    _empty: EmptyProgram,
    _daemon: Daemon,
}

impl Bench {
    /// Creates both nodes. Names of namespaces, files and pins begin with `prefix`.
    ///
    /// # Errors
    /// If something cannot be created or started, or there is only one CPU.
    pub fn new(prefix: &str, seed: u64) -> Result<Self> {
        let online = aya::util::online_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))?;
        // The first CPU usually handles interrupts.
        let [receiving, .., sending] = online[..] else {
            bail!("there is one CPU: sender and receiver need one each");
        };
        let cpus = Cpus { sending: sending as usize, receiving: receiving as usize };
        let (tollgate, empty) = (Pair::new(&format!("{prefix}-t"))?, Pair::new(&format!("{prefix}-e"))?);
        let instance = Instance::new(prefix)?;
        let fields = "forward = \"local\"\nstrip = false\nkey_rotation = \"off\"\naccept = [\"bearer\", \"proof\"]\n\
                      rate = { \"0\" = \"2000/s\" }\nmax_sources = 2";
        instance.configure_on(&[NODE], &service(Family::V4, fields, &[]))?;
        let daemon = Daemon::start(&instance, &tollgate.node)?;
        let empty_program = EmptyProgram::attach(&empty)?;
        tollgate.receive_on(cpus.receiving)?;
        empty.receive_on(cpus.receiving)?;
        let issuer = Issuer::new(&instance, &tollgate.node, "game")?;
        let random = fastrand::Rng::with_seed(seed);
        Ok(Self { cpus, tollgate, empty, issuer, instance, random, _empty: empty_program, _daemon: daemon })
    }

    /// Sends a flood of junk to Tollgate. Every frame that reaches the program must be counted with the correct reason.
    ///
    /// # Errors
    /// If something fails, or a frame is counted with another reason.
    pub fn at_tollgate(&mut self, junk: Junk, rate: Option<u32>, effort: Effort) -> Result<Measurement> {
        let mut clients = Clients::new(&self.issuer);
        let tokens = junk.tokens(&self.issuer, clients.a_proof_token(), &mut self.random);
        let before = self.counted()?;
        let measurement = measure(&self.tollgate, self.cpus, &mut clients, junk, &tokens, rate, effort)?;
        let after = self.counted()?;
        let moved = |name: &str| {
            after.get(name).copied().unwrap_or_default() - before.get(name).copied().unwrap_or_default()
        };
        let refused: u64 = junk.reasons().iter().map(|reason| moved(reason.name())).sum();
        let others: Vec<_> = after
            .keys()
            .filter(|name| moved(name) > 0 && *name != "forwarded")
            .filter(|name| junk.reasons().iter().all(|reason| reason.name() != *name))
            .collect();
        ensure!(
            others.is_empty() && measurement.judged.abs_diff(refused) <= FEW,
            "of {} frames {refused} are counted as {}; also counted: {others:?}",
            measurement.judged,
            junk.name()
        );
        Ok(measurement)
    }

    /// Sends the same flood to the program that drops it.
    ///
    /// # Errors
    /// If something fails.
    pub fn at_empty(&mut self, junk: Junk, rate: Option<u32>, effort: Effort) -> Result<Measurement> {
        let mut clients = Clients::new(&self.issuer);
        let tokens = junk.tokens(&self.issuer, clients.a_proof_token(), &mut self.random);
        measure(&self.empty, self.cpus, &mut clients, junk, &tokens, rate, effort)
    }

    fn counted(&self) -> Result<BTreeMap<String, u64>> {
        counters(&self.instance, &self.tollgate.node, "game")
    }
}

fn measure(
    pair: &Pair,
    cpus: Cpus,
    clients: &mut Clients,
    junk: Junk,
    tokens: &[Header],
    rate: Option<u32>,
    effort: Effort,
) -> Result<Measurement> {
    let mut flooder = Flooder::new(pair, cpus)?;
    let stage = Stage::default();
    let received_before = pair.received()?;
    thread::scope(|scope| {
        let receiving = scope.spawn(|| clients::receive(pair, &stage, cpus, 3));
        stage.wait_for_the_application()?;
        let sending = scope.spawn(|| clients.send(pair, &stage, cpus, 3));
        thread::sleep(effort.quiet);
        stage.next();
        let flood = flooder.run(&junk.frame(), tokens, rate, effort.flood);
        stage.next();
        thread::sleep(effort.quiet);
        stage.end();
        let sent = sending.join().unwrap_or_else(|panic| resume_unwind(panic)).context("the clients")?;
        let took =
            receiving.join().unwrap_or_else(|panic| resume_unwind(panic)).context("the application")?;
        let all = sent.into_iter().zip(took).map(|(sent, took)| Delivery::of(sent, took));
        let deliveries: Vec<_> = all.collect::<Result<_>>()?;
        let legitimate: u64 = deliveries.iter().map(|delivery| delivery.took.len() as u64).sum();
        Ok(Measurement {
            junk,
            flood: flood.context("the flood")?,
            judged: pair.received()? - received_before - legitimate,
            deliveries: deliveries.try_into().map_err(|_| anyhow::anyhow!("three phases"))?,
        })
    })
}

/// Gives a thread priority over all threads without a real-time priority or with a lower one. 0 is the calling thread.
fn realtime(thread: Pid, priority: i32) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads the parameters, which outlive the call.
    let result =
        unsafe { libc::sched_setscheduler(thread.as_raw(), libc::SCHED_FIFO, &raw const parameters) };
    Errno::result(result).context("the kernel gives no real-time priority\ntry: as root")?;
    Ok(())
}
