//! The main job before your eyes: a client, a balancer and three backends; valid and forged traffic; the key rotated
//! twice, the daemon killed and started again while packets flow.

mod junk;
mod progress;
mod receivers;
mod report;
mod script;
mod sender;

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use lb_tests::leftovers;

const USAGE: &str = "usage: cargo xtask demo [--keep | --remove]

  --keep     leave namespaces and daemon for looking around, and say how to look
  --remove   only remove what --keep has left (the next demo does so, too)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run(false),
        ["--keep"] => run(true),
        ["--remove"] => alone().and_then(|_alone| leftovers::remove(script::is_ours)),
        ["-h" | "--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // What failed may have failed because it was being removed.
    leftovers::hold_if_interrupted();
    eprintln!("demo: {error:#}");
    ExitCode::FAILURE
}

fn run(keep: bool) -> Result<()> {
    let _alone = alone()?;
    leftovers::remove_when_interrupted(script::is_ours)?;
    leftovers::remove(script::is_ours)?;
    script::run(keep)
}

/// Held while a demo runs: two at a time would remove each other's namespaces. An abstract socket leaves no file.
fn alone() -> Result<UnixDatagram> {
    let address = SocketAddr::from_abstract_name("tollgate-demo")?;
    UnixDatagram::bind_addr(&address).context("another demo is running; wait until it has ended")
}
