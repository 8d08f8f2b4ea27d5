//! A million packets, each processed by the loaded program and by the oracle, which has processed the same packets
//! before: verdict, reason and bytes are equal.

use std::{collections::BTreeMap, thread, time::Instant};

use anyhow::{Context as _, Result, ensure};
use lb_common::{control::SECOND_NS, reason::Reason, scratch::BURST_NS};
use lb_tests::model::{
    case::Hex,
    fixture::NOW,
    oracle::Model,
    program::{Program, Verdict, at_scale, pin_to_cpu, small},
};
use tollgate::datapath::Options;

use self::traffic::Traffic;

mod traffic;

/// Number of packets.
const PACKETS: usize = 1_000_000;
/// After this many packets, time, revocations and verifying keys change.
const STEP: usize = 10_000;
/// Number of lanes; each has its own program and model.
const LANES: usize = 2;
/// Set, this variable is the seed of the packets.
const SEED: &str = "TOLLGATE_SEED";
/// The seed if the variable is not set.
const DEFAULT_SEED: u64 = 1_000_000;

/// The reasons that a million packets must cover: all that are determined between the parser and the backend.
const REASONS: [Reason; 22] = [
    Reason::Forwarded,
    Reason::NoToken,
    Reason::BadHeader,
    Reason::Policy,
    Reason::UnknownKey,
    Reason::InactiveKey,
    Reason::NotYetValid,
    Reason::Expired,
    Reason::Lifetime,
    Reason::Revoked,
    Reason::BadFastTag,
    Reason::StaleClock,
    Reason::BadFullTag,
    Reason::WrongService,
    Reason::StaleProof,
    Reason::BadProof,
    Reason::Replay,
    Reason::RateLimited,
    Reason::TooManySources,
    Reason::NoBackend,
    Reason::IcmpError,
    Reason::Unsupported,
];

#[test]
fn a_million_packets() -> Result<()> {
    let seed = seed()?;
    let start = Instant::now();
    let count = at_scale(PACKETS / LANES);
    let lanes: Vec<_> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES as u64)
            .map(|lane| {
                scope.spawn(move || {
                    run(seed + lane, count).with_context(|| format!("{SEED}={seed}, lane {lane}"))
                })
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().ok().context("a lane has panicked")?).collect::<Result<_>>()
    })?;
    let mut counted = BTreeMap::<Reason, u64>::new();
    for (reason, packets) in lanes.into_iter().flatten() {
        *counted.entry(reason).or_default() += packets;
    }
    println!("{} packets in {:?}: {counted:?}", LANES * count, start.elapsed());
    // The twenty thousand packets of an emulated machine are too few for this check.
    let enough = at_scale(50) as u64 - 1;
    let few = REASONS.iter().find(|reason| counted.get(reason).copied().unwrap_or_default() < enough);
    ensure!(few.is_none(), "{few:?} is hardly tried: {counted:?}");
    Ok(())
}

fn seed() -> Result<u64> {
    let Ok(seed) = std::env::var(SEED) else { return Ok(DEFAULT_SEED) };
    seed.parse().with_context(|| format!("{SEED}={seed} is not a number"))
}

/// One lane; returns the number of packets of each reason.
fn run(seed: u64, count: usize) -> Result<BTreeMap<Reason, u64>> {
    // Large enough caches that no entry is evicted, and no HMAC budget.
    let mut program = Program::load_with(&Options { sessions: 131_072, hmac_cost_ns: 0, ..small() })?;
    let mut model = Model::default();
    let mut traffic = Traffic::new(seed);
    let mut counted = BTreeMap::new();
    for number in 0..count {
        if number % at_scale(STEP) == 0 {
            traffic.go_on();
            program.enter(traffic.fixture())?;
            model.set_jiffies(program.jiffies()?);
        }
        compare(&mut program, &mut model, &mut traffic, &mut counted)
            .with_context(|| format!("packet {number}"))?;
    }
    ensure!(
        program.hmacs()? == model.hmacs(),
        "{} HMACs, and {} by the model",
        program.hmacs()?,
        model.hmacs()
    );
    let remembered = program.remembered()?;
    ensure!(remembered == model.remembered(), "{remembered} tokens, and {} by the model", model.remembered());
    Ok(counted)
}

/// Runs the next packet through both.
fn compare(
    program: &mut Program,
    model: &mut Model,
    traffic: &mut Traffic,
    counted: &mut BTreeMap<Reason, u64>,
) -> Result<()> {
    let (what, frame) = traffic.packet();
    let expected = model.judge(traffic.fixture(), &frame);
    let index = (expected.service, expected.reason);
    let before = program.counted(index)?;
    let outcome = program.run(&frame)?;
    let same = outcome.verdict == expected.outcome.verdict
        && (outcome.verdict == Verdict::Drop || outcome.frame == expected.outcome.frame);
    ensure!(
        same && program.counted(index)? == before + 1,
        "{what}: {:?} where {:?} as {} was expected, under which {} packets were counted\n  came in  {}\n  \
         came out {}\n  expected {}",
        outcome.verdict,
        expected.outcome.verdict,
        expected.reason.name(),
        program.counted(index)? - before,
        Hex(&frame),
        Hex(&outcome.frame),
        Hex(&expected.outcome.frame),
    );
    *counted.entry(expected.reason).or_default() += 1;
    Ok(())
}

/// With a small HMAC budget, program and oracle refuse the same packets: on one CPU, whose clock hardly advances
/// between two steps.
#[test]
fn within_a_budget() -> Result<()> {
    pin_to_cpu(0)?;
    let seed = seed()?;
    // A burst of fifty HMACs: fewer than the new tokens of a step. During a step, much less than one HMAC recovers.
    const STEP: usize = 2000;
    let cost_ns = BURST_NS / 50;
    let mut counted = BTreeMap::new();
    let mut program = Program::load_with(&Options { sessions: 131_072, hmac_cost_ns: cost_ns, ..small() })?;
    let mut model = Model::with_budget(cost_ns);
    let mut traffic = Traffic::new(seed);
    for number in 0..at_scale(100_000) {
        if number % STEP == 0 {
            traffic.go_on();
            program.enter(traffic.fixture())?;
            model.set_jiffies(program.jiffies()?);
        }
        compare(&mut program, &mut model, &mut traffic, &mut counted)
            .with_context(|| format!("{SEED}={seed}, packet {number}"))?;
    }
    ensure!(program.hmacs()? == model.hmacs());
    ensure!(counted[&Reason::HmacBudget] > 20, "{counted:?}");
    Ok(())
}

#[test]
fn the_clock_is_off_all_edges() {
    let mut traffic = Traffic::new(1);
    for _ in 0..100 {
        traffic.go_on();
        let now_ns = traffic.fixture().now_ns;
        assert!(now_ns >= u64::from(NOW) * SECOND_NS && now_ns % 1_000_000 == traffic::OFF_EDGES_NS);
    }
}
