//! The cost of verifying a wrong tag does not depend on which byte is wrong: equal to the instruction, on a machine
//! whose clock counts instructions.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aya::{TestRun as _, TestRunOptions};
use lb_common::{
    maps::PROGRAM,
    reason::Reason,
    token::{
        Header,
        header::{Binding, LEN},
        tags,
    },
};
use lb_tests::model::{
    fixture::{self, SERVICE_INDEX, SESSION},
    packet::{Family, Packet},
    program::{Program, at_scale, pin_to_cpu, small},
};
use tollgate::datapath::Options;

use crate::proof::{self, TS, forwarded};

/// Set if a nanosecond is an instruction, as in one of the machines of `cargo xtask kernels`.
const INSTRUCTIONS: &str = "TOLLGATE_TIME_IS_INSTRUCTIONS";

/// Runs per sample: so few that most samples are not interrupted.
const REPEAT: usize = 5000;
/// Maximum duration of sampling. Samples of the frames alternate, and the fastest sample of each frame counts: other
/// load only slows a sample down, so frames of equal cost have equal minima.
const LONGEST: Duration = Duration::from_secs(20);
/// Minimum number of samples of each frame.
const SAMPLES: usize = 50;

/// Checks that these frames, refused for the same reason, have the same cost.
fn ensure_same_cost(program: &mut Program, what: &str, frames: &[Vec<u8>], reason: Reason) -> Result<()> {
    let before = program.counted((SERVICE_INDEX, reason))?;
    let repeat = at_scale(REPEAT) as u32;
    let deadline = Instant::now() + LONGEST;
    let mut fastest = vec![u128::MAX; frames.len()];
    let mut samples = 0;
    while samples < SAMPLES || !same(&fastest) {
        ensure!(Instant::now() < deadline, "{what}: {fastest:?} ns, by where it is wrong");
        for (fastest, frame) in fastest.iter_mut().zip(frames) {
            let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
            let result = program.datapath().program(PROGRAM)?.test_run(options)?;
            *fastest = (*fastest).min(result.duration.as_nanos());
        }
        samples += 1;
    }
    println!("{what}: {fastest:?} ns, the fastest of {samples} samples");
    let runs = u64::from(repeat) * (samples * frames.len()) as u64;
    ensure!(
        program.counted((SERVICE_INDEX, reason))? == before + runs,
        "not all were refused as {}",
        reason.name()
    );
    Ok(())
}

/// Whether these times, nanoseconds, stand for equal work: exactly equal if they count instructions, otherwise within
/// the precision of the measurement. A loop that ended at the first of eight wrong bytes would take a tenth longer for
/// the others.
fn same(fastest: &[u128]) -> bool {
    let (least, most) = (fastest.iter().min().copied(), fastest.iter().max().copied());
    let (least, most) = (least.unwrap_or_default(), most.unwrap_or_default());
    let is_exact = std::env::var_os(INSTRUCTIONS).is_some();
    most - least <= if is_exact { 0 } else { 1.max(least / 20) }
}

#[test]
fn a_wrong_byte_costs_the_same_wherever_it_is() -> Result<()> {
    pin_to_cpu(0)?;
    let mut program = Program::load_with(&Options { hmac_cost_ns: 0, ..small() })?;
    program.enter(&proof::fixture())?;
    for family in Family::BOTH {
        let wrong_at = |packet: &Packet, bytes: std::ops::Range<usize>| -> Vec<Vec<u8>> {
            let wrong = |at| {
                let mut packet = packet.clone();
                packet.payload[at] ^= 0xff;
                packet.over(family).bytes()
            };
            vec![wrong(bytes.start), wrong(bytes.start + bytes.len() / 2), wrong(bytes.end - 1)]
        };
        let bearer = Packet::default();
        ensure_same_cost(&mut program, "a fast tag", &wrong_at(&bearer, 40..48), Reason::BadFastTag)?;
        let proof = Packet::with_proof(&fixture::key().proof(&fixture::grant()), family as u32, TS);
        ensure_same_cost(&mut program, "a fast tag of PROOF", &wrong_at(&proof, 40..48), Reason::BadFastTag)?;
        forwarded("cached", SESSION, &proof).over(family).check(&mut program)?;
        ensure_same_cost(&mut program, "a proof", &wrong_at(&proof, 56..64), Reason::BadProof)?;
        program.forget()?; // A look-up takes longer if it passes other entries.
        let full: Vec<Vec<u8>> =
            [48, 55, 56, 63].map(|at| with_wrong_full_tag(at).over(family).bytes()).into();
        ensure_same_cost(&mut program, "a full tag", &full, Reason::BadFullTag)?;
    }
    Ok(())
}

/// A token made with the fast key alone, with one wrong byte in its full tag.
fn with_wrong_full_tag(at: usize) -> Packet {
    let mut bytes = fixture::token().to_bytes();
    bytes[at] ^= 0xff;
    let (words, _) = bytes.as_chunks::<8>();
    let header = Header::from_verified(std::array::from_fn(|word| u64::from_le_bytes(words[word])));
    let fast = tags::fast(fixture::key().derived.fast, &header, &Binding::default());
    bytes[40..48].copy_from_slice(&fast.to_le_bytes());
    let mut packet = Packet::default();
    packet.payload[..LEN].copy_from_slice(&bytes);
    packet
}
