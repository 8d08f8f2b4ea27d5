//! The same packet on all CPUs at the same time.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya::{TestRun as _, TestRunOptions, programs::Xdp};
use lb_common::{
    reason::Reason,
    service::{ACCEPT_BEARER, ACCEPT_PROOF, FLAG_RATED, Service},
};
use lb_tests::{
    model::{
        fixture::{self, ClassRate, Fixture, SERVICE_INDEX},
        packet::{Family, Packet},
        program::{Counts, Program, Verdict, at_scale, cpus, pin_to_cpu, run_once, small},
    },
    testbed::daemon::wait_for,
};
use tollgate::datapath::{GRACE, Options};

use crate::{
    proof::{self, TS},
    rotation,
};

/// Number of rounds. All CPUs start each round together.
const ROUNDS: usize = 20_000;

/// One such test at a time, because each needs all CPUs.
static ALL_CPUS: Mutex<()> = Mutex::new(());

/// Runs frames on all CPUs at the same time, one on each CPU per round; returns the verdicts by round. A CPU without
/// its own frame runs the first frame.
fn at_once(program: &Program, rounds: &[Vec<Vec<u8>>]) -> Result<Vec<Vec<Verdict>>> {
    let cpus = cpus()?;
    ensure!(cpus.len() > 1, "this needs two CPUs at least");
    let arrived = AtomicUsize::new(0);
    let on_cpu = |place: usize| -> Result<Vec<Verdict>> {
        pin_to_cpu(cpus[place])?;
        let verdicts = rounds.iter().enumerate().map(|(round, frames)| {
            arrived.fetch_add(1, Ordering::AcqRel);
            let mut waited = 0_u32;
            while arrived.load(Ordering::Acquire) < (round + 1) * cpus.len() {
                waited += 1;
                if waited.is_multiple_of(4096) { thread::yield_now() } else { std::hint::spin_loop() }
            }
            Ok(program.run(frames.get(place).unwrap_or(&frames[0]))?.verdict)
        });
        // A thread that fails still takes part in each round; otherwise the other threads would wait forever.
        verdicts.collect::<Vec<Result<Verdict>>>().into_iter().collect()
    };
    let by_cpu: Vec<Vec<Verdict>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus.len()).map(|place| scope.spawn(move || on_cpu(place))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread has panicked")?)
            .collect::<Result<_>>()
    })?;
    Ok((0..rounds.len()).map(|round| by_cpu.iter().map(|verdicts| verdicts[round]).collect()).collect())
}

/// Checks how many frames of a round pass.
fn ensure_passing(verdicts: &[Vec<Verdict>], wanted: usize) -> Result<()> {
    for (round, verdicts) in verdicts.iter().enumerate() {
        let passed = verdicts.iter().filter(|verdict| **verdict == Verdict::Transmit).count();
        ensure!(passed == wanted, "round {round}: {passed} packets passed instead of {wanted}: {verdicts:?}");
    }
    Ok(())
}

/// Checks that since `before`, this many packets were counted with each of these reasons, and none with another reason.
fn ensure_counted(program: &Program, before: &Counts, wanted: &[(Reason, usize)]) -> Result<()> {
    let counts = program.counts()?.since(before);
    let found: Vec<_> =
        counts.reasons.iter().map(|((_, reason), counter)| (*reason, counter.packets as usize)).collect();
    ensure!(found == wanted, "counted {found:?} instead of {wanted:?}");
    ensure!(counts.reasons.keys().all(|(service, _)| *service == SERVICE_INDEX));
    Ok(())
}

fn alone() -> impl Drop {
    ALL_CPUS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn loaded() -> Result<Program> {
    let mut program = Program::load_with(&Options { sessions: 65_536, hmac_cost_ns: 0, ..small() })?;
    program.enter(&proof::fixture())?;
    Ok(program)
}

/// If all CPUs receive the same PROOF packet of a cached token, exactly one passes.
#[test]
fn the_same_proof() -> Result<()> {
    let _alone = alone();
    let others = cpus()?.len() - 1;
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS));
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let token = fixture::proof_number(1);
        let frames: Vec<_> = (0..rounds)
            .map(|seq| vec![Packet::with_proof(&token, seq as u32, TS).over(family).bytes()])
            .collect();
        ensure_passing(&at_once(&program, &frames)?, 1)?;
        ensure_counted(&program, &before, &[(Reason::Forwarded, rounds), (Reason::Replay, rounds * others)])?;
    }
    Ok(())
}

/// The same for a token that is new to all CPUs.
#[test]
fn the_first_proof_of_a_token() -> Result<()> {
    let _alone = alone();
    let others = cpus()?.len() - 1;
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS / 2));
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let first = |number| Packet::with_proof(&fixture::proof_number(number), 0, TS).over(family).bytes();
        let frames: Vec<_> = (0..rounds as u64).map(|number| vec![first(number)]).collect();
        ensure_passing(&at_once(&program, &frames)?, 1)?;
        ensure_counted(&program, &before, &[(Reason::Forwarded, rounds), (Reason::Replay, rounds * others)])?;
        ensure!(program.remembered()? == rounds);
    }
    Ok(())
}

