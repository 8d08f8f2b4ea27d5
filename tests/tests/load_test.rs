//! Legitimate traffic during floods that the machine can receive: no packet of it is lost.

use std::time::Duration;

use anyhow::{Result, bail};
use lb_tests::{
    testbed::cleanup::Run,
    tools::load_test::{Bench, Effort, Junk, MODERATE, lost_unsaturated},
};

const EFFORT: Effort =
    Effort { quiet: Duration::from_millis(100), flood: Duration::from_millis(300), rounds: 1 };
/// A machine under other load may not receive even this flood; then the test tries again.
const TRIES: u32 = 5;

#[test]
fn nothing_is_lost_while_the_machine_is_not_saturated() -> Result<()> {
    let run = Run::start("tgload")?;
    let mut bench = Bench::new(run.prefix(), 1)?;
    Junk::ALL.into_iter().try_for_each(|junk| unsaturated(&mut bench, junk))
}

fn unsaturated(bench: &mut Bench, junk: Junk) -> Result<()> {
    for _ in 0..TRIES {
        let measurement = bench.at_tollgate(junk, Some(MODERATE), EFFORT)?;
        if let Some(missed) = lost_unsaturated(&measurement) {
            bail!("{missed}");
        }
        if !measurement.is_saturated() {
            return Ok(());
        }
    }
    bail!("{}: {MODERATE} frames in a second were too many, {TRIES} times", junk.name())
}
