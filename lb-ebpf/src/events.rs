//! What the program writes to the daemon's log: only what should never happen, because nobody may cause log lines by
//! packets.

use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::error;

/// A kernel helper failed where it never should.
#[inline(never)]
pub fn internal(ctx: &XdpContext, service_id: u32) {
    error!(
        ctx,
        "a packet of service {} was dropped: a kernel helper failed where it never should", service_id
    );
}
