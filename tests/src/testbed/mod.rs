//! Hosts in network namespaces, and the real `tollgate` on them.

pub mod bpffs;
pub mod cleanup;
pub mod daemon;
pub mod decap;
pub mod forward;
pub mod issuer;
pub mod netns;
pub mod receive_thread;
pub mod topology;
pub mod user;
pub mod vlan;
