//! `cargo xtask demo`: builds and becomes the demo of `lb-tests`.

use anyhow::Result;

use crate::setup::{self, Needs, Part};
use crate::{build, command};

const NEEDS: Needs = Needs {
    subcommand: "demo",
    kernel: Some("makes network namespaces and loads an XDP program"),
    parts: &[Part::Namespaces],
    built: "release/demo",
    minutes: 6,
    then: Some("the demo for a few seconds"),
    gigabytes: 4,
};

/// Builds, then becomes the demo with the arguments of this subcommand, which have been read once already: Ctrl-C reaches it, and it clears away what it made.
pub fn run() -> Result<()> {
    setup::check(&NEEDS)?;
    let built = build::run(&NEEDS)?;
    let demo = built.test_executable(["--bin", "demo"])?;
    command::become_program(built.test_program(demo).args(command::arguments()))
}
