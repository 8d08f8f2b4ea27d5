//! What the program costs: nanoseconds per packet by the way it takes, beside a program that does nothing, and packets
//! per second across a veth pair.
//!
//! **How.** The kernel runs the program on one packet many times and tells the mean (BPF_PROG_TEST_RUN, whole
//! nanoseconds), on one CPU. Every row is sampled in turns with its own empty program, whose median is subtracted. After
//! each sample the counters must say that every single packet took the way the row names.
//!
//! **Rows that need more than one packet.** A repeated packet is always the same one, and once rewritten it is another.
//! For these rows a small program comes first (tests/replay/src/main.rs): it puts the next of a table of tokens into
//! the frame, gives a changed frame its length and its headers back, and becomes the program under test by a tail call.
//! The same with a program under test that does nothing is these rows' empty program; where the frame changes its
//! length, so it does there, once per run. Tables are read from front to back and hold the tokens in random order, other
//! than the order in which they came into the cache.
//!
//! **A row more.** `bad_full_tag` is a full check without what follows it: beside `first_packet` it tells how much of a
//! first packet is HMAC, and how much its place in the cache.
//!
//! **What this is not.** The packet is in the first-level cache, the driver's part is missing, and nobody else wants the
//! CPU's caches. Absolute numbers belong to the machine; compare within one run.

mod forwarding;
mod proofs;
mod report;
mod rows;
mod veth;

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_common::maps::SESSIONS_DEFAULT;
use lb_tests::{
    model::program::{Program, pin_to_cpu, small},
    tools::{options, replay::Replay},
};
use tollgate::datapath::Options;

use crate::report::Report;

/// Measures Tollgate's XDP program on this machine.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    #[command(flatten)]
    options: options::Bench,
}

/// How much is measured.
pub struct Effort {
    /// Samples of each row.
    pub samples: usize,
    /// Runs of the program in a sample.
    pub repeat: u32,
    /// First packets of tokens in a sample.
    pub first_packets: u32,
    /// Seconds of a sample across the veth pair.
    pub veth_seconds: f64,
}

const FULL: Effort = Effort { samples: 21, repeat: 200_000, first_packets: 5_000, veth_seconds: 1.0 };
const QUICK: Effort = Effort { samples: 5, repeat: 50_000, first_packets: 5_000, veth_seconds: 0.3 };

/// The program with the token cache of a configuration without numbers, and with one that holds a million tokens.
pub struct Programs {
    usual: Program,
    large: Program,
}

fn main() -> Result<()> {
    let Arguments { options } = Arguments::parse();
    let effort = if options.quick { QUICK } else { FULL };
    // The last CPU: interrupts tend to come to the first.
    let cpus = aya::util::online_cpus().map_err(|(file, error)| error.context_of(file))?;
    let (first, last) = (cpus[0] as usize, cpus[cpus.len() - 1] as usize);
    pin_to_cpu(last)?;

    let load = |sessions| Program::load_with(&Options { sessions, hmac_cost_ns: 0, ..small() });
    let mut programs = Programs { usual: load(SESSIONS_DEFAULT)?, large: load(1 << 20)? };
    let mut replay = Replay::load(rows::tokens_len(&effort))?;
    let rows = rows::measure(&mut programs, &mut replay, &effort)?;
    let rates = veth::measure(&mut programs.usual, &mut replay, &effort, first)?;

    let report = Report::new(rows, rates);
    report.print();
    if let Some(path) = options.json {
        std::fs::write(&path, report.json()? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// aya names the file that it could not read beside the error.
trait ContextOf {
    fn context_of(self, file: &str) -> anyhow::Error;
}

impl ContextOf for std::io::Error {
    fn context_of(self, file: &str) -> anyhow::Error {
        anyhow::Error::new(self).context(format!("cannot read {file}"))
    }
}
