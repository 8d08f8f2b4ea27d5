//! The daemon and its command line, end to end: the real binary in network namespaces, real sockets.

mod api;
mod callers;
mod checks;
mod cleanup;
mod clock;
mod commands;
mod decap;
mod disk;
mod forged_icmp;
mod forwarding;
mod health;
mod hops;
mod interfaces;
mod keys;
mod lifecycle;
mod limits;
mod macs;
mod metrics;
mod mtu;
mod nat;
mod nodes;
mod pins;
mod ready;
mod refusals;
mod revocation;
mod rollback;
mod sandbox;
mod secrets;
#[cfg(target_arch = "x86_64")]
mod taken_over;
mod testbed;
mod traffic;
