//! The time of a packet, from the kernel's own ticks: it goes on when the daemon does not.
//!
//! The kernel advances its ticks by CLOCK_MONOTONIC (kernel/time/tick-sched.c), and `bpf_jiffies64` is one inlined
//! load, where every helper that tells nanoseconds is a call of 3 to 20 ns. A tick is 1 to 10 ms; tokens count seconds.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use lb_common::live::{ClockReading, Live};

use crate::packet::Frame;

/// One reading of the clock.
#[derive(Clone, Copy)]
pub struct Now {
    /// Nanoseconds since boot, give or take a constant.
    pub kernel_ns: u64,
    /// Unix time, nanoseconds.
    pub unix_ns: u64,
}

/// Reads the clock.
#[inline(always)]
pub fn now(live: &Live) -> Now {
    // SAFETY: the helper has no preconditions.
    let kernel_ns = unsafe { bpf_jiffies64() }.wrapping_mul(live.tick_ns);
    Now { kernel_ns, unix_ns: kernel_ns.wrapping_add(live.offset_ns) }
}

/// Writes both of the kernel's clocks over the start of a frame.
#[inline(always)]
pub fn report(frame: &Frame) -> Option<()> {
    // SAFETY: the helpers have no preconditions.
    let (jiffies, monotonic_ns) = unsafe { (bpf_jiffies64(), bpf_ktime_get_coarse_ns()) };
    frame.start().write(0, ClockReading { jiffies, monotonic_ns })
}
