//! Legitimate traffic under floods of junk: what arrives, and how long it takes. `lb_tests::spike` says how.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_tests::{
    leftovers,
    spike::{Bench, COMPARED, Effort, Junk, MODERATE, Report},
};

/// Names of all that it makes begin so.
const NAMES: &str = "tgspike";

const FULL: Effort = Effort { quiet: Duration::from_secs(1), flood: Duration::from_secs(3), rounds: 5 };
const QUICK: Effort =
    Effort { quiet: Duration::from_millis(300), flood: Duration::from_millis(700), rounds: 1 };

/// Floods Tollgate and a program that does nothing, and measures what clients notice.
#[derive(Parser)]
struct Arguments {
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shorter and fewer floods: for a first impression
    #[arg(long)]
    quick: bool,
    /// Where the junk's random numbers begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            leftovers::hold_if_interrupted();
            eprintln!("spike: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let is_ours = |name: &str| name.starts_with(NAMES);
    leftovers::remove_when_interrupted(is_ours)?;
    leftovers::remove(is_ours)?;
    let effort = if arguments.quick { QUICK } else { FULL };
    let mut bench = Bench::new(NAMES, arguments.seed)?;
    let mut report = Report::default();
    for junk in Junk::ALL {
        eprintln!("spike: {}", junk.name());
        report.moderate.push(bench.at_tollgate(junk, Some(MODERATE), effort)?);
        let compared = COMPARED.contains(&junk);
        for _ in 0..if compared { effort.rounds } else { 1 } {
            report.all_out.push(bench.at_tollgate(junk, None, effort)?);
            if compared {
                report.empty.push(bench.at_empty(junk, None, effort)?);
            }
        }
    }
    println!("{}", report.tables());
    if let Some(path) = &arguments.json {
        write(path, &report)?;
    }
    let missed = report.missed();
    for goal in &missed {
        println!("missed: {goal}");
    }
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(path: &Path, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(&report.json())?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}
