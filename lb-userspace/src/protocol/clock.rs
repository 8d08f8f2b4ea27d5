//! The clock that tokens are checked against.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, Request};

/// `tollgate clock`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetClock {}

impl Request for GetClock {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/clock";
    const ACCESS: Access = Access::Read;
    type Answer = ClockStatus;
}

/// The wall clock of the host and the clock of the XDP program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ClockStatus {
    /// Wall clock of the host, Unix time in seconds.
    pub wall_clock: f64,
    /// Clock of the XDP program, Unix time in seconds.
    pub program_clock: f64,
    /// Wall clock minus program clock.
    pub difference_seconds: f64,
    /// Whether the program clock is ahead because the wall clock was set back.
    pub held: bool,
    /// Time since the program clock was last found to be right.
    pub confirmed_age_seconds: f64,
    /// Whether that was so long ago that new tokens are refused.
    pub stale: bool,
    /// How often the wall clock was set forward since the daemon started.
    pub jumps_forward: u64,
    /// How often the wall clock was set back since the daemon started.
    pub jumps_backward: u64,
}

/// `tollgate clock accept`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct AcceptClock;

impl Request for AcceptClock {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/clock/accept";
    const ACCESS: Access = Access::Change;
    type Answer = ClockAccepted;
}

/// The program clock was set back to the wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ClockAccepted {
    /// By how many seconds the program clock was set back.
    pub seconds_back: u64,
    /// Tokens of all services issued before this time are revoked.
    pub revoked_before: u64,
}
