//! Errors of the start, and of requests.

use super::{keys::KeysError, lineage::Mismatch};
use crate::{
    datapath::DatapathError,
    network::NetworkError,
    revocation::{RevocationError, date},
    store::StoreError,
    token::TokenError,
};

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data path.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is not the one that the kernel state was made from.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The kernel has more revocations than the store can take in.
    #[error(transparent)]
    Revocations(#[from] RevocationError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No such service.
    #[error("there is no service `{name}`; there {}", those_there_are(services))]
    NoSuchService {
        /// What was asked for.
        name: String,
        /// The names there are.
        services: Vec<String>,
    },
    /// Keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Revocations.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The kernel.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It is stored, and the kernel has not followed yet.
    #[error("stored, but not in the kernel yet: {0}; it is tried again every second, see `tollgate status`")]
    NotInKernel(String),
    /// Nothing may sign yet.
    #[error("service `{0}` has no key that may sign yet; see `tollgate keys list` and `tollgate status`")]
    NoSigner(String),
    /// Everything was revoked by a clock that was ahead.
    #[error(
        "service `{service}` refuses all that is issued before {}, and the clock is not there yet: a token of now would be \
         refused. Wait until then", date(*before)
    )]
    RevokedAhead {
        /// Its name.
        service: String,
        /// Unix second.
        before: u64,
    },
    /// There is nothing to accept.
    #[error("the program follows the wall clock: there is nothing to accept; see `tollgate clock`")]
    ClockFollows,
    /// The daemon ends.
    #[error("the daemon is ending; start it again")]
    Ending,
}

fn those_there_are(services: &[String]) -> String {
    match services {
        [] => "are none in the configuration".to_owned(),
        [one] => format!("is {one}"),
        several => format!("are {}", several.join(", ")),
    }
}
