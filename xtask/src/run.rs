//! `cargo xtask run -- ARGS`: the `tollgate` of this tree.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::{build, command};

/// Builds, then becomes `tollgate ARGS`.
pub fn run(args: &[OsString]) -> Result<()> {
    let built = build::run()?;
    command::become_program(Command::new(built.tollgate).args(args))
}
