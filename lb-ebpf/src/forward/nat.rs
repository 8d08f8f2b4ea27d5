//! `forward = "nat"`: datagrams are rewritten to the backend's address and port, with a port of this node that
//! represents the client. The backend's answers are rewritten to the client.
//!
//! The translations are in an LRU map: when it is full, a client that has been idle for a long time loses its port, and
//! gets another one later. The session of a client determines its candidate ports, so its translation is found without
//! a second table.

mod answer;
mod check;
mod embedded;
mod fragment;
mod port;
mod to_backend;
mod translation;

pub use answer::answer;
pub use embedded::{icmp_error_to_backend, icmp_error_to_client};
pub use to_backend::to_backend;
