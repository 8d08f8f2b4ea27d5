//! Requests about the clock.

use std::time::Duration;

use lb_common::control::SECOND_NS;
use tracing::warn;

use super::Answers;
use crate::{
    control::{Controller, RequestError, clock::unix_now},
    protocol::{AcceptClock, ClockAccepted, ClockStatus, GetClock},
};

impl Answers<GetClock> for Controller {
    async fn answer(&mut self, GetClock {}: GetClock) -> Result<ClockStatus, RequestError> {
        self.clock.follow(&self.datapath)?;
        Ok(self.clock_status())
    }
}

impl Answers<AcceptClock> for Controller {
    /// Sets the program clock back to the wall clock. Tokens issued until now are revoked.
    async fn answer(&mut self, AcceptClock: AcceptClock) -> Result<ClockAccepted, RequestError> {
        self.clock.follow(&self.datapath)?;
        let back = self.clock.last().filter(|_| self.clock.is_held()).ok_or(RequestError::ClockFollows)?;
        let services: Vec<u32> = self.config.services.iter().map(|service| service.id).collect();
        let revoked_before = self.revoke_all_before(&services, next_second()).await?;
        self.clock.accept(&self.datapath)?;
        let seconds = back.difference_ns().unsigned_abs().div_ceil(SECOND_NS);
        warn!(seconds, revoked_before, "the wall clock was accepted: the program clock was set back");
        Ok(ClockAccepted { seconds_back: seconds, revoked_before: revoked_before.into() })
    }
}

impl Controller {
    pub(super) fn clock_status(&self) -> ClockStatus {
        let jumps = self.clock.jumps();
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
        let last = self.clock.last();
        ClockStatus {
            wall_clock: last.map_or(0.0, |last| seconds(last.wall_ns())),
            program_clock: last.map_or(0.0, |last| seconds(last.program_ns())),
            difference_seconds: last.map_or(0.0, |last| last.difference_ns() as f64 / 1e9),
            held: self.clock.is_held(),
            confirmed_age_seconds: last.map_or(0.0, |last| seconds(last.confirmed_age_ns())),
            stale: last.is_some_and(|last| last.is_stale()),
            jumps_forward: jumps.forward,
            jumps_backward: jumps.backward,
        }
    }
}

/// The next second, so that tokens of the current one are included.
fn next_second() -> u64 {
    unix_now() + 1
}
