//! The cost of the XDP program: nanoseconds per packet for each outcome, next to an empty program, and packets per
//! second across a veth pair.
//!
//! **Method.** The kernel runs the program on one packet many times on one CPU and reports the mean
//! (BPF_PROG_TEST_RUN, whole nanoseconds). Samples of a row alternate with samples of its own empty program, whose
//! median is subtracted. After each sample the counters must show that every packet had the outcome that the row
//! names.
//!
//! **Rows that need more than one packet.** A test run repeats one packet, and a packet that was rewritten is a
//! different one. For these rows a small program runs first (tests/replay/src/main.rs): it puts the next token of a
//! table into the frame, restores the length and the headers of a changed frame, and becomes the program under test
//! by a tail call. The empty program of these rows is the same with a program under test that does nothing; where the
//! frame changes its length, it changes there too, once per run. Tables are read from front to back and hold the
//! tokens in random order, which is not the order in which they entered the cache.
//!
//! **An additional row.** `bad_full_tag` is an HMAC verification without the steps after it: compared with
//! `first_packet`, it shows how much of a first packet is HMAC and how much is its cache entry.
//!
//! **Limits.** The packet is in the first-level cache, the driver's part is missing, and nothing else uses the CPU's
//! caches. Absolute numbers depend on the machine; compare numbers of one run.

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

/// The extent of the measurement.
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

/// The program with the token cache of the default configuration, and with a cache of a million tokens.
pub struct Programs {
    usual: Program,
    large: Program,
}

fn main() -> Result<()> {
    let Arguments { options } = Arguments::parse();
    let effort = if options.quick { QUICK } else { FULL };
    // The last CPU: most interrupts are handled by the first.
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

/// Adds the file that could not be read to an error of aya.
trait ContextOf {
    fn context_of(self, file: &str) -> anyhow::Error;
}

impl ContextOf for std::io::Error {
    fn context_of(self, file: &str) -> anyhow::Error {
        anyhow::Error::new(self).context(format!("cannot read {file}"))
    }
}
