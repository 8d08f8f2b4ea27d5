//! The daemon and its command line, end to end: the real binary in network namespaces, real sockets.

mod callers;
mod clock;
mod commands;
mod disk;
mod health;
mod hops;
mod keys;
mod lab;
mod lifecycle;
mod limits;
mod metrics;
mod mtu;
mod nat;
mod nodes;
mod refusals;
mod revocation;
mod sandbox;
mod secrets;
#[cfg(target_arch = "x86_64")]
mod taken_over;
mod traffic;
mod ways;
