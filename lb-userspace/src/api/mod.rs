//! What others see of the daemon: the control socket, metrics, health.

pub mod client;
pub mod messages;
mod metrics;
pub mod server;
