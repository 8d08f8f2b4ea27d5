//! The time of a packet, from the kernel's own ticks. It advances without the daemon.
//!
//! The kernel advances its ticks by CLOCK_MONOTONIC (kernel/time/tick-sched.c), and `bpf_jiffies64` is one inlined
//! load. Every helper that returns nanoseconds is a call of 3 to 20 ns. A tick is 1 to 10 ms; tokens count seconds.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use lb_common::control::{ClockReading, ControlPage};

use crate::{
    packet::Frame,
    shared::{Shared, field},
};

/// One reading of the clock.
#[derive(Clone, Copy)]
pub struct Now {
    /// Nanoseconds since boot, plus a constant.
    pub kernel_ns: u64,
    /// Unix time, nanoseconds.
    pub unix_ns: u64,
}

/// Reads the clock.
#[inline(always)]
pub fn now(control: Shared<ControlPage>) -> Now {
    // SAFETY: the helper has no preconditions.
    let kernel_ns = unsafe { bpf_jiffies64() }.wrapping_mul(field!(control, tick_ns).read());
    Now { kernel_ns, unix_ns: kernel_ns.wrapping_add(field!(control, offset_ns).read()) }
}

/// Writes the time of two kernel clocks over the start of a frame.
#[inline(always)]
pub fn report(frame: &Frame) -> Option<()> {
    // SAFETY: the helpers have no preconditions.
    let (jiffies, monotonic_ns) = unsafe { (bpf_jiffies64(), bpf_ktime_get_coarse_ns()) };
    frame.start().write(0, ClockReading { jiffies, monotonic_ns })
}
