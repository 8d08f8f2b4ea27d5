//! This host's network: next hops of backends, neighbours, interfaces, and whether packets reach the filter.
//! Everything here reads from the kernel; the reconcile loop in `control` acts on it.

mod addresses;
mod connection;
pub mod driver;
pub mod exposure;
mod links;
pub mod macs;
mod neighbours;
mod netlink;
mod raw;
mod reachability;
pub mod redirects;
pub mod resolve;
mod sockets;
mod types;

pub use connection::{Network, NetworkError};
pub use links::{Link, Links};
pub use neighbours::{KEPT, Resolution};
pub use reachability::BackendState;
pub use types::{Interface, Interfaces, Mac, Neighbour, Neighbours, Receives, Route, Switch, Vlan};
