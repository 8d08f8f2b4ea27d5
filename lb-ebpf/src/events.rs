//! Messages of the program in the daemon's log. It logs only failures that should never happen, because packets must
//! not be able to cause log lines.

use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::error;

/// Logs the unexpected failure of a kernel helper.
#[inline(never)]
pub fn internal(ctx: &XdpContext, service_id: u32) {
    error!(
        ctx,
        "a packet of service {} was dropped: a kernel helper failed where it never should", service_id
    );
}
