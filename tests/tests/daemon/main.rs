//! The daemon and its command line, end to end: the real binary in network namespaces, real sockets.

mod commands;
mod keys;
mod lab;
mod lifecycle;
mod metrics;
mod refusals;
mod traffic;
