//! The programs that people run: demo, load test and benchmark, and what they share.

pub mod load_test;
pub mod options;
pub mod replay;
