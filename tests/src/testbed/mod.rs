//! Hosts in network namespaces, and the real `tollgate` on them.

pub mod bpffs;
pub mod daemon;
pub mod forward;
pub mod issuer;
pub mod leftovers;
pub mod napi;
pub mod netns;
pub mod topology;
pub mod user;
pub mod vlan;
