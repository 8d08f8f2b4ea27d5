//! The program in the kernel, one packet at a time. It needs root and no network, so it also runs in a minimal virtual
//! machine.

mod attacks;
mod cache;
mod clock;
mod concurrency;
mod coverage;
mod decap;
mod delivery;
mod differential;
mod flood;
mod flow;
mod forwarding;
mod icmp;
mod jumbo;
mod limits;
mod mac;
mod malformed;
mod matrix;
mod mutation;
mod nat;
mod observe;
mod parse;
mod proof;
mod revocation;
mod rotation;
mod tables;
mod timing;
mod token;
mod too_big;
mod vectors;
mod verifier;

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use lb_tests::model::{case::Case, program::Program};

/// A loaded program that is not in use. The verifier takes most of a second for each load, and much longer on an
/// emulated machine.
static IDLE: Mutex<Option<Program>> = Mutex::new(None);

/// Checks each case separately, so that every counter that increases belongs to one case, and no case uses the sessions
/// of another.
fn check_each(cases: &[Case]) -> Result<()> {
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let there = idle().take();
    let mut program = match there {
        Some(program) => program,
        None => Program::load()?,
    };
    program.renew()?;
    for case in cases {
        program.forget()?;
        case.check(&mut program)?;
    }
    *idle() = Some(program);
    Ok(())
}
