//! The interface between Tollgate's XDP program and its daemon, and the packet checks that need no kernel.
//!
//! `no_std`: the same code checks packets in XDP and in tests on the host. Map values are `repr(C)` without padding.
//! Integers are in host byte order, except those whose name ends in `_be`, which are in network byte order.
#![cfg_attr(not(test), no_std)]

pub mod backend;
pub mod balance;
pub mod checksum;
pub mod control;
pub mod counter;
pub mod decap;
pub mod flow;
pub mod forward;
pub mod keyslot;
pub mod mac;
pub mod maps;
pub mod nat;
pub mod rate;
pub mod reason;
pub mod revocation;
pub mod scratch;
pub mod service;
pub mod session;
pub mod sha256;
pub mod siphash;
pub mod token;

/// Declares that the program and the daemon may exchange a map value as bytes.
///
/// The types are `repr(C)`, contain only integers and arrays of integers, and have no padding. The layout assertions
/// next to each type check this.
macro_rules! map_value {
    ($($value:ty),+ $(,)?) => {$(
        // SAFETY: `repr(C)`, only integers, no padding (asserted next to the type), valid for every bit pattern.
        #[cfg(feature = "aya")]
        unsafe impl aya::Pod for $value {}
    )+};
}
pub(crate) use map_value;
