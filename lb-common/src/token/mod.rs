//! The token header, version 1: layout, sealed claims and tags; on a host also keys, issuance and verification.

pub mod claims;
pub mod header;
#[cfg(feature = "host")]
pub mod keys;
#[cfg(feature = "host")]
pub mod mint;
pub mod tags;
#[cfg(feature = "host")]
pub mod verify;

pub use claims::Claims;
pub use header::{Header, Kind, Source};
