//! The output of commands that ask no daemon.

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::big;

/// Output of `tollgate check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct CheckReport {
    /// Whether no check has failed.
    pub ok: bool,
    /// The checks.
    pub checks: Vec<CheckResult>,
}

/// One check of the configuration or of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct CheckResult {
    /// What was checked.
    pub name: String,
    /// Result of the check.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; only if there is something to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The daemon starts, but something is probably not as intended.
    Warning,
    /// The daemon would not start.
    Failed,
}

impl Verdict {
    /// As in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// Output of `tollgate detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Detached {
    /// Names of the interfaces that the program was removed from.
    pub interfaces: Vec<String>,
}

/// Output of `tollgate decap`, when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct DecapReport {
    /// Name of the interface.
    pub interface: String,
    /// XDP mode: `native` or `generic`.
    pub mode: String,
    /// Addresses and prefixes of the balancers.
    pub from: Vec<String>,
    /// Packets by outcome.
    pub outcomes: Vec<DecapCount>,
}

/// Packets and bytes of one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct DecapCount {
    /// Name of the outcome.
    pub outcome: String,
    /// Packets.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub packets: u64,
    /// Bytes of the received frames.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub bytes: u64,
    /// What the outcome means.
    pub meaning: String,
}
