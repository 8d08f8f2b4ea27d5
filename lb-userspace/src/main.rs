//! The program `tollgate`: parses, calls, prints.

mod cli;
mod wiping;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: wiping::Wiping = wiping::Wiping;

fn main() -> ExitCode {
    cli::main()
}
