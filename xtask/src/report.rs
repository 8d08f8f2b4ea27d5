//! The output of `cargo xtask test` and `check`: a line for each group, with its time and its counts, and the output
//! of a group only if it failed.

use std::fs;
use std::io::{self, Write as _};
use std::process::{Command, ExitStatus};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{command, log};

/// The groups that have run so far.
pub struct Report {
    verbose: bool,
    counts: Counts,
    failed: Vec<String>,
}

/// The number of tests by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Not run.
    pub skipped: u64,
}

impl Report {
    /// `verbose`: all output is shown at once.
    pub const fn new(verbose: bool) -> Self {
        Self { verbose, counts: Counts { passed: 0, failed: 0, skipped: 0 }, failed: Vec::new() }
    }

    /// Runs a group that is no test, such as a build; it fails where the closure does.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        let mut value = None;
        self.group(name, || {
            value = Some(work()?);
            Ok(Counts::default())
        });
        value
    }

    /// Runs a group of tests. It fails where the closure does, and where a test has failed.
    pub fn group(&mut self, name: &str, work: impl FnOnce() -> Result<Counts>) {
        let begun = Instant::now();
        let mut log = None;
        if self.verbose {
            eprintln!("\n{name}");
        } else {
            print!("{name:<32} ");
            // What cannot be flushed is shown when the line is complete.
            let _ = io::stdout().flush();
        }
        let outcome = if self.verbose {
            work()
        } else {
            log::begin(name).and_then(|path| {
                log = Some(path);
                work()
            })
        };
        log::end();
        let (mut counts, error) = match outcome {
            Ok(counts) => (counts, None),
            Err(error) => (Counts { failed: 1, ..Counts::default() }, Some(error)),
        };
        let word = if counts.failed == 0 { "passed" } else { "FAILED" };
        let name_again = if self.verbose { format!("{name:<32} ") } else { String::new() };
        let shown = if counts == Counts::default() { String::new() } else { format!("   {counts}") };
        println!("{name_again}{word} {:>6.1} s{shown}", begun.elapsed().as_secs_f64());
        if counts.failed > 0 {
            self.failed.push(name.to_owned());
            if let Some(path) = log {
                let text = fs::read(&path).unwrap_or_default();
                eprintln!("{}", String::from_utf8_lossy(&text).trim_end());
            }
        }
        if let Some(error) = error {
            eprintln!("{}", command::causes(&error));
            counts.failed = 1;
        }
        self.counts.add(counts);
    }

    /// Whether a group has failed.
    pub const fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The last line: how many of `what` there were. An error where a group has failed, or none has passed.
    pub fn finish(self, what: &str) -> Result<()> {
        println!("\n{what}: {}", self.counts);
        ensure!(
            self.failed.is_empty(),
            "failed: {}\ntry: read what is printed below its line; --verbose shows all of it as it comes",
            self.failed.join("; ")
        );
        ensure!(self.counts.passed > 0, "nothing was tested");
        Ok(())
    }
}

impl Counts {
    /// One test, which has passed.
    pub const ONE: Self = Self { passed: 1, failed: 0, skipped: 0 };

    /// Parses libtest's result lines, one for each binary: `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    pub fn of_libtest(text: &str) -> Result<Self> {
        let mut counts = Self::default();
        let mut results = 0;
        for line in text.lines() {
            let Some((_, result)) = line.split_once("test result: ") else { continue };
            results += 1;
            let figure = |word: &str| {
                let part = result.split("; ").find_map(|part| part.trim_end().strip_suffix(word));
                let number = part.and_then(|part| part.trim().rsplit(' ').next()?.parse().ok());
                number.with_context(|| format!("no number of tests that {word} in {line:?}"))
            };
            counts.add(Self {
                passed: figure("passed")?,
                failed: figure("failed")?,
                skipped: figure("ignored")?,
            });
        }
        ensure!(results > 0, "it ended without a result of its tests");
        Ok(counts)
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Runs a test program to its end and counts its tests.
pub fn libtest(command: &mut Command) -> Result<Counts> {
    let (text, status) = log::record(command)?;
    verdict(Counts::of_libtest(&text), status).with_context(|| command::shown(command))
}

/// A program that fails has failed, whatever it has counted.
fn verdict(counts: Result<Counts>, status: ExitStatus) -> Result<Counts> {
    match counts {
        Ok(counts) if status.success() == (counts.failed == 0) => Ok(counts),
        Ok(counts) => bail!("{counts}, and it ended with {status}"),
        Err(error) => Err(error.context(status.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    const PASSED: &str =
        "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 1.00s";
    const FAILED: &str = "test result: FAILED. 11 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn results_of_several_binaries_add_up() {
        let counts = Counts::of_libtest(&format!("running 12 tests\n{PASSED}\r\n\n{FAILED}\n")).unwrap();
        assert_eq!(counts, Counts { passed: 23, failed: 2, skipped: 1 });
        assert_eq!(counts.to_string(), "23 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn silence_and_contradictions_are_failures() {
        let (ok, failed) = (ExitStatus::from_raw(0), ExitStatus::from_raw(101 << 8));
        let killed = ExitStatus::from_raw(9);
        let counts = |text| Counts::of_libtest(text);
        assert!(verdict(counts(""), ok).is_err());
        assert!(verdict(counts(PASSED), failed).is_err());
        assert!(verdict(counts(PASSED), killed).is_err());
        assert!(verdict(counts(FAILED), ok).is_err());
        assert_eq!(verdict(counts(PASSED), ok).unwrap().passed, 12);
        assert_eq!(verdict(counts(FAILED), failed).unwrap().failed, 2);
    }

    #[test]
    fn a_failed_group_fails_the_report() {
        let mut report = Report::new(true);
        report.group("one", || Ok(Counts::ONE));
        report.step("two", || -> Result<()> { bail!("no compiler") });
        assert!(report.has_failed());
        assert_eq!(report.counts, Counts { passed: 1, failed: 1, skipped: 0 });
        assert!(report.finish("tests").unwrap_err().to_string().contains("failed: two"));
        assert!(Report::new(true).finish("tests").unwrap_err().to_string().contains("nothing was tested"));
    }
}
