//! The shared code of Tollgate's tests: packets and what the program must do with them, hosts to test the daemon on,
//! and the programs that people run.

pub mod fuzz;
pub mod model;
pub mod testbed;
pub mod tools;
