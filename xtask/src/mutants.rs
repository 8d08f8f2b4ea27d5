//! `cargo xtask mutants`: does any test notice? One bug at a time is put into a copy of the tree under target/mutants,
//! and a test must fail. The tables in `tests/mutants/` name a change and the test that must fail for it;
//! cargo-mutants makes changes of its own to the modules that need no kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::build::{self, Built};
use crate::report::{Counts, Report};
use crate::setup::{self, Needs, Part};
use crate::{command, log};

mod tree;

use tree::Tree;

/// The version that is built where none is found.
const CARGO_MUTANTS: &str = "27.1.0";

/// Whose every function is changed: they decide without a kernel, by their own unit tests.
const MODULES: [&str; 5] = ["keyring", "revocation", "store", "balancer", "config"];

/// How many mutants of the program's table `cargo xtask test` tries: a different sample for each commit. It tries none
/// of the daemon's table: that would build the daemon and its dependencies once more, without optimization.
const SAMPLE: usize = 5;

/// How long a mutant's test may run. A mutant that hangs is one that was noticed.
const PATIENCE: Duration = Duration::from_secs(300);

/// What to run; everything if nothing is chosen.
#[derive(clap::Args, Default)]
pub struct Options {
    /// The table of bugs in the XDP program
    #[arg(long)]
    program: bool,
    /// The table of bugs in the daemon
    #[arg(long)]
    daemon: bool,
    /// cargo-mutants over the modules that need no kernel
    #[arg(long)]
    modules: bool,
    /// Of the tables, only mutants of files whose path contains this; of the modules, this one
    filter: Option<String>,
    /// Of each table only so many, chosen by --seed
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Chooses the sample; the commit if not given
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Of cargo-mutants' mutants the Kth of N parts, as K/N
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
}

/// A bug, and the test that must find it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// What it breaks.
    what: String,
    /// The file that is changed.
    file: String,
    /// The text that is replaced, which the file has exactly once.
    from: String,
    /// What it is replaced by.
    to: String,
    /// The test that must fail.
    test: Test,
}

/// A test by where it is and its whole name, as in `daemon keys::rotation_by_itself`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct Test {
    suite: Suite,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Suite {
    /// The program, packet by packet: `tests/tests/program`.
    Program,
    /// The daemon in namespaces: `tests/tests/daemon`.
    Daemon,
    /// Unit tests of `lb-userspace`.
    Unit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    mutant: Vec<Mutant>,
}

/// What trying mutants takes.
const NEEDS: Needs = Needs {
    subcommand: "mutants",
    kernel: Some("loads XDP programs and makes network namespaces"),
    parts: &[Part::Namespaces, Part::Checkers],
    built: "mutants",
    minutes: 10,
    then: Some("the mutants, for hours if none are selected"),
    gigabytes: 8,
};

/// `cargo xtask mutants`.
pub fn run(options: &Options) -> Result<()> {
    setup::check(&NEEDS)?;
    let all = !(options.program || options.daemon || options.modules);
    let mut outcomes = Vec::new();
    if all || options.program || options.daemon {
        let built = build::run(&NEEDS)?;
        for (chosen, table) in [(options.program, "program"), (options.daemon, "daemon")] {
            if all || chosen {
                outcomes.push(run_table(&built, table, options).map(|count| {
                    println!("all {count} mutants of tests/mutants/{table}.toml were found");
                }));
            }
        }
    }
    if all || options.modules {
        outcomes.push(run_modules(options));
    }
    outcomes.into_iter().collect()
}

/// Tries a sample of the program's table, as a stage of `cargo xtask test`.
pub fn run_sample(built: &Built, report: &mut Report) {
    let seed = seed_of_commit();
    println!("{:<32} --seed {seed}", "mutants: sample");
    report.group(&format!("mutants: {SAMPLE} of the program"), || {
        let options = Options { sample: Some(SAMPLE), seed: Some(seed), ..Options::default() };
        let found = run_table(built, "program", &options)?;
        Ok(Counts { passed: found as u64, ..Counts::default() })
    });
}

