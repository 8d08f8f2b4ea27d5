//! Packets, the state that the XDP program is given, and what it must do with them: needs the program, no network.

pub mod case;
pub mod oracle;
pub mod packet;
pub mod program;
pub mod tunnel;
pub mod way;
pub mod world;
