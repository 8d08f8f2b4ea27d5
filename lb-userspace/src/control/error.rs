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
    /// The program or its maps failed.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store does not continue from the commit that the kernel state was made from.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The kernel has more revocations than the store can hold.
    #[error(transparent)]
    Revocations(#[from] RevocationError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No such service.
    #[error("there is no service `{name}`; there {}", existing(services))]
    NoSuchService {
        /// Name in the request.
        name: String,
        /// Names of all services.
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
    /// The change is stored, but not applied to the kernel yet.
    #[error(
        "stored, but not applied to the kernel yet: {0}; it is retried every second, see `tollgate status`"
    )]
    NotInKernel(String),
    /// The service has no active key.
    #[error("service `{0}` has no active key yet; see `tollgate keys list` and `tollgate status`")]
    NoSigner(String),
    /// All tokens were revoked up to a time in the future, by a clock that was ahead.
    #[error(
        "service `{service}` refuses all tokens issued before {}, which is in the future: a token issued now would be \
         refused. Wait until then", date(*before)
    )]
    RevokedAhead {
        /// Its name.
        service: String,
        /// Unix second.
        before: u64,
    },
    /// The clock is not held.
    #[error("the program follows the wall clock: there is nothing to accept; see `tollgate clock`")]
    ClockFollows,
    /// The daemon is ending.
    #[error("the daemon is ending; start it again")]
    Ending,
}

fn existing(services: &[String]) -> String {
    match services {
        [] => "are none in the configuration".to_owned(),
        [one] => format!("is {one}"),
        several => format!("are {}", several.join(", ")),
    }
}
