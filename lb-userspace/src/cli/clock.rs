//! `tollgate clock`.

use tollgate::protocol::{AcceptClock, ClockStatus, GetClock};

use super::{
    Global,
    output::{self, duration},
};

/// Subcommands.
#[derive(clap::Subcommand)]
pub enum Clock {
    /// Set the program clock back to the wall clock; tokens issued until now are revoked
    Accept,
}

/// Runs the command; without a subcommand, shows the clock.
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
                    format!("the program clock was set back by {}", duration(accepted.seconds_back)),
                    format!(
                        "tokens of all services issued before {} are revoked permanently",
                        output::date(accepted.revoked_before)
                    ),
                    "tokens whose time of issue is in the future become valid then: if such tokens may exist, run \
                     `tollgate keys rotate --wait` and revoke the previous keys"
                        .to_owned(),
                ]
            })
        }
    }
}

fn lines(clock: &ClockStatus) -> Vec<String> {
    let state = match (clock.held, clock.stale) {
        (true, false) => "HELD: the wall clock was set back; correct it, or run `tollgate clock accept`",
        (true, true) => {
            "HELD AND STALE: new tokens are refused; correct the wall clock, or run `tollgate clock accept`"
        }
        (false, true) => "STALE: new tokens are refused; see `tollgate status`",
        (false, false) => "the program follows the wall clock",
    };
    vec![
        format!("wall clock  {}", output::date(clock.wall_clock as u64)),
        format!("program     {}", output::date(clock.program_clock as u64)),
        format!("difference  {:+.3} s", clock.difference_seconds),
        format!("confirmed   {:.0} s ago", clock.confirmed_age_seconds),
        format!("jumps       {} forward, {} back", clock.jumps_forward, clock.jumps_backward),
        format!("state       {state}"),
    ]
}
