//! The number of instructions that the kernel's verifier examines.

use anyhow::{Context as _, Result};
use lb_common::maps;
use lb_tests::model::program::Program;

/// Instructions that the verifier examines before it refuses a program (`BPF_COMPLEXITY_LIMIT_INSNS`,
/// include/linux/bpf.h).
const LIMIT: u32 = 1_000_000;

/// At most half of the limit: the verifiers of later kernels may examine more.
#[test]
fn the_verifier_examines_less_than_half_of_its_limit() -> Result<()> {
    let mut loaded = Program::load()?;
    for program in [maps::PROGRAM, maps::PROGRAM_PASS, maps::PROGRAM_CLOCK] {
        let info = loaded.datapath().program(program)?.info()?;
        let verified = info.verified_instruction_count().context("a kernel before 5.16 does not tell")?;
        let bytes = info.size_translated().unwrap_or_default();
        println!("{program}: {verified} instructions verified, {} in the program", bytes / 8);
        assert!(verified < LIMIT / 2, "{program}: {verified} instructions verified");
    }
    Ok(())
}
