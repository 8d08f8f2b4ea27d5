//! The main job before your eyes: a client, a balancer and three backends; valid and forged traffic; the key rotated
//! twice, the daemon killed and started again while packets flow.

mod receivers;
mod script;
mod sender;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Result, bail};
use nix::sys::signal::{SigHandler, Signal, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// An error once Ctrl-C was pressed: whatever has been made is removed on the way out.
fn not_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted; everything that was made is removed");
    }
    Ok(())
}

const USAGE: &str = "usage: cargo xtask demo [--keep]

  --keep   leave namespaces and daemon for looking around, and say how to look and how to remove them";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let keep = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--keep"] => true,
        ["-h" | "--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    for stop in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic, which is async-signal-safe.
        if let Err(error) = unsafe { signal(stop, SigHandler::Handler(interrupt)) } {
            eprintln!("demo: cannot handle {stop}: {error}");
            return ExitCode::FAILURE;
        }
    }
    match script::run(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
