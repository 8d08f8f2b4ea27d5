//! `cargo xtask load-test`: builds and becomes the load test of `lb-tests`.

use anyhow::Result;

use crate::setup::{self, Needs, Part};
use crate::{build, command};

const NEEDS: Needs = Needs {
    subcommand: "load-test",
    kernel: Some("makes network namespaces and loads XDP programs"),
    parts: &[Part::Namespaces],
    built: "release/load-test",
    minutes: 6,
    then: Some("the load test"),
    gigabytes: 4,
};

/// Builds, then becomes the load test with the arguments of this subcommand, which have been read once already: Ctrl-C reaches it, and it clears away what it made.
pub fn run() -> Result<()> {
    setup::check(&NEEDS)?;
    let built = build::run(&NEEDS)?;
    let load_test = built.test_executable(["--bin", "load-test"])?;
    command::become_program(built.test_program(load_test).args(command::arguments()))
}
