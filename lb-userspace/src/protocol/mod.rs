//! The requests of the control socket and their answers, as JSON. Each request is one type, which says its path, who
//! may send it, its fields and the type of its answer. Server routes and client calls are made from these types; the
//! daemon's answers are in `control::answers`.
//!
//! Reading starts at [`Request`]; [`status::GetStatus`] is the simplest example.

mod backends;
mod clock;
mod counters;
mod inspection;
mod integers;
mod keys;
mod list;
mod local;
#[cfg(test)]
mod page;
mod revocations;
#[cfg(test)]
pub mod schema;
mod services;
mod sessions;
mod status;
mod tokens;

use hyper::Method;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use backends::{BackendStatus, ListBackends};
pub use clock::{AcceptClock, ClockAccepted, ClockStatus, GetClock};
pub use counters::{Count, CounterReport, GetCounters, ReasonCount, ServiceCounters};
pub use inspection::{HeaderFields, InspectToken, Inspection, OpenClaims, Step};
use integers::{big, text};
pub use keys::{
    ExportKeys, ImportKeys, ImportReport, KeyStatus, ListKeys, RevokeKey, Revoked, RotateKeys, Rotated,
};
pub use list::List;
pub use local::{CheckReport, CheckResult, DecapCount, DecapReport, Detached, Verdict};
pub use revocations::{
    ListRevocations, RevocationStatus, RevokeBefore, RevokeSessions, RevokeToken, RevokedBefore,
    UnrevokeSessions, UnrevokeToken,
};
pub use services::{ListServices, ServiceStatus};
pub use sessions::{ListSessions, SessionStatus};
pub use status::{GetStatus, InterfaceStatus, RevocationCounts, Status};
pub use tokens::{MintToken, Minted, TokenKind};

/// The largest request, bytes: twice the size of a keyset with as many keys as there are key slots.
pub const BODY_MAX: usize = 2 << 20;

/// A request of the control socket.
///
/// The fields of the type are the input of the request: the query of a GET request, the JSON body of a POST request. A
/// type with fields must refuse unknown ones (`deny_unknown_fields`): a misspelt optional field would ask for something
/// else than was meant.
pub trait Request: Serialize + DeserializeOwned + Documented + Send + 'static {
    /// GET or POST.
    const METHOD: Method;
    /// The path.
    const PATH: &'static str;
    /// The access that a caller needs.
    const ACCESS: Access;
    /// The answer of a request that succeeds; one that fails is answered with a [`Failure`].
    type Answer: Serialize + DeserializeOwned + Documented + Send + 'static;
}

/// Calls a macro with the names of all types of requests.
macro_rules! for_each_request {
    ($macro:ident) => {
        $macro! {
            GetStatus
            GetCounters
            ListBackends
            ListKeys
            ListSessions
            ListRevocations
            ListServices
            GetClock
            InspectToken
            RotateKeys
            RevokeKey
            ExportKeys
            ImportKeys
            MintToken
            RevokeToken
            UnrevokeToken
            RevokeSessions
            UnrevokeSessions
            RevokeBefore
            AcceptClock
        }
    };
}
pub(crate) use for_each_request;

/// The access that a request needs. Change includes read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// The request changes nothing, and its answer contains no secret.
    Read,
    /// The request changes something, or its answer contains a secret.
    Change,
}

/// The answer of a request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failure {
    /// The cause, and what to try next.
    pub error: String,
}

/// A type that docs/api.md describes: in tests, it has a JSON schema, from which the page is made.
#[cfg(test)]
pub trait Documented: schemars::JsonSchema {}
#[cfg(test)]
impl<T: schemars::JsonSchema> Documented for T {}
/// A type that docs/api.md describes.
#[cfg(not(test))]
pub trait Documented {}
#[cfg(not(test))]
impl<T> Documented for T {}
