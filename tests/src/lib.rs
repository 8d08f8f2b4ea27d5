//! The shared code of Tollgate's tests: packets and the required outcome of each, hosts to test the daemon on, and the
//! programs that people run.

pub mod fuzz;
pub mod model;
pub mod testbed;
pub mod tools;
