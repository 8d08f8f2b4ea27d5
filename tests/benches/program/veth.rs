//! Packets per second: one CPU sends frames without skbs, and the program runs in the receive path of a veth on
//! another CPU.
//!
//! The benchmark has its own network namespace, which ends with its thread. Frames come from the kernel's live test
//! run, whose sending program writes a different token into each. The receiving interface counts the packets.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Xdp, XdpMode};
use aya_obj::programs::XdpAttachType;
use lb_common::{backend::Backend, maps::PROGRAM, reason::Reason, token::Header};
use lb_tests::{
    model::{
        fixture::{self, Fixture, SERVICE_INDEX},
        packet::Packet,
        program::Program,
    },
    testbed::receive_thread,
    tools::replay::{Replay, Window},
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use serde::Serialize;

use crate::Effort;

/// One mix of packets.
#[derive(Serialize)]
pub struct Rate {
    /// Description of the packets.
    pub name: &'static str,
    /// Packets per second that were received and processed.
    pub packets_per_second: f64,
    /// Packets per second that a program received that drops everything immediately.
    pub empty_packets_per_second: f64,
    /// Packets per second sent to that program. If no more were sent than received, the sender was the bottleneck.
    pub sent_to_empty_per_second: f64,
    /// Number of measurements of each rate; the medians are reported.
    pub runs: usize,
}

const SENDER: &str = "tgtx";
const RECEIVER: &str = "tgrx";
/// Tokens in the mix, and how many of them are valid.
const MIX: (u32, u32) = (10_000, 1_000);
/// Frames of one live run.
const FRAMES: u32 = 100_000;

/// Measures the mix, with the receiver on this CPU.
///
/// # Errors
/// If the pair cannot be made, or packets had an unexpected outcome.
pub fn measure(
    program: &mut Program,
    replay: &mut Replay,
    effort: &Effort,
    receiver_cpu: usize,
) -> Result<Vec<Rate>> {
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| in_own_namespace(program, replay, effort, receiver_cpu));
        measuring.join().map_err(|_| anyhow::anyhow!("the measuring thread panicked"))?
    })
}

fn in_own_namespace(
    program: &mut Program,
    replay: &mut Replay,
    effort: &Effort,
    receiver_cpu: usize,
) -> Result<Vec<Rate>> {
    let receiver = make_pair()?;
    let backends = (1..=3).map(|id| Backend { ifindex: receiver, ..fixture::backend(id) }).collect();
    let packet = Packet::default();
    let macs = fixture::accepting_on(receiver, &[fixture::BALANCER_MAC], false);
    program.enter(&Fixture { macs, backends, ..Fixture::default() })?;
    replay.write(0, &mix())?;
    replay.open(&Window::new(0..MIX.0), &packet.bytes())?;
    replay.program("discard")?.attach(SENDER, XdpMode::Driver).context("cannot attach to the sender")?;

    let duration = Duration::from_secs_f64(effort.veth_seconds);
    let (mut rates, mut empty_rates, mut empty_sent) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.samples.div_ceil(3) {
        let link = replay.program("discard")?.attach(RECEIVER, XdpMode::Driver)?;
        receive_thread::poll_on(RECEIVER, receiver_cpu)?;
        let empty = Traffic::send(replay, &packet, duration)?;
        replay.program("discard")?.detach(link)?;
        empty_rates.push(empty.per_second(empty.received));
        empty_sent.push(empty.per_second(empty.sent));

        let traffic = through_tollgate(program, replay, &packet, duration, receiver_cpu)?;
        rates.push(traffic.per_second(traffic.received));
    }
    let runs = rates.len();
    Ok(vec![Rate {
        name: "forged_90_valid_10",
        packets_per_second: median(rates),
        empty_packets_per_second: median(empty_rates),
        sent_to_empty_per_second: median(empty_sent),
        runs,
    }])
}

fn through_tollgate(
    program: &mut Program,
    replay: &mut Replay,
    packet: &Packet,
    duration: Duration,
    receiver_cpu: usize,
) -> Result<Traffic> {
    let info = program.datapath().program(PROGRAM)?.info()?;
    // Detached when it is dropped.
    let mut tollgate = Xdp::from_program_info(info, PROGRAM.into(), XdpAttachType::Interface)?;
    tollgate.attach(RECEIVER, XdpMode::Driver)?;
    receive_thread::poll_on(RECEIVER, receiver_cpu)?;
    let before = program.counts()?;
    let traffic = Traffic::send(replay, packet, duration)?;
    let moved = program.counts()?.since(&before).reasons;
    let of = |reason| moved.get(&(SERVICE_INDEX, reason)).map_or(0, |counter| counter.packets);
    let (valid, forged) = (of(Reason::Forwarded), of(Reason::BadFastTag));
    ensure!(moved.len() == 2 && valid.abs_diff((valid + forged) / 10) < forged / 50, "counted: {moved:?}");
    // All frames, except those in flight when the interface's counter was read.
    ensure!(
        (valid + forged).abs_diff(traffic.received) < 1000,
        "{} received, counted: {moved:?}",
        traffic.received
    );
    Ok(traffic)
}

/// Nine forged tokens to every valid one, in random order.
fn mix() -> Vec<Header> {
    let (len, valid) = MIX;
    let mut tokens: Vec<Header> = (0..u64::from(len)).map(fixture::token_number).collect();
    for forged in &mut tokens[valid as usize..] {
        let mut words = forged.words();
        words[5] ^= 1;
        *forged = Header::from_verified(words);
    }
    fastrand::Rng::with_seed(8).shuffle(&mut tokens);
    tokens
}

/// A veth pair in a new namespace. Returns the receiver's index.
fn make_pair() -> Result<u32> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace\ntry: as root")?;
    receive_thread::own_sysfs()?;
    for arguments in [
        format!("link add {SENDER} type veth peer name {RECEIVER}"),
        // The kernel must send no packets of its own.
        format!("link set {SENDER} addrgenmode none"),
        format!("link set {RECEIVER} addrgenmode none"),
        format!("link set {SENDER} up"),
        format!("link set {RECEIVER} up"),
    ] {
        let status = Command::new("ip").args(arguments.split(' ')).status().context("cannot start ip")?;
        ensure!(status.success(), "ip {arguments}: {status}");
    }
    Ok(if_nametoindex(RECEIVER)?)
}

/// The frames sent and received.
struct Traffic {
    sent: u64,
    received: u64,
    elapsed: Duration,
}

impl Traffic {
    /// Sends frames for this duration.
    fn send(replay: &mut Replay, packet: &Packet, duration: Duration) -> Result<Self> {
        let frame = packet.bytes();
        let sender = if_nametoindex(SENDER)?;
        let (before, start) = (received()?, Instant::now());
        let mut sent = 0;
        while start.elapsed() < duration {
            replay.send(sender, &frame, FRAMES)?;
            sent += u64::from(FRAMES);
        }
        let elapsed = start.elapsed();
        Ok(Self { sent, received: received()? - before, elapsed })
    }

    fn per_second(&self, packets: u64) -> f64 {
        packets as f64 / self.elapsed.as_secs_f64()
    }
}

fn received() -> Result<u64> {
    let path = format!("/sys/class/net/{RECEIVER}/statistics/rx_packets");
    Ok(fs::read_to_string(&path).with_context(|| path.clone())?.trim().parse()?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
