//! `cargo xtask bench`: builds and becomes the benchmark of `lb-tests`.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, command};

/// Builds, then becomes the benchmark with these arguments.
pub fn run(args: &[OsString]) -> Result<()> {
    command::require_root("bench", "loads XDP programs and runs them in the kernel")?;
    let built = build::run()?;
    let bench = built.test_executable(["--bench", "program"])?;
    command::become_program(built.test_program(bench).args(args))
}
