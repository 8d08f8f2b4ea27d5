//! `cargo xtask`: a file for each subcommand, but one for demo, benchmark and load test. Each but `setup` begins with setup, which takes no time when nothing is
//! missing.

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
    /// Install what is missing, and say which BPF toolchain is used
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
    /// A line for each group of tests; what a group printed where it failed, and under target/logs.
    Test(Shown),
    /// Demonstration: client, balancer, three backends, forged traffic, keys rotated under load (needs root)
    ///
    /// `--forward nat` shows another forwarding mode, `--ipv6` uses IPv6, `--keep` keeps the network namespaces for inspection.
    Demo(options::Demo),
    /// Nanoseconds per packet, beside an empty program's (needs root)
    Bench(options::Bench),
    /// Legitimate traffic beside floods of junk: what arrives, and how long it takes (needs root)
    ///
    /// Fails where a packet is lost while the machine is not saturated, or where delivery under a flood is worse than beside a
    /// program that does nothing but drop it.
    LoadTest(options::LoadTest),
    /// Formatting, clippy and rustdoc, warnings as errors, for the host's crates and the BPF crate
    Check(Shown),
    /// Fuzz every parser of bytes from outside
    ///
    /// What is found is kept under target/fuzz/findings; `cargo test` replays the corpus in tests/fuzz/corpus.
    Fuzz(fuzz::Options),
    /// Put bugs into the code, one at a time, each of which a test must find (needs root)
    ///
    /// Two tables in tests/mutants/ name a change and the test that must fail for it; cargo-mutants changes the modules
    /// that need no kernel in all ways that it knows. Everything happens in a copy under target/mutants. The whole of it
    /// takes hours: `cargo xtask mutants --program` takes ten minutes.
    Mutants(mutants::Options),
    /// Boot Debian's Linux 6.1 in QEMU and run the program's tests there
    Kernels,
}

/// How much is shown.
#[derive(clap::Args)]
struct Shown {
    /// Show everything as it comes
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
