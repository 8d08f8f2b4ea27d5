//! Requirements of the kernel's verifier and of LLVM, beyond correct code. The functions and constants for them are
//! here. Requirements that determine the structure of other code are listed here, with their reasons.
//!
//! **The verifier follows every path.** It stops following a path when it has seen the same state before. Two different
//! numbers are two different states: [`forget_number`] and `Frame::forget_offset` make them one. A global subprogram
//! (`subprogram.rs`) is verified once, independently of its arguments.
//!
//! **LLVM knows more than the verifier.** LLVM removes a check that follows from an earlier one, and the verifier then
//! misses it: [`opaque`] hides a number from LLVM. Pointers are compared in 32 bits (`Cursor::holds`), and the Ethernet
//! header is read before the bytes after it (`L2Header::of`), for the same reason.
//!
//! **The verifier needs bounds for offsets into a frame**: the masks here. Linux 6.1 must be able to prove that the
//! length argument of a helper is at least 1 (`Frame::sum`).
//!
//! **BPF has no `memcpy`, `memset`, `memcmp`.** LLVM calls them for arrays and structures that are copied, filled or
//! compared as a whole. Therefore headers and addresses are words that are handled one by one, and `Shared::copy_to`
//! and `Frame::sum` use volatile words.
//!
//! **The stack is 512 bytes for a chain of calls**, and each frame is rounded up to 32 bytes. Therefore keys and values
//! for map helpers are in the scratch, and a step that needs another subprogram (`nat::check`, `nat::port`) does not
//! call it, but returns to its caller, which calls it.
//!
//! **After a global subprogram that may change the packet**, the verifier treats pointers into the frame as numbers. So
//! no code reads a frame after a call without new pointers, which `Frame::at` creates.
//!
//! **A value that lives until the end must be set on every path** (`verdict::conclude`): the verifier of Linux 6.1
//! rejects a register that LLVM left undefined because only one path reads it. `Delivery::Host` is not the first
//! variant for a similar reason: its number 0 would be that of `FORWARD_LOCAL`, LLVM would use one register for both,
//! and Linux 6.1 cannot verify that.

use core::{arch::asm, ptr};

/// Covers the offset of an IP header: after 14 bytes of Ethernet and four VLAN tags.
pub const IP_AT_MASK: usize = 0x1f;
/// Covers the offset of a payload: after at most four tags, IPv6 and UDP.
pub const PAYLOAD_AT_MASK: usize = 0x7f;
/// Covers the offset of the payload's first words: after at most 70 bytes of headers and the token.
pub const PAYLOAD_WORD_AT_MASK: usize = 0xff;

/// The same number, unknown to LLVM: a check of it stays in the program, although LLVM could prove it superfluous.
#[inline(always)]
pub fn opaque(mut number: usize) -> usize {
    // SAFETY: a register is copied to itself. (Without an instruction, two source lines would be at one instruction,
    // which the kernel rejects.)
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

/// Uses an argument of a subprogram. LLVM does not pass an argument that is not used, but the verifier requires all
/// arguments.
#[inline(always)]
pub fn keep<T>(argument: *mut T) {
    // SAFETY: as in `opaque`.
    unsafe { asm!("{0} = {0}", in(reg) argument as usize, options(nomem, nostack, preserves_flags)) };
}
