//! The clock that tokens are checked against.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request};

/// `tollgate clock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetClock {}

impl Request for GetClock {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/clock";
    const ACCESS: Access = Access::Read;
    type Answer = ClockStatus;
}

/// `tollgate clock`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// The wall clock, unix seconds.
    pub wall: f64,
    /// The program's clock, unix seconds.
    pub program: f64,
    /// The wall clock less the program's.
    pub difference_seconds: f64,
    /// Whether the program keeps the time it had, because the wall clock was set back.
    pub held: bool,
    /// Since the program's clock was last found to be right.
    pub confirmed_age_seconds: f64,
    /// Whether that is so long ago that new tokens are refused.
    pub stale: bool,
    /// How often the wall clock was set forward while this daemon ran.
    pub jumps_forward: u64,
    /// How often it was set back.
    pub jumps_backward: u64,
}

/// `tollgate clock accept`. Has no fields: its body is empty or `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptClock;

impl Request for AcceptClock {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/clock/accept";
    const ACCESS: Access = Access::Change;
    type Answer = ClockAccepted;
}

/// What `clock accept` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAccepted {
    /// By how much the program's clock went back.
    pub seconds_back: u64,
    /// What all services issued before this unix second is refused.
    pub revoked_before: u64,
}
