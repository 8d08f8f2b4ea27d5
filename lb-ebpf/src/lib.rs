//! The code that the XDP programs share: frames, packet headers, and helpers for the verifier.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod headers;
pub mod packet;
pub mod verifier;
pub mod wire;
