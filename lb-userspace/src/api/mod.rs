//! What others see of the daemon: the control socket, metrics, health.

pub mod access;
pub mod client;
pub mod listen;
mod metrics;
pub mod serve;
pub mod server;

pub use metrics::{Metric, MetricKind};
