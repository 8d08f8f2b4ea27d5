//! Tables that are written while a packet is handled. The daemon waits before it writes a bank again, but a
//! hypervisor can stop a CPU for longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::model::{
    case::{Case, both},
    fixture::{self, Fixture, SESSION},
    packet::Packet,
    program::{Program, Verdict, small},
};

use tollgate::datapath::TableSet;

use crate::{matrix::case_groups, proof::forwarded};

case_groups! {
    generations: "Tables that change while a packet is handled" => both(|_| cases());
}

/// While a generation is written, [`ControlPage::begun`](lb_common::control::ControlPage::begun) names it: from before
/// the first write until it is active.
#[test]
fn a_generation_is_announced_before_it_is_written() -> Result<()> {
    let mut program = Program::load_with(&small())?;
    let live = Arc::clone(&program.datapath().control_page);
    let over = AtomicBool::new(false);
    let generations = 20;
    let fixtures =
        [0, 1].map(|number| Fixture { backends: vec![fixture::backend(1 + number)], ..Fixture::default() });
    let tables = fixtures
        .map(|fixture| TableSet::new(&fixture.snapshot()))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let announced: BTreeSet<u32> = thread::scope(|scope| -> Result<_> {
        let watching = scope.spawn(|| {
            let mut seen = BTreeMap::<u32, u32>::new();
            while !over.load(Ordering::Acquire) {
                // Read in this order, the active generation may be newer than the announced one, and is at most one
                // behind it.
                let begun = live.begun();
                let generation = live.tables().generation;
                assert!(begun <= generation + 1, "{begun} was begun while {generation} is active");
                if begun == generation + 1 {
                    *seen.entry(begun).or_default() += 1;
                }
            }
            seen
        });
        for number in 0..generations {
            program.datapath().tables.publish(&tables[number % 2])?;
        }
        over.store(true, Ordering::Release);
        let seen = watching.join().ok().context("a thread has panicked")?;
        // Writing a generation takes milliseconds, so the reader sees each value many times, not once by chance.
        Ok(seen.into_iter().filter(|(_, times)| *times > 100).map(|(begun, _)| begun).collect())
    })?;
    ensure!(announced.len() * 2 > generations, "of {generations} generations, {announced:?} were announced");
    Ok(())
}

fn cases() -> Vec<Case> {
    let begun = |generations| Fixture { generations_begun: generations, ..Fixture::default() };
    let junk = Packet::with_payload(vec![0; 99]);
    let mut other = Packet::default();
    other.to.set_port(fixture::SERVICE.port() + 1);
    let mut cases = vec![
        forwarded("the next generation is being written", SESSION, &Packet::default()).with_fixture(begun(1)),
        Case::refused(
            "no token, while the next generation is being written",
            begun(1),
            &junk,
            Reason::NoToken,
        ),
        Case::not_ours("not for a service, while the next generation is being written", begun(1), &other),
    ];
    for generations in [2, 3, 1000, u32::MAX >> 1] {
        for (name, packet) in
            [("a valid token", &Packet::default()), ("no token", &junk), ("no service", &other)]
        {
            let name = format!("{name}, and {generations} generations began");
            let mut case = Case::not_ours(name, begun(generations), packet);
            case.expected.outcome.verdict = Verdict::Drop;
            case.expected.reason = Reason::TablesChanged;
            cases.push(case);
        }
    }
    cases
}