/// Tries the mutants of a table. Returns how many there were.
///
/// # Errors
/// If a mutant was found by no test; names all of these.
fn run_table(built: &Built, table: &str, options: &Options) -> Result<usize> {
    let mutants = chosen(read(table)?, options)?;
    let runner = Runner::new(built)?;
    let start = Instant::now();
    let tests: BTreeSet<_> = mutants.iter().map(|mutant| mutant.test.clone()).collect();
    runner.baseline(&tests)?;
    log::say(format_args!(
        "mutants: {} tests pass without mutants ({} s)",
        tests.len(),
        start.elapsed().as_secs()
    ));
    let mut failures = Vec::new();
    for mutant in &mutants {
        let start = Instant::now();
        let outcome = runner.try_mutant(mutant);
        let seconds = start.elapsed().as_secs();
        match outcome {
            Ok(()) => log::say(format_args!("found    {seconds:>4} s  {}: {}", mutant.file, mutant.what)),
            Err(error) => {
                log::say(format_args!(
                    "ERROR    {seconds:>4} s  {}: {}: {error:#}",
                    mutant.file, mutant.what
                ));
                failures.push(format!("{}: {}: {error:#}", mutant.file, mutant.what));
            }
        }
    }
    ensure!(
        failures.is_empty(),
        "{} of {} mutants were not found:\n{}\ntry: write a test that fails with the mutant, or correct its entry in \
         tests/mutants/{table}.toml",
        failures.len(),
        mutants.len(),
        failures.join("\n")
    );
    Ok(mutants.len())
}

fn read(table: &str) -> Result<Vec<Mutant>> {
    let path = command::root().join(format!("tests/mutants/{table}.toml"));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let table: Table = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(table.mutant)
}

/// Those of the filter, and of them a sample.
fn chosen(mut mutants: Vec<Mutant>, options: &Options) -> Result<Vec<Mutant>> {
    if let Some(filter) = &options.filter {
        mutants.retain(|mutant| mutant.file.contains(filter));
    }
    if let Some(count) = options.sample.filter(|count| *count < mutants.len()) {
        let seed = options.seed.unwrap_or_else(seed_of_commit);
        log::say(format_args!("mutants: {count} of {}, chosen by --seed {seed}", mutants.len()));
        mutants = sample(mutants, count, seed);
    }
    ensure!(!mutants.is_empty(), "the filter leaves no mutant");
    Ok(mutants)
}

/// The same for the same commit; another sample after the next.
fn seed_of_commit() -> u64 {
    let head = command::command("git").args(["rev-parse", "HEAD"]).stderr(Stdio::null()).output();
    let head = head.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let digits = head.and_then(|head| String::from_utf8(head.get(..8)?.to_vec()).ok());
    digits.and_then(|digits| u64::from_str_radix(&digits, 16).ok()).unwrap_or(0)
}

/// So many, without repetition (splitmix64, Steele et al., OOPSLA 2014).
fn sample<T>(mut from: Vec<T>, count: usize, mut seed: u64) -> Vec<T> {
    let mut random = move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize
    };
    (0..count.min(from.len())).map(|_| from.swap_remove(random() % from.len())).collect()
}

/// Builds mutants in a copy of the tree, and runs the tests on them.
struct Runner<'a> {
    built: &'a Built,
    tree: Tree,
    /// Where the copy is built.
    target: PathBuf,
    /// Programs of `lb-tests`, built once, without mutants.
    programs: std::cell::RefCell<BTreeMap<Suite, PathBuf>>,
}

/// What a run of tests came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
}

impl<'a> Runner<'a> {
    fn new(built: &'a Built) -> Result<Self> {
        let place = command::target().join("mutants");
        let tree = Tree::copy(command::root(), &place.join("tree"))?;
        Ok(Self { built, tree, target: place.join("target"), programs: BTreeMap::new().into() })
    }

    /// Every test passes where nothing is changed: else its failure would say nothing.
    fn baseline(&self, tests: &BTreeSet<Test>) -> Result<()> {
        for suite in [Suite::Program, Suite::Daemon, Suite::Unit] {
            let names: Vec<_> =
                tests.iter().filter(|test| test.suite == suite).map(|test| test.name.as_str()).collect();
            if names.is_empty() {
                continue;
            }
            self.build(suite)?;
            let (outcome, said) = self.test(suite, &names)?;
            ensure!(
                outcome == Outcome::Passed && said.contains(&format!("ok. {} passed", names.len())),
                "not all of the tests pass without mutants, or there are none of these names: {}\n{}",
                names.join(" "),
                last_lines(&said)
            );
        }
        Ok(())
    }

