//! `cargo xtask test`: all tests, stage by stage, up to the first stage that fails.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::{self, Built};
use crate::report::{Counts, Report, libtest};
use crate::setup::{self, Needs, Part};
use crate::{bare, command, fuzz, kernels, log, mutants};

/// The requirements of all tests.
const NEEDS: Needs = Needs {
    subcommand: "test",
    kernel: Some("loads XDP programs and makes network namespaces; `cargo test` alone does not"),
    parts: &[Part::Namespaces, Part::Checkers, Part::Emulator],
    built: "kernels",
    minutes: 15,
    then: Some("the tests for about 20 minutes"),
    gigabytes: 12,
};

/// A stage of the tests, and the function that runs its groups.
type Stage = (&'static str, fn(&Built, &mut Report));

const STAGES: [Stage; 6] = [
    ("host", host_tests),
    ("kernel", kernel_tests),
    ("demo and benchmark", demo_and_benchmark),
    ("fuzz", |_, report| fuzz::run_briefly(report)),
    ("mutants", mutants::run_sample),
    ("Linux 6.1", kernels::run_tests),
];

/// Builds, then runs all stages; the last line has the totals.
pub fn run(verbose: bool) -> Result<()> {
    setup::check(&NEEDS)?;
    let mut report = Report::new(verbose);
    if let Some(built) = report.step("build", || build::run(&NEEDS)) {
        for (name, stage) in STAGES {
            if report.has_failed() {
                println!("{name:<32} not run");
            } else {
                stage(&built, &mut report);
            }
        }
    }
    report.finish("tests")
}

/// The tests that plain `cargo test` runs.
fn host_tests(built: &Built, report: &mut Report) {
    let binaries = || test_binaries(built.host_cargo("test").arg("--no-run"));
    let Some(binaries) = report.step("host: build", binaries) else { return };
    for binary in binaries {
        report.group(&format!("host: {}", binary.name), || {
            libtest(built.test_program(&binary.program).current_dir(&binary.directory))
        });
    }
    report.group("host: documentation", || libtest(built.host_cargo("test").arg("--doc")));
}

/// The tests that load the program or make namespaces: one test binary after the other, as release builds, in the
/// bare environment.
fn kernel_tests(built: &Built, report: &mut Report) {
    let mut cargo = built.host_cargo("test");
    cargo.args(["--release", "--package", "lb-tests", "--features", "kernel", "--tests", "--no-run"]);
    let Some(binaries) = report.step("kernel: build", || test_binaries(&mut cargo)) else { return };
    for binary in binaries {
        report.group(&format!("kernel: {}", binary.name), || {
            let mut tests = bare::command(built, &binary.program);
            tests.env("PROMTOOL", setup::promtool()?).env("SYSTEMD_ANALYZE", setup::systemd_analyze()?);
            libtest(tests.current_dir(&binary.directory))
        });
    }
}

/// The demo and the benchmark, in the same environment.
fn demo_and_benchmark(built: &Built, report: &mut Report) {
    for (name, selection, arguments) in
        [("demo", ["--bin", "demo"], &[][..]), ("benchmark", ["--bench", "program"], &["--quick"])]
    {
        report.group(name, || {
            let program = built.test_executable(selection)?;
            let mut program = bare::command(built, &program);
            let (_, status) = log::record(program.args(arguments))?;
            anyhow::ensure!(status.success(), "{}: {status}", command::shown(&program));
            Ok(Counts::ONE)
        });
    }
}

/// A program with tests.
struct Binary {
    name: String,
    program: PathBuf,
    /// The directory of its package, where cargo starts it.
    directory: PathBuf,
}

/// Builds test binaries; `cargo` is a command that does not run them.
fn test_binaries(cargo: &mut Command) -> Result<Vec<Binary>> {
    let messages = command::output(cargo.arg("--message-format=json-render-diagnostics"))?;
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("a message of cargo")?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let is_test = message["profile"]["test"] == true;
        let Some(program) = text(&message["executable"]).filter(|_| is_test).map(PathBuf::from) else {
            continue;
        };
        let manifest = PathBuf::from(text(&message["manifest_path"]).context("a package has a manifest")?);
        let directory = manifest.parent().context("a manifest is in a directory")?.to_owned();
        let package = directory.file_name().context("a package has a directory")?.to_string_lossy();
        let kind = text(&message["target"]["kind"][0]).context("a target is of a kind")?;
        let name = match kind.as_str() {
            "lib" => package.into_owned(),
            _ => format!(
                "{package}, {kind} {}",
                text(&message["target"]["name"]).context("a target has a name")?
            ),
        };
        binaries.push(Binary { name, program, directory });
    }
    anyhow::ensure!(!binaries.is_empty(), "cargo built no test");
    Ok(binaries)
}
