//! The control socket, metrics and health: listeners, routes, access control, and the client.

pub mod access;
pub mod client;
pub mod listen;
mod metrics;
pub mod serve;
pub mod server;

pub use metrics::{Metric, MetricKind};
