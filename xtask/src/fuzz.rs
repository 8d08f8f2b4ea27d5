//! `cargo xtask fuzz`: runs libFuzzer, through cargo-fuzz, on every parser of external bytes. The parsers' invariants
//! are in `tests/src/fuzz/`, the targets in `tests/fuzz/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::report::{Counts, Report};
use crate::{command, log};

/// The version that is built if none is installed.
const CARGO_FUZZ: &str = "0.13.2";

/// Longer inputs find nothing new, and the fuzzer tries fewer of them.
const LONGEST_INPUT: u32 = 4096;

/// Seconds until one input counts as a hang.
const LONGEST_RUN: u32 = 10;

/// The selection of targets.
#[derive(clap::Args)]
pub struct Options {
    /// One target; all of them if not given
    #[arg(value_parser = target)]
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Seed of the fuzzer; 0: random
    #[arg(long, default_value_t = 0)]
    seed: u32,
}

/// `cargo xtask fuzz`.
pub fn run(options: &Options) -> Result<()> {
    let fuzzer = Fuzzer::make()?;
    let targets = match &options.target {
        Some(target) => vec![target.clone()],
        None => targets()?,
    };
    let mut table = vec![format!("{:<16} {:>12} {:>10} {:>9}", "target", "executions", "edges", "features")];
    for target in targets {
        let figures = fuzzer.run(&target, options.seconds, options.seed)?;
        table.push(format!(
            "{target:<16} {:>12} {:>10} {:>9}",
            figures.executions, figures.edges, figures.features
        ));
    }
    println!("\n{}", table.join("\n"));
    Ok(())
}

/// A few seconds of each target, with the same random numbers every time.
pub fn run_briefly(report: &mut Report) {
    let made = || Ok((Fuzzer::make()?, targets()?));
    let Some((fuzzer, targets)) = report.step("fuzz: setup", made) else { return };
    for target in targets {
        report.group(&format!("fuzz: {target}"), || {
            fuzzer.run(&target, 5, 1)?;
            Ok(Counts::ONE)
        });
    }
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let directory = command::root().join("tests/fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// A target's name, from the command line.
fn target(name: &str) -> Result<String> {
    let targets = targets()?;
    ensure!(targets.iter().any(|target| target == name), "take one of {}", targets.join(", "));
    Ok(name.to_owned())
}

/// cargo-fuzz, and its sanitizer.
struct Fuzzer {
    cargo_fuzz: PathBuf,
    sanitizer: &'static str,
}

/// The figures of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    edges: u64,
    features: u64,
}

impl Fuzzer {
    /// With the cargo-fuzz in PATH, or one that is built under target/.
    fn make() -> Result<Self> {
        let cargo_fuzz = match command::find("cargo-fuzz") {
            Some(found) => found,
            None => make_cargo_fuzz()?,
        };
        // Debian's compiler comes without its library.
        let sanitizer = if has_address_sanitizer()? { "address" } else { "none" };
        Ok(Self { cargo_fuzz, sanitizer })
    }

    /// Runs a target and shows its output. A finding is an error, and is kept under target/.
    fn run(&self, target: &str, seconds: u32, seed: u32) -> Result<Figures> {
        let place = command::target().join("fuzz");
        let [found, findings] = ["corpus", "findings"].map(|name| place.join(name).join(target));
        for directory in [&found, &findings] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        log::say(format_args!("fuzz: {target} for {seconds} s, sanitizer: {}", self.sanitizer));
        let (text, status) = log::record(
            self.cargo_fuzz("run")
                .args(["--sanitizer", self.sanitizer, "--target-dir"])
                .arg(&place)
                .arg(target)
                // New cases go to the first.
                .args([&found, &command::root().join("tests/fuzz/corpus").join(target)])
                .arg("--")
                .arg(format!("-artifact_prefix={}/", findings.display()))
                .args([format!("-max_total_time={seconds}"), format!("-seed={seed}")])
                .args([format!("-max_len={LONGEST_INPUT}"), format!("-timeout={LONGEST_RUN}")]),
        )?;
        let mut figures = Figures::default();
        text.lines().for_each(|line| figures.read(line));
        ensure!(
            status.success() && figures.executions > 0,
            "fuzz: {target} ended with {status}\ntry: fix what it shows, and keep the input of {} as a case \
             with a name \
             in tests/fuzz/corpus/{target}",
            findings.display()
        );
        Ok(figures)
    }

    fn cargo_fuzz(&self, subcommand: &str) -> Command {
        let mut cargo_fuzz = command::command(&self.cargo_fuzz);
        cargo_fuzz
            .args([subcommand, "--fuzz-dir", "tests/fuzz"])
            // The flags for coverage are unstable, the compiler is not.
            .env("RUSTC_BOOTSTRAP", "1");
        // In memory: the store's files are written and synced again and again.
        if Path::new("/dev/shm").is_dir() {
            cargo_fuzz.env("TMPDIR", "/dev/shm");
        }
        cargo_fuzz
    }
}

fn make_cargo_fuzz() -> Result<PathBuf> {
    let place = command::target().join(format!("setup/cargo-fuzz-{CARGO_FUZZ}"));
    let made = place.join("bin/cargo-fuzz");
    if !made.is_file() {
        log::say(format_args!("setup: building cargo-fuzz {CARGO_FUZZ}"));
        log::run_quietly(
            "cargo-fuzz",
            command::cargo("install")
                .args(["cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--root"])
                .arg(&place)
                .arg("--target-dir")
                .arg(place.join("target")),
        )?;
        fs::remove_dir_all(place.join("target")).context("cannot remove what building cargo-fuzz left")?;
    }
    Ok(made)
}

/// Whether the compiler that cargo takes has AddressSanitizer's library.
fn has_address_sanitizer() -> Result<bool> {
    let libraries = command::output(command::command("rustc").args(["--print", "target-libdir"]))?;
    let entries = fs::read_dir(libraries.trim()).context("cannot read the compiler's libraries")?;
    Ok(entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with("_rt.asan.a")))
}

impl Figures {
    /// Reads lines such as `#29  DONE   cov: 3588 ft: 8808 corp: 28/4938b …`.
    fn read(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix('#') else { return };
        let mut words = rest.split_whitespace();
        let Some(executions) = words.next().and_then(|word| word.parse().ok()) else { return };
        self.executions = executions;
        while let Some(word) = words.next() {
            let figure = match word {
                "cov:" => &mut self.edges,
                "ft:" => &mut self.features,
                _ => continue,
            };
            *figure = words.next().and_then(|word| word.parse().ok()).unwrap_or(*figure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_figures_counts() {
        let mut figures = Figures::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#29\tDONE   cov: 3588 ft: 8808 corp: 28/4938b lim: 1023 exec/s: 0 rss: 51Mb",
            "Done 29 runs in 0 second(s)",
        ] {
            figures.read(line);
        }
        assert_eq!(figures, Figures { executions: 29, edges: 3588, features: 8808 });
    }
}
