//! `tollgate clock`.

use tollgate::protocol::{AcceptClock, ClockStatus, GetClock};

use super::{
    Global,
    output::{self, duration},
};

/// What to do.
#[derive(clap::Subcommand)]
pub enum Clock {
    /// Let the program follow a wall clock that was set back; what was issued before stays refused
    Accept,
}

/// Does it, or shows the clock.
pub fn run(global: &Global, command: Option<&Clock>) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        None => {
            let clock = client.ask(&GetClock {})?;
            output::print(global.output, &clock, lines)
        }
        Some(Clock::Accept) => {
            let accepted = client.ask(&AcceptClock)?;
            output::print(global.output, &accepted, |accepted| {
                vec![
                    format!("the program's clock went back by {}", duration(accepted.seconds_back)),
                    format!(
                        "what any service issued before {} is refused, for good",
                        output::date(accepted.revoked_before)
                    ),
                    "tokens that were issued for a time yet to come will be valid then: if there may be any, `tollgate keys \
                     rotate --wait` and revoke the keys before"
                        .to_owned(),
                ]
            })
        }
    }
}

fn lines(clock: &ClockStatus) -> Vec<String> {
    let state = match (clock.held, clock.stale) {
        (true, false) => "HELD: the wall clock was set back; set it right, or `tollgate clock accept`",
        (true, true) => {
            "HELD AND STALE: new tokens are refused; set the wall clock right, or `tollgate clock accept`"
        }
        (false, true) => "STALE: new tokens are refused; see `tollgate status`",
        (false, false) => "the program follows the wall clock",
    };
    vec![
        format!("wall clock  {}", output::date(clock.wall as u64)),
        format!("program     {}", output::date(clock.program as u64)),
        format!("difference  {:+.3} s", clock.difference_seconds),
        format!("confirmed   {:.0} s ago", clock.confirmed_age_seconds),
        format!("jumps       {} forward, {} back", clock.jumps_forward, clock.jumps_backward),
        format!("state       {state}"),
    ]
}
