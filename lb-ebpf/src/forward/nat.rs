//! `forward = "nat"`: to the backend's address and port, from a port of this node that stands for the client; and the
//! backend's answers back to the client.
//!
//! The table of translations is an LRU: when it is full, the client that was quiet for longest gets another port. Which
//! ports a client may have follows from its session, so its translation is found without another table.

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
