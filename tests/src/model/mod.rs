//! Packets, the state that the XDP program is given, and what it must do with them: needs the program, no network.

pub mod case;
pub mod fixture;
pub mod forwarding;
pub mod oracle;
pub mod packet;
pub mod program;
pub mod tunnel;
