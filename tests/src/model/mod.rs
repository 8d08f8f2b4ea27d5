//! Packets, the state that the XDP program is given, and its required outcome. It runs the program in the kernel and
//! needs no network.

pub mod case;
pub mod fixture;
pub mod forwarding;
pub mod oracle;
pub mod packet;
pub mod program;
pub mod tunnel;