/// Different packets of one token do not affect each other, although they change the same words.
#[test]
fn different_proofs() -> Result<()> {
    let _alone = alone();
    let cpus = cpus()?.len();
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS));
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let token = fixture::proof_number(1);
        let packet = |seq: usize| Packet::with_proof(&token, seq as u32, TS).over(family).bytes();
        let frames: Vec<_> = (0..rounds)
            .map(|round| (0..cpus).map(|cpu| packet(round * cpus + (cpu + round) % cpus)).collect())
            .collect();
        ensure_passing(&at_once(&program, &frames)?, cpus)?;
        ensure_counted(&program, &before, &[(Reason::Forwarded, rounds * cpus)])?;
    }
    Ok(())
}

/// The first packets of a BEARER token all pass, and create one entry.
#[test]
fn the_first_packets_of_a_token() -> Result<()> {
    let _alone = alone();
    let cpus = cpus()?.len();
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS / 2));
    for family in Family::BOTH {
        program.forget()?;
        let (before, hmacs) = (program.counts()?, program.hmacs()?);
        let first = |number| Packet::with_token(&fixture::token_number(number)).over(family).bytes();
        let frames: Vec<_> = (0..rounds as u64).map(|number| vec![first(number)]).collect();
        ensure_passing(&at_once(&program, &frames)?, cpus)?;
        ensure_counted(&program, &before, &[(Reason::Forwarded, rounds * cpus)])?;
        ensure!(program.remembered()? == rounds);
        let hmacs = (program.hmacs()? - hmacs) as usize;
        ensure!((rounds..=rounds * cpus).contains(&hmacs), "{hmacs} HMACs for {rounds} tokens");
    }
    Ok(())
}

/// A burst that is spread over all CPUs is neither larger nor smaller.
#[test]
fn one_rate() -> Result<()> {
    let _alone = alone();
    let cpus = cpus()?.len();
    let rounds = at_scale(ROUNDS);
    let burst = rounds * cpus / 2 + 1;
    let mut program = loaded()?;
    let service = fixture::proving();
    let service = Service { flags: service.flags | FLAG_RATED, ..service };
    let rates = vec![ClassRate { class: 1, per_second: 1000, burst: burst as u32 }];
    program.enter(&Fixture { rates, ..Fixture::with_service(service) })?;
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let frames = vec![vec![Packet::default().over(family).bytes()]; rounds];
        at_once(&program, &frames)?;
        let limited = rounds * cpus - burst;
        ensure_counted(&program, &before, &[(Reason::Forwarded, burst), (Reason::RateLimited, limited)])?;
    }
    Ok(())
}

/// Packets from two addresses at once: only one of them becomes the token's source.
#[test]
fn one_source() -> Result<()> {
    let _alone = alone();
    let cpus = cpus()?.len();
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS / 2));
    program.enter(&Fixture::with_service(Service { max_sources: 1, ..fixture::proving() }))?;
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let from = |number: usize, cpu: usize| {
            let mut packet = Packet::with_token(&fixture::token_number(number as u64));
            packet.from.set_ip(IpAddr::from(Ipv4Addr::new(192, 0, 2, cpu as u8)));
            packet.over(family).bytes()
        };
        let frames: Vec<_> =
            (0..rounds).map(|round| (0..cpus).map(|cpu| from(round, cpu)).collect()).collect();
        ensure_passing(&at_once(&program, &frames)?, 1)?;
        ensure_counted(
            &program,
            &before,
            &[(Reason::Forwarded, rounds), (Reason::TooManySources, rounds * (cpus - 1))],
        )?;
    }
    Ok(())
}

