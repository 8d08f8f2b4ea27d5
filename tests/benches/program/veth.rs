//! Packets per second: a sender of frames without skbs on one CPU, the program in a veth's receiving path on another.
//!
//! In a network namespace of its own, which goes when its thread ends. Frames come from the kernel's live test run, whose
//! sender puts another token into each. What is received is counted by the receiving card.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    TestRun as _, TestRunAttrs, TestRunOptions,
    programs::{Xdp, XdpMode},
};
use aya_obj::programs::XdpAttachType;
use lb_common::{backend::Backend, maps::PROGRAM, reason::Reason, token::Header};
use lb_tests::{
    packet::Packet,
    program::Program,
    replay::{Replay, Window},
    world::{self, SERVICE_INDEX, World},
};
use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use serde::Serialize;

use crate::Effort;

/// One mix of packets.
#[derive(Serialize)]
pub struct Rate {
    /// What of.
    pub name: &'static str,
    /// Received and judged.
    pub packets_per_second: f64,
    /// Received by a program that drops everything at once.
    pub empty_packets_per_second: f64,
    /// Sent to that program. Where no more were sent than received, the sender is what was measured.
    pub sent_to_empty_per_second: f64,
    /// How often each was measured; the medians are given.
    pub runs: usize,
}

const SENDER: &str = "tgtx";
const RECEIVER: &str = "tgrx";
/// Tokens in the mix, and how many of them are valid.
const MIX: (u32, u32) = (10_000, 1_000);
/// Frames of one live run.
const FRAMES: u32 = 100_000;
/// Frames that are sent at once.
const BATCH: u32 = 64;

/// Measures the mix, with the receiver on this CPU.
///
/// # Errors
/// If the pair cannot be made, or packets took another way than they should.
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
    let backends = (1..=3).map(|id| Backend { ifindex: receiver, ..world::backend(id) }).collect();
    let packet = Packet::default();
    program.enter(&World { backends, ..World::default() })?;
    replay.write(0, &mix())?;
    replay.open(&Window::new(0..MIX.0), &packet.bytes())?;
    replay.program("discard")?.attach(SENDER, XdpMode::Driver).context("cannot attach to the sender")?;

    let duration = Duration::from_secs_f64(effort.veth_seconds);
    let (mut rates, mut empty_rates, mut empty_sent) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.samples.div_ceil(3) {
        let link = replay.program("discard")?.attach(RECEIVER, XdpMode::Driver)?;
        poll_on(receiver_cpu)?;
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
    poll_on(receiver_cpu)?;
    let before = program.counts()?;
    let traffic = Traffic::send(replay, packet, duration)?;
    let moved = program.counts()?.since(&before).reasons;
    let of = |reason| moved.get(&(SERVICE_INDEX, reason)).map_or(0, |counter| counter.packets);
    let (valid, forged) = (of(Reason::Forwarded), of(Reason::BadFastTag));
    ensure!(moved.len() == 2 && valid.abs_diff((valid + forged) / 10) < forged / 50, "counted: {moved:?}");
    // All but what was still on its way when the card's count was read.
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
    let mut tokens: Vec<Header> = (0..u64::from(len)).map(world::token_number).collect();
    for forged in &mut tokens[valid as usize..] {
        let mut words = forged.words();
        words[5] ^= 1;
        *forged = Header::again(words);
    }
    fastrand::Rng::with_seed(8).shuffle(&mut tokens);
    tokens
}

/// A veth pair in a new namespace. Returns the receiver's index.
fn make_pair() -> Result<u32> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("cannot make a network namespace\ntry: as root")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make mounts private")?;
    // The sysfs of this namespace, where its interfaces are.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("cannot mount /sys")?;
    for arguments in [
        format!("link add {SENDER} type veth peer name {RECEIVER}"),
        // No packets of the kernel's own.
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

/// Lets the receiver, which polls only while it has a program, poll in a kernel thread, `napi/NAME-NUMBER`, on a CPU.
fn poll_on(cpu: usize) -> Result<()> {
    let threaded = format!("/sys/class/net/{RECEIVER}/threaded");
    fs::write(&threaded, "1").with_context(|| format!("cannot write {threaded}"))?;
    let mut set = CpuSet::new();
    set.set(cpu)?;
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_ours = fs::read_to_string(path.join("comm"))
            .is_ok_and(|comm| comm.starts_with(&format!("napi/{RECEIVER}-")));
        let pid = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let (true, Some(pid)) = (is_ours, pid) {
            sched_setaffinity(Pid::from_raw(pid), &set)?;
            found += 1;
        }
    }
    if found == 0 {
        bail!("the kernel polls {RECEIVER} in no thread of its own");
    }
    Ok(())
}

/// What was sent, and arrived.
struct Traffic {
    sent: u64,
    received: u64,
    elapsed: Duration,
}

impl Traffic {
    /// Sends for as long.
    fn send(replay: &mut Replay, packet: &Packet, duration: Duration) -> Result<Self> {
        let frame = packet.bytes();
        let frame_len = u32::try_from(frame.len())?;
        let sender = if_nametoindex(SENDER)?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> =
            [0, frame_len, 0, sender, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let program = replay.program("send")?;
        let (before, start) = (received()?, Instant::now());
        let mut sent = 0;
        while start.elapsed() < duration {
            program.test_run(TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                repeat: FRAMES,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })?;
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
