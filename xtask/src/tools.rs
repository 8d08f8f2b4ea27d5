//! `cargo xtask demo`, `bench` and `load-test`: each builds a program of `lb-tests` and becomes it.

use anyhow::Result;

use crate::setup::{self, Needs, Part};
use crate::{build, command};

/// A program of `lb-tests` that people run.
pub struct Tool {
    needs: Needs,
    /// Selects it, as cargo has it.
    selection: [&'static str; 2],
}

/// The demonstration.
pub const DEMO: Tool = Tool {
    needs: Needs {
        subcommand: "demo",
        kernel: Some("makes network namespaces and loads an XDP program"),
        built: "release/demo",
        then: Some("the demo for a few seconds"),
        ..NEEDS
    },
    selection: ["--bin", "demo"],
};

/// The benchmark.
pub const BENCHMARK: Tool = Tool {
    needs: Needs {
        subcommand: "bench",
        kernel: Some("loads XDP programs and runs them in the kernel"),
        built: "release",
        then: Some("the benchmark"),
        ..NEEDS
    },
    selection: ["--bench", "program"],
};

/// The load test.
pub const LOAD_TEST: Tool = Tool {
    needs: Needs {
        subcommand: "load-test",
        kernel: Some("makes network namespaces and loads XDP programs"),
        built: "release/load-test",
        then: Some("the load test"),
        ..NEEDS
    },
    selection: ["--bin", "load-test"],
};

/// What all of them take.
const NEEDS: Needs = Needs {
    subcommand: "",
    kernel: None,
    parts: &[Part::Namespaces],
    built: "",
    minutes: 6,
    then: None,
    gigabytes: 4,
};

impl Tool {
    /// Builds it, then becomes it, with the arguments of the subcommand: Ctrl-C reaches the program, which removes
    /// what it made.
    pub fn run(&self) -> Result<()> {
        setup::check(&self.needs)?;
        let built = build::run(&self.needs)?;
        let program = built.test_executable(self.selection)?;
        command::become_program(built.test_program(program).args(command::arguments()))
    }
}