/// Two tables differ in the burst. A session gets exactly the larger burst, regardless of which table is active or
/// still read by a CPU.
#[test]
fn rates_that_change() -> Result<()> {
    let _alone = alone();
    let mut program = Program::load_with(&Options { grace: GRACE, hmac_cost_ns: 0, ..small() })?;
    let service = fixture::proving();
    let service = Service { flags: service.flags | FLAG_RATED, ..service };
    let with_burst = |burst| {
        let rates = vec![ClassRate { class: 1, per_second: 1000, burst: burst as u32 }];
        Fixture { rates, ..Fixture::with_service(service) }
    };
    let (smaller, larger) = (at_scale(100_000) as u64, at_scale(300_000) as u64);
    let frame = |round: usize| {
        let packet = Packet::with_token(&fixture::token_number(round as u64));
        packet.over(Family::BOTH[round % 2]).bytes()
    };
    let frames: Vec<_> = (0..6).map(frame).collect();
    let (round, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let send = |program: Xdp, cpu| -> Result<()> {
        pin_to_cpu(cpu)?;
        while !over.load(Ordering::Acquire) {
            run_once(&program, &frames[round.load(Ordering::Acquire)])?;
        }
        Ok(())
    };
    let change = |program: &mut Program| -> Result<()> {
        for number in 0..frames.len() {
            program.enter(&with_burst(smaller))?;
            let counted = |program: &Program, reason| program.counted((SERVICE_INDEX, reason));
            // Every earlier round is complete; the first is in progress.
            let before = number as u64 * larger;
            round.store(number, Ordering::Release);
            for (burst, until) in [(larger, smaller / 2), (smaller, larger / 2), (larger, larger / 2)] {
                wait_for("packets", || Ok(counted(program, Reason::Forwarded)? >= before + until))?;
                program.enter(&with_burst(burst))?;
            }
            wait_for("the burst", || Ok(counted(program, Reason::Forwarded)? >= before + larger))?;
            let limited = counted(program, Reason::RateLimited)?;
            wait_for("what is beyond", || Ok(counted(program, Reason::RateLimited)? > limited + smaller))?;
            let passed = counted(program, Reason::Forwarded)? - before;
            ensure!(passed == larger, "round {number}: {passed} packets passed instead of {larger}");
        }
        Ok(())
    };
    program.enter(&with_burst(smaller))?;
    let before = program.counts()?;
    let handles = cpus()?.into_iter().map(|cpu| Ok((rotation::handle(&mut program)?, cpu)));
    let handles: Vec<_> = handles.collect::<Result<_>>()?;
    thread::scope(|scope| {
        let send = &send;
        let senders: Vec<_> =
            handles.into_iter().map(|(program, cpu)| scope.spawn(move || send(program, cpu))).collect();
        let changed = change(&mut program);
        over.store(true, Ordering::Release);
        senders.into_iter().try_for_each(|sender| sender.join().ok().context("a thread has panicked")?)?;
        changed
    })?;
    let moved = program.counts()?.since(&before);
    let limited = moved.packets() as usize - frames.len() * larger as usize;
    ensure_counted(
        &program,
        &before,
        &[(Reason::Forwarded, frames.len() * larger as usize), (Reason::RateLimited, limited)],
    )
}

/// A packet is checked with the service and the rates of the same publication, however often the two banks are
/// exchanged meanwhile. The first bank admits the token without an effective rate; the second refuses its type. A
/// packet with the service of the first bank and the rates of the second would be counted as `rate_limited`.
#[test]
fn one_publication_for_each_packet() -> Result<()> {
    const RUNS: u32 = 1000;
    let _alone = alone();
    let mut program = loaded()?;
    let with = |accept, rate| {
        let service = Service { accept, flags: FLAG_RATED, ..fixture::service() };
        Fixture { rates: vec![rate], ..Fixture::with_service(service) }.repeated()
    };
    let admitting = with(ACCEPT_BEARER, ClassRate { class: 1, per_second: 1_000_000_000, burst: u32::MAX });
    let refusing = with(ACCEPT_PROOF, ClassRate { class: 1, per_second: 1, burst: 1 });
    for family in Family::BOTH {
        program.enter(&admitting)?;
        let first = program.datapath().control_page.tables();
        program.enter(&refusing)?;
        let second = program.datapath().control_page.tables();
        ensure!(first.bank != second.bank);
        program.forget()?;

        let before = program.counts()?;
        let sender = rotation::handle(&mut program)?;
        let frame = Packet::default().over(family).bytes();
        let cpus = cpus()?;
        let (batches, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let moved = thread::scope(|scope| -> Result<Counts> {
            let sending = scope.spawn(|| -> Result<()> {
                pin_to_cpu(cpus[0])?;
                while !over.load(Ordering::Acquire) {
                    let options =
                        TestRunOptions { data_in: Some(&frame), repeat: RUNS, ..TestRunOptions::default() };
                    sender.test_run(options)?;
                    batches.fetch_add(1, Ordering::Release);
                }
                Ok(())
            });
            pin_to_cpu(*cpus.last().context("there is a CPU")?)?;
            // The last publication of each round stays until the next: on a slow machine, whole batches run meanwhile.
            let mut round = [first, second];
            let publish = || {
                round.reverse();
                for _ in 0..at_scale(1_000_000) {
                    round.into_iter().for_each(|tables| program.datapath().control_page.set_tables(tables));
                }
                let reasons = program.counts()?.since(&before).reasons;
                Ok(batches.load(Ordering::Acquire) >= at_scale(100) && reasons.len() > 1)
            };
            let published = wait_for(&format!("{family}: packets judged by both publications"), publish);
            over.store(true, Ordering::Release);
            sending.join().ok().context("a thread has panicked")?.and(published)?;
            Ok(program.counts()?.since(&before))
        })?;
        let of = |reason| moved.reasons.contains_key(&(SERVICE_INDEX, reason));
        ensure!(
            of(Reason::Forwarded) && of(Reason::Policy),
            "{family}: one publication judged all: {moved:?}"
        );
        ensure!(moved.reasons.len() == 2, "{family}: a packet was checked with two publications: {moved:?}");
    }
    Ok(())
}
