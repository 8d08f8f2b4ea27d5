//! `cargo xtask check`: formatting, clippy and rustdoc, with warnings as errors.

use std::process::Command;

use anyhow::Result;

use crate::report::{Counts, Report};
use crate::setup::{self, Needs};
use crate::toolchain::Toolchain;
use crate::{build, command};

/// All crates except the one that is built for BPF only.
const HOST_CRATES: [&str; 3] = ["--workspace", "--exclude", "lb-ebpf"];

const NEEDS: Needs = Needs {
    subcommand: "check",
    kernel: None,
    parts: &[],
    built: "bpf/bpfel-unknown-none/debug",
    minutes: 8,
    then: Some("the checks"),
    gigabytes: 6,
};

/// Runs all checks; any finding is an error.
pub fn run(verbose: bool) -> Result<()> {
    setup::check(&NEEDS)?;
    let mut report = Report::new(verbose);
    let Some(bpf) = report.step("setup", || setup::run(&NEEDS)) else { return report.finish("checks") };
    let checks = [
        ("formatting", formatting(&[])),
        ("formatting, replay", formatting(&["--manifest-path", "tests/replay/Cargo.toml"])),
        ("clippy, host crates", host_clippy()),
        ("clippy, lb-ebpf", bpf_clippy(&bpf, build::bpf_cargo(&bpf, "check")?)),
        ("clippy, replay", bpf_clippy(&bpf, build::replay_cargo(&bpf, "check")?)),
        ("rustdoc, host crates", host_rustdoc()),
        ("rustdoc, lb-ebpf", bpf_rustdoc(build::bpf_cargo(&bpf, "doc")?)),
    ];
    for (name, mut check) in checks {
        report.group(name, || {
            command::run_aside(&mut check)?;
            Ok(Counts::ONE)
        });
    }
    report.finish("checks")
}

fn formatting(package: &[&str]) -> Command {
    let mut cargo = command::cargo("fmt");
    cargo.args(["--all", "--check"]).args(package);
    cargo
}

fn host_clippy() -> Command {
    let mut cargo = command::cargo("clippy");
    cargo.args(HOST_CRATES).args(["--all-targets", "--all-features", "--", "--deny", "warnings"]);
    cargo
}

fn host_rustdoc() -> Command {
    let mut cargo = command::cargo("doc");
    cargo
        .args(HOST_CRATES)
        .args(["--no-deps", "--all-features", "--document-private-items"])
        .env("RUSTDOCFLAGS", "--deny warnings");
    cargo
}

/// The clippy of the BPF toolchain's rustc, with the flags of the build: the only core library for BPF is the one that
/// this build makes.
fn bpf_clippy(bpf: &Toolchain, mut check: Command) -> Command {
    check
        .env("RUSTC_WORKSPACE_WRAPPER", bpf.program("clippy-driver"))
        // What `cargo clippy -- --deny warnings` hands to the driver.
        .env("CLIPPY_ARGS", "--deny__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    check
}

fn bpf_rustdoc(mut doc: Command) -> Command {
    doc.args(["--no-deps", "--document-private-items"])
        .env("CARGO_ENCODED_RUSTDOCFLAGS", "--deny\u{1f}warnings");
    doc
}
