//! Unix time in the kernel: its own monotonic clock and an offset that the daemon publishes.

/// What the daemon publishes. If it stops, time goes on: tokens still expire when they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Clock {
    /// Unix time minus CLOCK_MONOTONIC, nanoseconds. Zero: never published.
    pub offset_ns: u64,
}

const _: () = assert!(size_of::<Clock>() == 8 && align_of::<Clock>() == 8);
crate::map_value!(Clock);

/// Nanoseconds of a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// By how much the clocks of issuers and balancers may differ (token.md).
pub const SKEW_NS: u64 = 2 * SECOND_NS;
