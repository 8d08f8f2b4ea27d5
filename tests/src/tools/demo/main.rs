//! The demo: a client, a balancer and three backends; valid and forged traffic; the key is rotated twice, and the
//! daemon is killed and restarted while packets flow.

mod junk;
mod progress;
mod receivers;
mod report;
mod script;
mod sender;

use std::{os::unix::net::UnixDatagram, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_tests::{
    testbed::{cleanup, topology::Family},
    tools::options,
};

use crate::script::Options;

/// Shows the main job: a client, a balancer and three backends; valid and forged traffic; keys rotated under load.
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Arguments {
    #[command(flatten)]
    options: options::Demo,
}

fn main() -> ExitCode {
    let Err(error) = run(Arguments::parse().options) else { return ExitCode::SUCCESS };
    // The failure may result from the removal.
    cleanup::hold_if_interrupted();
    eprintln!("demo: {error:#}");
    ExitCode::FAILURE
}

fn run(options::Demo { forward, ipv6, keep, remove }: options::Demo) -> Result<()> {
    let _alone = alone()?;
    if remove {
        return cleanup::remove(script::is_ours);
    }
    cleanup::remove_when_interrupted(script::is_ours)?;
    cleanup::remove(script::is_ours)?;
    script::run(Options { forward, family: if ipv6 { Family::V6 } else { Family::V4 }, keep })
}

/// Held while a demo runs: two demos at the same time would remove each other's namespaces.
fn alone() -> Result<UnixDatagram> {
    cleanup::claim(script::NAME)?.context("another demo is running; wait until it has ended")
}
