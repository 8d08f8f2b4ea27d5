//! `cargo xtask spike`: builds and becomes the spike test of `lb-tests`.

use anyhow::Result;

use crate::setup::{self, Needs, Part};
use crate::{build, command};

const NEEDS: Needs = Needs {
    subcommand: "spike",
    kernel: Some("makes network namespaces and loads XDP programs"),
    parts: &[Part::Namespaces],
    built: "release/load-test",
    minutes: 6,
    then: Some("the load test"),
    gigabytes: 4,
};

/// Builds, then becomes the spike test with the arguments of this subcommand, which have been read once already: Ctrl-C reaches it, and it clears away what it made.
pub fn run() -> Result<()> {
    setup::check(&NEEDS)?;
    let built = build::run(&NEEDS)?;
    let spike = built.test_executable(["--bin", "load-test"])?;
    command::become_program(built.test_program(spike).args(command::arguments()))
}
