//! The harness of Tollgate's tests: packets, the world they come into, and the program in the kernel.

pub mod bpffs;
pub mod case;
pub mod daemon;
pub mod forward;
pub mod fuzz;
pub mod issuer;
pub mod leftovers;
pub mod napi;
pub mod netns;
pub mod options;
pub mod oracle;
pub mod packet;
pub mod program;
pub mod replay;
pub mod spike;
pub mod topology;
pub mod tunnel;
pub mod user;
pub mod vlan;
pub mod way;
pub mod world;
