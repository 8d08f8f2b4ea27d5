//! What the programs share: frames, the headers in them, and what the verifier needs besides.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod headers;
pub mod packet;
pub mod verifier;
pub mod wire;