    /// Puts a mutant into the copy, and has its test fail.
    fn try_mutant(&self, mutant: &Mutant) -> Result<()> {
        let _changed = self.tree.change(&mutant.file, &mutant.from, &mutant.to)?;
        let Test { suite, name } = &mutant.test;
        self.build(*suite).context("the mutant does not build")?;
        let (outcome, said) = self.test(*suite, &[name])?;
        // Any test would notice that: it says nothing of what the test looks at.
        ensure!(
            !said.contains("BPF_PROG_LOAD") && !said.contains("erifier"),
            "the kernel refuses the mutant\n{}",
            last_lines(&said)
        );
        ensure!(outcome == Outcome::Failed, "it survives {name}");
        Ok(())
    }

    /// Builds what the tests of a suite run on.
    fn build(&self, suite: Suite) -> Result<()> {
        let mut cargo = match suite {
            Suite::Program => {
                let mut cargo = build::bpf_cargo_into(&self.built.bpf, "build", &self.target.join("bpf"))?;
                cargo.arg("--release");
                cargo
            }
            Suite::Daemon => {
                let mut cargo = self.host_cargo("build");
                cargo.args(["--package", "lb-userspace"]);
                cargo
            }
            Suite::Unit => {
                let mut cargo = self.host_cargo("test");
                cargo.args(["--package", "lb-userspace", "--lib", "--no-run"]);
                cargo
            }
        };
        let (status, said) = tree::run(cargo.arg("--quiet").current_dir(self.tree.path()), None)?;
        ensure!(status.is_some_and(|status| status.success()), "{}", last_lines(&said));
        Ok(())
    }

    /// Runs the tests of these names, and nothing else.
    fn test(&self, suite: Suite, names: &[&str]) -> Result<(Outcome, String)> {
        let mut tests = match suite {
            Suite::Program => {
                let mut tests = self.built.test_program(self.program(suite)?);
                let object = self.target.join("bpf/bpfel-unknown-none/release/tollgate-xdp");
                tests.env("TOLLGATE_TEST_OBJECT", object);
                tests
            }
            Suite::Daemon => {
                let mut tests = self.built.test_program(self.program(suite)?);
                tests.env("TOLLGATE_BIN", self.target.join("debug/tollgate"));
                tests
            }
            Suite::Unit => {
                let mut cargo = self.host_cargo("test");
                cargo.args(["--package", "lb-userspace", "--lib", "--"]).current_dir(self.tree.path());
                cargo
            }
        };
        let (status, said) = tree::run(tests.arg("--exact").args(names), Some(PATIENCE))?;
        match status.map(|status| status.code()) {
            Some(Some(0)) if said.contains(" 0 passed") => bail!("there is no test {}", names.join(", ")),
            Some(Some(0)) => Ok((Outcome::Passed, said)),
            Some(Some(101)) | None => Ok((Outcome::Failed, said)),
            Some(other) => bail!("the tests ended with status {other:?}\n{}", last_lines(&said)),
        }
    }

    fn program(&self, suite: Suite) -> Result<PathBuf> {
        if let Some(program) = self.programs.borrow().get(&suite) {
            return Ok(program.clone());
        }
        let name = if suite == Suite::Program { "program" } else { "daemon" };
        let program = self.built.test_executable(["--test", name])?;
        self.programs.borrow_mut().insert(suite, program.clone());
        Ok(program)
    }

    /// Cargo for the copy's host crates: with debug assertions, incremental, and the object of the tree as it is.
    fn host_cargo(&self, subcommand: &str) -> Command {
        let mut cargo = self.built.host_cargo(subcommand);
        cargo.env("CARGO_TARGET_DIR", &self.target).env("CARGO_INCREMENTAL", "1");
        cargo
    }
}

impl TryFrom<String> for Test {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (suite, name) = text.split_once(' ').ok_or("a test is `SUITE NAME`")?;
        let suite = match suite {
            "program" => Suite::Program,
            "daemon" => Suite::Daemon,
            "unit" => Suite::Unit,
            other => return Err(format!("`{other}` is none of program, daemon, unit")),
        };
        Ok(Self { suite, name: name.to_owned() })
    }
}

