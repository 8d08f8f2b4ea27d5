//! Tollgate, the daemon and its command line.

pub mod config;
pub mod keyring;
