//! Tollgate, the daemon and its command line.

pub mod balancer;
pub mod config;
pub mod datapath;
pub mod keyring;
pub mod store;
