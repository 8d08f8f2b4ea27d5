//! What the kernel's verifier and LLVM need besides correct code. Everything of this kind that is a function or a
//! constant is here; what shows in the shape of other code is listed here, with its reason.
//!
//! **The verifier follows every path.** It stops looking at a path where it has seen the same state before. Two numbers
//! that differ are two states: [`forget_number`] and `Frame::forget_offset` make them one. A global subprogram
//! (`subprogram.rs`) is verified once, whatever its arguments are.
//!
//! **LLVM knows more than the verifier.** A check that follows from an earlier one is removed, and the verifier misses
//! it: [`opaque`] hides a number from LLVM. Pointers are compared in 32 bits (`Cursor::holds`), and the Ethernet header
//! is read before what follows it (`L2Header::of`), for the same reason.
//!
//! **The verifier needs bounds for offsets into a frame**: the masks here. The length that a helper is called with must
//! be at least 1 by what Linux 6.1 can prove (`Frame::sum`).
//!
//! **BPF has no `memcpy`, `memset`, `memcmp`.** LLVM calls them for arrays and structures that are copied, filled or
//! compared as a whole. So headers and addresses are words that are handled one by one, and `Shared::copy_to` and
//! `Frame::sum` use volatile words.
//!
//! **The stack is 512 bytes for a chain of calls**, and each frame is rounded up to 32 bytes. So keys and values for
//! map helpers are in the scratch, and a step that calls back (`nat::check`, `nat::port`) returns to its caller, who
//! calls the next, instead of calling it.
//!
//! **After a global subprogram that may change the packet**, pointers into the frame are numbers. Nothing reads a frame
//! after a call; `Frame::at` makes new pointers.
//!
//! **A value that lives until the end must be set on every path** (`verdict::conclude`): the verifier of Linux 6.1
//! refuses a register that LLVM left undefined because only one path reads it. `Delivery::Host` is not the first
//! variant for a similar reason: its number 0 would be that of `FORWARD_LOCAL`, LLVM would use one register for both,
//! and Linux 6.1 does not follow that.

use core::{arch::asm, ptr};

/// Covers the offset of an IP header: behind 14 bytes of Ethernet and four VLAN tags.
pub const IP_AT_MASK: usize = 0x1f;
/// Covers the offset of a payload: behind at most four tags, IPv6 and UDP.
pub const PAYLOAD_AT_MASK: usize = 0x7f;
/// Covers the offset of the payload's first words: behind at most 70 bytes of headers and the token.
pub const PAYLOAD_WORD_AT_MASK: usize = 0xff;

/// The same number, unknown to LLVM: a check of it stays in the program, although LLVM could prove it superfluous.
#[inline(always)]
pub fn opaque(mut number: usize) -> usize {
    // SAFETY: a register is copied to itself. (Without any instruction, two lines would be at one instruction: the
    // kernel refuses that.)
    unsafe { asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}

/// The same number, unknown to the verifier: it is stored in memory of a map and loaded again. Without this, the
/// verifier follows the rest of the program once for each value.
#[inline(always)]
pub fn forget_number(number: u32, memory: &mut u32) -> u32 {
    let memory = ptr::from_mut(memory);
    // SAFETY: an exclusively borrowed word. Volatile: LLVM would use the number that it has.
    unsafe {
        memory.write_volatile(number);
        memory.read_volatile()
    }
}

/// Uses an argument of a subprogram. LLVM does not pass an argument that is not used, and the verifier demands all.
#[inline(always)]
pub fn keep<T>(argument: *mut T) {
    // SAFETY: as in `opaque`.
    unsafe { asm!("{0} = {0}", in(reg) argument as usize, options(nomem, nostack, preserves_flags)) };
}
