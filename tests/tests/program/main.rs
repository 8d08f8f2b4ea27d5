//! The program in the kernel, packet by packet. Needs root and no network: it runs in a bare virtual machine, too.

mod attacks;
mod cache;
mod clock;
mod concurrency;
mod coverage;
mod decap;
mod delivery;
mod differential;
mod flood;
mod icmp;
mod jumbo;
mod limits;
mod malformed;
mod matrix;
mod mutation;
mod nat;
mod observe;
mod parse;
mod proof;
mod revocation;
mod rotation;
mod timing;
mod token;
mod too_big;
mod vectors;
mod ways;

use anyhow::Result;
use lb_tests::{case::Case, program::Program};

/// Checks each case by itself, so that every counter that moves is one case's, and no session is another's.
fn check_each(cases: &[Case]) -> Result<()> {
    let mut program = Program::load()?;
    cases.iter().try_for_each(|case| {
        program.forget()?;
        case.check(&mut program)
    })
}
