//! The same thing on all CPUs at once.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    reason::Reason,
    service::{FLAG_RATED, Service},
};
use lb_tests::{
    packet::{Family, Packet},
    program::{Counts, Program, Verdict, at_scale, cpus, pin_to_cpu, small},
    world::{self, ClassRate, SERVICE_INDEX, World},
};
use tollgate::datapath::Options;

use crate::proof::{self, TS};

/// How often the CPUs meet.
const ROUNDS: usize = 20_000;

/// One such test at a time: they want all CPUs.
static ALL_CPUS: Mutex<()> = Mutex::new(());

/// Frames that all CPUs take in at once, one each, round by round; the verdicts, round by round. A CPU whose frame is not
/// there takes the first.
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
        // Whoever fails still comes to each round, or the others wait for ever.
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

/// Checks how many of a round's frames pass.
fn ensure_passing(verdicts: &[Vec<Verdict>], wanted: usize) -> Result<()> {
    for (round, verdicts) in verdicts.iter().enumerate() {
        let passed = verdicts.iter().filter(|verdict| **verdict == Verdict::Transmit).count();
        ensure!(passed == wanted, "round {round}: {passed} passed where {wanted} should: {verdicts:?}");
    }
    Ok(())
}

/// Checks that so many packets were counted since under each of these reasons, and none under any other.
fn ensure_counted(program: &Program, before: &Counts, wanted: &[(Reason, usize)]) -> Result<()> {
    let counts = program.counts()?.since(before);
    let found: Vec<_> =
        counts.reasons.iter().map(|((_, reason), counter)| (*reason, counter.packets as usize)).collect();
    ensure!(found == wanted, "counted {found:?} where {wanted:?} should be");
    ensure!(counts.reasons.keys().all(|(service, _)| *service == SERVICE_INDEX));
    Ok(())
}

fn alone() -> impl Drop {
    ALL_CPUS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn loaded() -> Result<Program> {
    let mut program = Program::load_with(&Options { sessions: 65_536, hmac_cost_ns: 0, ..small() })?;
    program.enter(&proof::world())?;
    Ok(program)
}

/// Of the same PROOF packet on all CPUs exactly one passes, of a token that is remembered.
#[test]
fn the_same_proof() -> Result<()> {
    let _alone = alone();
    let others = cpus()?.len() - 1;
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS));
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let token = world::proof_number(1);
        let frames: Vec<_> = (0..rounds)
            .map(|seq| vec![Packet::with_proof(&token, seq as u32, TS).over(family).bytes()])
            .collect();
        ensure_passing(&at_once(&program, &frames)?, 1)?;
        ensure_counted(&program, &before, &[(Reason::Forwarded, rounds), (Reason::Replay, rounds * others)])?;
    }
    Ok(())
}

/// And of a token that is new to all of them.
#[test]
fn the_first_proof_of_a_token() -> Result<()> {
    let _alone = alone();
    let others = cpus()?.len() - 1;
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS / 2));
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let first = |number| Packet::with_proof(&world::proof_number(number), 0, TS).over(family).bytes();
        let frames: Vec<_> = (0..rounds as u64).map(|number| vec![first(number)]).collect();
        ensure_passing(&at_once(&program, &frames)?, 1)?;
        ensure_counted(&program, &before, &[(Reason::Forwarded, rounds), (Reason::Replay, rounds * others)])?;
        ensure!(program.sessions().iter().count() == rounds);
    }
    Ok(())
}

/// Different packets of one token lose nothing to each other, though they change the same words.
#[test]
fn different_proofs() -> Result<()> {
    let _alone = alone();
    let cpus = cpus()?.len();
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS));
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let token = world::proof_number(1);
        let packet = |seq: usize| Packet::with_proof(&token, seq as u32, TS).over(family).bytes();
        let frames: Vec<_> = (0..rounds)
            .map(|round| (0..cpus).map(|cpu| packet(round * cpus + (cpu + round) % cpus)).collect())
            .collect();
        ensure_passing(&at_once(&program, &frames)?, cpus)?;
        ensure_counted(&program, &before, &[(Reason::Forwarded, rounds * cpus)])?;
    }
    Ok(())
}

/// The first packets of a BEARER token pass all, and make one entry.
#[test]
fn the_first_packets_of_a_token() -> Result<()> {
    let _alone = alone();
    let cpus = cpus()?.len();
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS / 2));
    for family in Family::BOTH {
        program.forget()?;
        let (before, hmacs) = (program.counts()?, program.hmacs()?);
        let first = |number| Packet::with_token(&world::token_number(number)).over(family).bytes();
        let frames: Vec<_> = (0..rounds as u64).map(|number| vec![first(number)]).collect();
        ensure_passing(&at_once(&program, &frames)?, cpus)?;
        ensure_counted(&program, &before, &[(Reason::Forwarded, rounds * cpus)])?;
        ensure!(program.sessions().iter().count() == rounds);
        let hmacs = (program.hmacs()? - hmacs) as usize;
        ensure!((rounds..=rounds * cpus).contains(&hmacs), "{hmacs} HMACs for {rounds} tokens");
    }
    Ok(())
}

/// A burst is not larger for being sent over all CPUs, and not smaller.
#[test]
fn one_rate() -> Result<()> {
    let _alone = alone();
    let cpus = cpus()?.len();
    let rounds = at_scale(ROUNDS);
    let burst = rounds * cpus / 2 + 1;
    let mut program = loaded()?;
    let service = world::proving();
    let service = Service { flags: service.flags | FLAG_RATED, ..service };
    let rates = vec![ClassRate { class: 1, per_second: 1000, burst: burst as u32 }];
    program.enter(&World { rates, ..World::with_service(service) })?;
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

/// Of two addresses at once, one is a token's only source.
#[test]
fn one_source() -> Result<()> {
    let _alone = alone();
    let cpus = cpus()?.len();
    let (mut program, rounds) = (loaded()?, at_scale(ROUNDS / 2));
    program.enter(&World::with_service(Service { max_sources: 1, ..world::proving() }))?;
    for family in Family::BOTH {
        program.forget()?;
        let before = program.counts()?;
        let from = |number: usize, cpu: usize| {
            let mut packet = Packet::with_token(&world::token_number(number as u64));
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
