//! `cargo xtask bench`: builds and becomes the benchmark of `lb-tests`.

use anyhow::Result;

use crate::setup::{self, Needs, Part};
use crate::{build, command};

const NEEDS: Needs = Needs {
    subcommand: "bench",
    kernel: Some("loads XDP programs and runs them in the kernel"),
    parts: &[Part::Namespaces],
    built: "release",
    minutes: 6,
    then: Some("the benchmark"),
    gigabytes: 4,
};

/// Builds, then becomes the benchmark with the arguments of this subcommand, which have been read once already.
pub fn run() -> Result<()> {
    setup::check(&NEEDS)?;
    let built = build::run(&NEEDS)?;
    let bench = built.test_executable(["--bench", "program"])?;
    command::become_program(built.test_program(bench).args(command::arguments()))
}
