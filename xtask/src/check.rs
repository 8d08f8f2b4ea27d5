//! `cargo xtask check`: formatting, clippy and rustdoc, with warnings as errors.

use std::process::Command;

use anyhow::Result;

use crate::toolchain::Toolchain;
use crate::{build, command, setup};

/// Every crate but the one that only builds for BPF.
const HOST_CRATES: [&str; 3] = ["--workspace", "--exclude", "lb-ebpf"];

/// Runs all checks, up to the first that finds something.
pub fn run() -> Result<()> {
    let bpf = setup::run()?.bpf;
    step("formatting", command::cargo("fmt").args(["--all", "--check"]))?;
    step(
        "clippy, host crates",
        command::cargo("clippy").args(HOST_CRATES).args([
            "--all-targets",
            "--all-features",
            "--",
            "--deny",
            "warnings",
        ]),
    )?;
    step("clippy, lb-ebpf", &mut bpf_clippy(&bpf)?)?;
    step(
        "rustdoc, host crates",
        command::cargo("doc")
            .args(HOST_CRATES)
            .args(["--no-deps", "--all-features", "--document-private-items"])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )?;
    step(
        "rustdoc, lb-ebpf",
        build::bpf_cargo(&bpf, "doc")?
            .args(["--no-deps", "--document-private-items"])
            .env("CARGO_ENCODED_RUSTDOCFLAGS", "--deny\u{1f}warnings"),
    )?;
    println!("check: nothing found");
    Ok(())
}

/// Clippy as it is meant to be called, but the one that belongs to the BPF toolchain's rustc and with the very flags
/// of the build: for BPF there is no other core library than the one that is built on the way.
fn bpf_clippy(bpf: &Toolchain) -> Result<Command> {
    let mut cargo = build::bpf_cargo(bpf, "check")?;
    cargo
        .env("RUSTC_WORKSPACE_WRAPPER", bpf.program("clippy-driver"))
        // What `cargo clippy -- --deny warnings` hands to the driver.
        .env("CLIPPY_ARGS", "--deny__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    Ok(cargo)
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("\ncheck: {name}");
    command::run(command)
}
