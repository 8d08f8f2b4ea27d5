//! What goes over the control socket, as JSON: the stable form of what the commands print. A file for each subject.

mod counters;
mod integers;
mod keys;
mod revocations;
mod sessions;
mod status;
mod tokens;

use serde::{Deserialize, Serialize};

pub use counters::{Count, CounterReport, ReasonCount, ServiceCounters};
pub use integers::{big, text};
pub use keys::{ExportRequest, ImportReport, KeyStatus, RevokeRequest, Revoked, RotateRequest, Rotated};
pub use revocations::{
    RevocationCounts, RevocationStatus, RevokeBeforeRequest, RevokeSessionsRequest, RevokeTokenRequest,
    RevokedBefore, UnrevokeSessionsRequest,
};
pub use sessions::{SessionList, SessionStatus};
pub use status::{
    AcceptClockRequest, BackendStatus, ClockAccepted, ClockStatus, InterfaceStatus, ServiceStatus, Status,
};
pub use tokens::{MintRequest, Minted, TokenKind};

/// The largest request, bytes: a keyset of as many keys as there are slots has half of it.
pub const BODY_MAX: usize = 2 << 20;

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The cause and the next thing to try.
    pub error: String,
}
