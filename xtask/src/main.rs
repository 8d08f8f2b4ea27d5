//! `cargo xtask`: one file per subcommand, except that demo, benchmark and load test share `tools.rs`. Each
//! subcommand that builds runs setup first, which takes no time if nothing is missing.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod apt;
mod bare;
mod build;
mod check;
mod command;
mod fuzz;
mod kernels;
mod log;
mod mutants;
#[path = "../../tests/src/tools/options.rs"]
mod options;
mod preconditions;
mod report;
mod run;
mod setup;
mod test;
mod toolchain;
mod tools;

/// Builds, tests, measures and shows Tollgate.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Install what is missing, and print the BPF toolchain in use
    ///
    /// Debian packages are installed as root or by `sudo -n`; where neither works, the command to run is printed.
    /// Everything else goes under target/. Rustup is never asked to download anything.
    Setup,
    /// Build the XDP program and target/release/tollgate with the program inside
    Build,
    /// Build, then run tollgate: `cargo xtask run -- status -o json`
    Run(PassedOn),
    /// All tests: on the host, in this kernel and in Linux 6.1 (needs root)
    ///
    /// Without root: `cargo test` runs the host's tests.
    ///
    /// Five of the bugs in tests/mutants/program.toml are put into a copy of the code, one at a time: a test must fail.
    ///
    /// Prints a line for each group of tests, and the output of a group that fails; all output is under target/logs.
    Test(Shown),
    /// Demonstration: client, balancer, three backends, forged traffic, keys rotated under load (needs root)
    ///
    /// `--forward nat` uses another forwarding mode, `--ipv6` uses IPv6, `--keep` keeps the network namespaces for
    /// inspection.
    Demo(options::Demo),
    /// Benchmark: nanoseconds per packet, compared with an empty program (needs root)
    Bench(options::Bench),
    /// Load test: delivery and latency of legitimate traffic during floods of junk (needs root)
    ///
    /// Fails if a packet is lost while the machine is not saturated, or if delivery during a flood is worse than with
    /// a program that only drops the flood.
    LoadTest(options::LoadTest),
    /// Formatting, clippy and rustdoc, warnings as errors, for the host's crates and the BPF crate
    Check(Shown),
    /// Fuzz every parser of external bytes
    ///
    /// Findings are kept under target/fuzz/findings; `cargo test` replays the corpus in tests/fuzz/corpus.
    Fuzz(fuzz::Options),
    /// Put bugs into the code, one at a time, each of which a test must find (needs root)
    ///
    /// Two tables in tests/mutants/ name a change and the test that must fail for it; cargo-mutants changes the
    /// modules that need no kernel in all ways that it knows. Everything happens in a copy under target/mutants. The
    /// whole of it takes hours: `cargo xtask mutants --program` takes 15 minutes.
    Mutants(mutants::Options),
    /// Boot Debian's Linux 6.1 in QEMU and run the program's tests there
    Kernels,
}

/// The amount of output.
#[derive(clap::Args)]
struct Shown {
    /// Show all output at once
    #[arg(long)]
    verbose: bool,
}

/// Arguments for the program that the subcommand starts.
#[derive(clap::Args)]
struct PassedOn {
    /// Arguments for the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", command::causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Subcommands) -> Result<()> {
    match command {
        Subcommands::Setup => setup::show(),
        Subcommands::Build => build::show(),
        Subcommands::Run(passed_on) => run::run(&passed_on.args),
        Subcommands::Test(shown) => test::run(shown.verbose),
        Subcommands::Demo(_) => tools::DEMO.run(),
        Subcommands::Bench(_) => tools::BENCHMARK.run(),
        Subcommands::LoadTest(_) => tools::LOAD_TEST.run(),
        Subcommands::Check(shown) => check::run(shown.verbose),
        Subcommands::Fuzz(options) => fuzz::run(&options),
        Subcommands::Mutants(options) => mutants::run(&options),
        Subcommands::Kernels => kernels::run(),
    }
}
