//! `cargo xtask kernels`: the program's tests on the oldest kernel that Tollgate supports.

use anyhow::{Result, bail};

use crate::build::{self, Built};

/// Builds, then runs the program's tests in Linux 6.1.
pub fn run() -> Result<()> {
    run_tests(&build::run()?)
}

/// Runs the program's tests in Linux 6.1.
pub fn run_tests(_built: &Built) -> Result<()> {
    bail!("`cargo xtask kernels` does not exist yet")
}
