//! The contract between Tollgate's XDP program and its daemon, and the decisions that need no kernel.
//!
//! `no_std`: the same code checks a packet in the driver and in a test on the host. Values of the maps are
//! `repr(C)` without padding; a bare integer is in host order, a name ending in `_be` is in network order.
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

/// Declares that a map value may cross between program and daemon as bytes.
///
/// The types are `repr(C)`, hold integers and arrays of integers alone and have no padding, which the layout
/// assertions beside each of them check.
macro_rules! map_value {
    ($($value:ty),+ $(,)?) => {$(
        // SAFETY: `repr(C)`, only integers, no padding (asserted beside the type), valid for every bit pattern.
        #[cfg(feature = "aya")]
        unsafe impl aya::Pod for $value {}
    )+};
}
pub(crate) use map_value;
