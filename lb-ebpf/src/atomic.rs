//! BPF's compare-and-exchange, which core does not offer for this target.

use core::arch::asm;

/// Changes a word from `old` to `new`; false if it has changed before.
///
/// # Safety
/// `at` is an aligned word of a map's value, or the verifier refuses the program.
#[inline(always)]
pub unsafe fn replace_u64(at: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: r0 is compared, and gets what was there.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inout("r0") old => found,
            options(nostack),
        );
    }
    found == old
}

/// The same for 32 bits; returns what was there before.
///
/// # Safety
/// As [`replace_u64`].
#[inline(always)]
pub unsafe fn exchange_u32(at: *mut u32, old: u32, new: u32) -> u32 {
    let found: u32;
    // SAFETY: as above.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32({at} + 0, w0, {new})",
            at = in(reg) at,
            new = in(wreg) new,
            inout("w0") old => found,
            options(nostack),
        );
    }
    found
}
