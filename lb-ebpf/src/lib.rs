//! What the programs share: frames, and the headers in them.
#![no_std]

pub mod headers;
pub mod packet;
