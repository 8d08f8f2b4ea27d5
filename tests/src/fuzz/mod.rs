//! The invariants of every parser of external bytes: one function for each parser, which panics if an invariant is
//! violated. The fuzzer calls these functions (`tests/fuzz/`), and a test replays the corpus, whose file names
//! describe their content.
//!
//! There is no target for packets: their parser is the XDP program, whose own tests feed it mutated and random
//! frames. There is no parser of pcap files yet.

use std::path::{Path, PathBuf};

pub mod configuration;
pub mod control;
pub mod keyset;
pub mod store;
pub mod token;

/// A parser and its invariants.
pub struct Target {
    /// The fuzzer's program, and the directory of the corpus.
    pub name: &'static str,
    /// Panics if the bytes violate an invariant.
    pub check: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 5] = [
    Target { name: "configuration", check: configuration::check },
    Target { name: "control", check: control::check },
    Target { name: "keyset", check: keyset::check },
    Target { name: "store", check: store::check },
    Target { name: "token", check: token::check },
];

/// The folder of the corpus, with a folder for each target.
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}
