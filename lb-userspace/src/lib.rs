//! Tollgate, the daemon and its command line.

pub mod api;
pub mod balancer;
pub mod config;
pub mod control;
pub mod datapath;
pub mod keyring;
pub mod network;
pub mod protocol;
pub mod revocation;
pub mod sandbox;
pub mod store;
pub mod token;
mod version;
