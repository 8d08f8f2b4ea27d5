//! What the programs share: frames, and the headers in them.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod headers;
pub mod packet;
