//! `cargo xtask spike`: builds and becomes the spike test of `lb-tests`.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, command};

/// Builds, then becomes the spike test with these arguments: Ctrl-C reaches it, and it clears away what it made.
pub fn run(args: &[OsString]) -> Result<()> {
    command::require_root("spike", "makes network namespaces and loads XDP programs")?;
    let built = build::run()?;
    let spike = built.test_executable(["--bin", "spike"])?;
    command::become_program(built.test_program(spike).args(args))
}
