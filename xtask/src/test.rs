//! `cargo xtask test`: every test there is, stage by stage, up to the first that fails.

use std::time::Instant;

use anyhow::Result;

use crate::build::{self, Built};
use crate::{command, fuzz, kernels, mutants};

/// A part of the tests, and what runs it.
type Stage = (&'static str, fn(&Built) -> Result<()>);

const STAGES: [Stage; 5] = [
    ("host tests", host_tests),
    ("kernel tests", kernel_tests),
    ("mutants", mutants::run_briefly),
    ("fuzzing", |_| fuzz::run_briefly()),
    ("Linux 6.1", kernels::run_tests),
];

/// Builds, then runs all stages; ends with a line for each.
pub fn run() -> Result<()> {
    command::require_root(
        "test",
        "loads XDP programs and makes network namespaces; `cargo test` alone does not",
    )?;
    let mut summary = Vec::new();
    let start = Instant::now();
    let built = build::run()?;
    summary.push(format!("{:<14} passed  {:>4} s", "build", start.elapsed().as_secs()));

    let mut outcome = Ok(());
    for (name, stage) in STAGES {
        if outcome.is_err() {
            summary.push(format!("{name:<14} not run"));
            continue;
        }
        eprintln!("\ntest: {name}");
        let start = Instant::now();
        outcome = stage(&built);
        let word = if outcome.is_ok() { "passed" } else { "FAILED" };
        summary.push(format!("{name:<14} {word}  {:>4} s", start.elapsed().as_secs()));
    }
    println!("\n{}", summary.join("\n"));
    outcome
}

/// What plain `cargo test` runs.
fn host_tests(built: &Built) -> Result<()> {
    command::run(&mut built.host_cargo("test"))
}

/// What loads the program or makes namespaces. One test binary after the other, with release's artefacts.
fn kernel_tests(built: &Built) -> Result<()> {
    command::run(built.host_cargo("test").args([
        "--release",
        "--package",
        "lb-tests",
        "--features",
        "kernel",
        "--tests",
    ]))
}
