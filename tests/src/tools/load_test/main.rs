//! Legitimate traffic during floods of junk: how much is delivered, and with what latency.
//! `lb_tests::tools::load_test` describes the method.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_tests::{
    testbed::cleanup::{self, Run},
    tools::{
        load_test::{Bench, COMPARED, Effort, Junk, MODERATE, Report},
        options,
    },
};

const FULL: Effort = Effort { quiet: Duration::from_secs(1), flood: Duration::from_secs(3), rounds: 5 };
const QUICK: Effort =
    Effort { quiet: Duration::from_millis(300), flood: Duration::from_millis(700), rounds: 1 };

/// Sends floods to Tollgate and to an empty program, and measures delivery to clients
#[derive(Parser)]
#[command(name = "cargo xtask load-test")]
struct Arguments {
    #[command(flatten)]
    options: options::LoadTest,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().options) {
        Ok(code) => code,
        Err(error) => {
            cleanup::hold_if_interrupted();
            eprintln!("load-test: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &options::LoadTest) -> Result<ExitCode> {
    let names = Run::start("tgload")?;
    let effort = if options.quick { QUICK } else { FULL };
    let mut bench = Bench::new(names.prefix(), options.seed)?;
    let mut report = Report::default();
    for junk in Junk::ALL {
        eprintln!("load-test: {}", junk.name());
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
    if let Some(path) = &options.json {
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
