//! `cargo xtask demo`: builds and becomes the demo of `lb-tests`.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, command};

/// Builds, then becomes the demo with these arguments: Ctrl-C reaches it, and it clears away what it made.
pub fn run(args: &[OsString]) -> Result<()> {
    command::require_root("demo", "makes network namespaces and loads an XDP program")?;
    let built = build::run()?;
    let demo = built.test_executable(["--bin", "demo"])?;
    command::become_program(built.test_program(demo).args(args))
}
