//! The programs that people run: demo, load test and benchmark, and what they share.

pub mod options;
pub mod replay;
pub mod spike;
