//! `cargo xtask run -- ARGS`: the `tollgate` of this tree.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::{build, command, setup};

/// Builds, then becomes `tollgate ARGS`.
pub fn run(args: &[OsString]) -> Result<()> {
    setup::check(&build::NEEDS)?;
    let built = build::run(&build::NEEDS)?;
    command::become_program(Command::new(built.tollgate).args(args))
}