/// The end of what a program printed.
fn last_lines(said: &str) -> String {
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// cargo-mutants, module by module. What survives is listed with a reason in `.cargo/mutants.toml`, or is an error.
fn run_modules(options: &Options) -> Result<()> {
    let cargo_mutants = match command::find("cargo-mutants") {
        Some(found) => found,
        None => make_cargo_mutants()?,
    };
    let place = command::target().join("mutants");
    let tree = Tree::copy(command::root(), &place.join("tree"))?;
    let wanted = |name: &str| options.filter.as_deref().is_none_or(|filter| filter == name);
    let userspace = MODULES.map(|module| {
        (module, "lb-userspace", format!("lb-userspace/src/{module}/**"), format!("{module}::"))
    });
    let common = ("lb-common", "lb-common", "lb-common/src/**".to_owned(), String::new());
    let mut survivors = Vec::new();
    for (name, package, files, tests) in userspace.into_iter().chain([common]) {
        if !wanted(name) {
            continue;
        }
        eprintln!("mutants: {name}, by its own unit tests");
        let mut mutants = command::command(&cargo_mutants);
        mutants
            .args(["mutants", "--in-place", "--package", package, "--file", &files, "--colors", "never"])
            .args(["--minimum-test-timeout", "60", "--output"])
            .arg(place.join("modules").join(name))
            .args(options.shard.iter().flat_map(|shard| ["--shard", shard]))
            .current_dir(tree.path())
            .env("CARGO_TARGET_DIR", place.join("target"))
            .env("CARGO_INCREMENTAL", "1");
        fs::create_dir_all(place.join("modules").join(name)).context("cannot make target/mutants/modules")?;
        if package == "lb-userspace" {
            // The library's tests alone are built, and of them its own are run.
            mutants.args(["--cargo-arg=--lib", "--", "--", &tests]);
        }
        if let Err(error) = command::run(&mut mutants) {
            survivors.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(
        survivors.is_empty(),
        "{}\ntry: write a test for each that is MISSED above, or give the reason why none can find it in \
         .cargo/mutants.toml",
        survivors.join("\n")
    );
    Ok(())
}

fn make_cargo_mutants() -> Result<PathBuf> {
    let place = command::target().join(format!("setup/cargo-mutants-{CARGO_MUTANTS}"));
    let made = place.join("bin/cargo-mutants");
    if !made.is_file() {
        eprintln!("setup: building cargo-mutants {CARGO_MUTANTS}");
        log::run_quietly(
            "cargo-mutants",
            command::cargo("install")
                .args(["cargo-mutants", "--version", CARGO_MUTANTS, "--locked", "--root"])
                .arg(&place)
                .arg("--target-dir")
                .arg(place.join("target")),
        )?;
        fs::remove_dir_all(place.join("target")).context("cannot remove what building cargo-mutants left")?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What can be said of the tables without building anything; that each mutant is found takes root and minutes.
    #[test]
    fn every_mutant_applies() {
        for (table, least) in [("program", 40), ("daemon", 12)] {
            let mutants = read(table).unwrap();
            assert!(mutants.len() >= least, "only {} mutants of the {table}", mutants.len());
            for Mutant { what, file, from, to, .. } in &mutants {
                let path = command::root().join(file);
                let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
                assert_eq!(text.matches(from.as_str()).count(), 1, "{file}: {what}: `{from}`");
                assert_ne!(from, to, "{file}: {what}");
            }
        }
    }

    #[test]
    fn a_sample_is_the_same_for_a_seed() {
        let of = |seed| sample((0..100).collect::<Vec<_>>(), 5, seed);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let all: BTreeSet<_> = sample((0..100).collect(), 200, 3).into_iter().collect();
        assert_eq!(all.len(), 100, "none twice");
    }

    /// The sample of `cargo xtask test` reaches every mutant, as commits follow each other.
    #[test]
    fn every_mutant_is_in_some_sample() {
        let mutants = read("program").unwrap().len();
        // 32 bits, as the digits of a commit that are used.
        let seeds = (0..2000_u64).map(|commit| commit.wrapping_mul(0x9e37_79b9) & 0xffff_ffff);
        let drawn: BTreeSet<_> =
            seeds.flat_map(|seed| sample((0..mutants).collect(), SAMPLE, seed)).collect();
        assert_eq!(drawn.len(), mutants);
    }

    #[test]
    fn tests_are_named_whole() {
        let test = Test::try_from("unit store::tests::a".to_owned()).unwrap();
        assert_eq!(test, Test { suite: Suite::Unit, name: "store::tests::a".to_owned() });
        assert!(Test::try_from("kernel x".to_owned()).unwrap_err().contains("`kernel` is none of"));
        assert!(Test::try_from("program".to_owned()).is_err());
    }
}
