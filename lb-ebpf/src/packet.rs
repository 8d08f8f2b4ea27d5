//! Frames, with bounds-checked reads and writes by value. Only this module does pointer arithmetic on frames.

use core::{cell::Cell, ptr};

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{
        bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
    },
    programs::XdpContext,
};
use lb_common::{
    control::ClockReading,
    reason::Reason,
    scratch::{BLOCK_LEN, Block},
};
use network_types::{eth::EthHdr, vlan::VlanHdr};

use crate::verifier::opaque;

/// The types that may be copied from and to a packet: without padding, and valid for every bit pattern.
///
/// # Safety
/// The type is `repr(C)` of integers, or an integer, and has no padding.
pub unsafe trait Wire: Copy {}

// SAFETY: integers.
unsafe impl Wire for u8 {}
// SAFETY: integers.
unsafe impl Wire for u16 {}
// SAFETY: integers.
unsafe impl Wire for u32 {}
// SAFETY: integers.
unsafe impl Wire for u64 {}
// SAFETY: two MAC addresses and a u16, 14 bytes.
unsafe impl Wire for EthHdr {}
// SAFETY: two times two bytes.
unsafe impl Wire for VlanHdr {}
// SAFETY: two u64, `repr(C)`.
unsafe impl Wire for ClockReading {}
// SAFETY: an array of elements that are `Wire`.
unsafe impl<T: Wire, const N: usize> Wire for [T; N] {}

/// The frame of a program run, as received or as changed by the program.
pub struct Frame {
    ctx: *mut xdp_md,
    data: usize,
    end: usize,
    /// The length of all its buffers in bytes, as far as it is known.
    len: Cell<u64>,
}

impl Frame {
    /// The frame of a program run, in its current state.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self::at(ctx.ctx)
    }

    /// As [`Frame::of`], from the context that the kernel passed to the program.
    #[inline(always)]
    pub fn at(ctx: *mut xdp_md) -> Self {
        let now = XdpContext::new(ctx);
        let (data, end) = (now.data(), now.data_end());
        Self { ctx, data, end, len: Cell::new((end - data) as u64) }
    }

    /// The kernel's context, for a function that cannot take a [`Frame`].
    #[inline(always)]
    pub const fn context(&self) -> *mut xdp_md {
        self.ctx
    }

    /// Its length in bytes, Ethernet header included. If the frame is in several buffers, it is the length of the first
    /// buffer, until [`Frame::holds`] has asked the kernel for the length of all: that costs a call, and few frames are
    /// so long.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
    pub fn len(&self) -> u64 {
        self.len.get()
    }

    /// Whether it contains `len` bytes from a position in its first buffer. Bytes in other buffers cannot be read here.
    #[inline(always)]
    pub fn holds(&self, from: Cursor, len: u32) -> bool {
        if from.holds(len) {
            return true;
        }
        // SAFETY: `ctx` is the context of this program run.
        self.len.set(unsafe { bpf_xdp_get_buff_len(self.ctx) });
        u64::from(len) + from.offset_in(self) as u64 <= self.len()
    }

    /// The position of its first byte.
    #[inline(always)]
    pub fn start(&self) -> Cursor {
        Cursor { at: self.data, end: self.end }
    }

    /// The ingress interface.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        // SAFETY: `ctx` is the context of this program run; the verifier checks the offset.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    /// The same position within the first `MASK` bytes, whose offset the verifier does not know. Without this, the
    /// verifier follows the rest of the program once for each offset.
    #[inline(always)]
    pub fn forget_offset<const MASK: usize>(&self, position: Cursor) -> Cursor {
        // To the verifier, the difference of two pointers is an unknown number; LLVM would compute it without the
        // pointers.
        let at = opaque(position.at).wrapping_sub(self.data) & MASK;
        Cursor { at: self.data + at, end: self.end }
    }

    /// The sum (RFC 1071) of `len` bytes from `offset` on, in any of its buffers. `block` is working memory.
    #[inline(always)]
    pub fn sum(&self, offset: u32, len: u32, block: &mut Block) -> Result<u32, Reason> {
        /// The longest datagram, in blocks.
        const BLOCKS_MAX: usize = (u16::MAX as usize).div_ceil(BLOCK_LEN);
        let (mut offset, mut left, mut sum) = (offset, len as usize, 0);
        for _ in 0..BLOCKS_MAX {
            if left < BLOCK_LEN {
                break;
            }
            self.copy(offset, BLOCK_LEN, block)?;
            sum = sum_of(block, sum)?;
            (offset, left) = (offset + BLOCK_LEN as u32, left - BLOCK_LEN);
        }
        if left == 0 {
            return Ok(sum);
        }
        // The same number, in a form in which the verifier can see that it is between 1 and the length of a block.
        let left = opaque(left - 1) % BLOCK_LEN + 1;
        for word in &mut block.0 {
            // SAFETY: a word of the block. Volatile, so that LLVM does not call `memset`, which BPF does not have.
            unsafe { ptr::from_mut(word).write_volatile(0) };
        }
        self.copy(offset, left, block)?;
        sum_of(block, sum)
    }

    /// Copies bytes from `offset` on to the start of a block, which has room for them.
    #[inline(always)]
    fn copy(&self, offset: u32, len: usize, block: &mut Block) -> Result<(), Reason> {
        let to = ptr::from_mut(block).cast();
        // SAFETY: `ctx` is the context of this program run; the verifier compares `len` with the block.
        match unsafe { bpf_xdp_load_bytes(self.ctx, offset, to, len as u32) } {
            0 => Ok(()),
            _ => Err(Reason::Internal),
        }
    }

    /// Removes `by` bytes at its start, or adds `-by` bytes there if `by` is negative. Earlier positions in it become
    /// invalid: the verifier rejects a program that uses one.
    #[inline(always)]
    pub fn take_off(&self, by: i32) -> Result<Self, Reason> {
        // SAFETY: `ctx` is the context of this program run.
        match unsafe { bpf_xdp_adjust_head(self.ctx, by) } {
            0 => Ok(Self::at(self.ctx)),
            _ => Err(Reason::Internal),
        }
    }

    /// Truncates it to its first `len` bytes. As with [`Frame::take_off`], earlier positions become invalid.
    #[inline(always)]
    pub fn cut_to(&self, len: u32) -> Result<Self, Reason> {
        // SAFETY: `ctx` is the context of this program run.
        let cut =
            unsafe { bpf_xdp_adjust_tail(self.ctx, len as i32 - bpf_xdp_get_buff_len(self.ctx) as i32) };
        if cut == 0 { Ok(Self::at(self.ctx)) } else { Err(Reason::Internal) }
    }
}

/// The sum of a block and of `before`.
#[inline(always)]
fn sum_of(block: &mut Block, before: u32) -> Result<u32, Reason> {
    let words = ptr::from_mut(block).cast();
    // SAFETY: all of the block.
    let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, words, BLOCK_LEN as u32, before) };
    u32::try_from(sum).map_err(|_| Reason::Internal)
}

/// The maximum number of bytes that the kernel sums in one call.
pub const SUM_MAX: usize = BLOCK_LEN;

/// A position in a frame.
#[derive(Clone, Copy)]
pub struct Cursor {
    at: usize,
    end: usize,
}

impl Cursor {
    /// The position `bytes` further. It can be beyond the end; a read there returns `None`.
    #[inline(always)]
    pub fn skip(self, bytes: usize) -> Self {
        Self { at: self.at + bytes, ..self }
    }

    /// Whether the frame contains `len` bytes from this position, which must not be beyond the end.
    ///
    /// The comparison has 32 bits. From a comparison of pointers, LLVM would conclude that later reads need no check,
    /// and the verifier, which cannot draw that conclusion, would reject them.
    #[inline(always)]
    fn holds(self, len: u32) -> bool {
        self.end.wrapping_sub(self.at) as u32 >= len
    }

    /// Bytes from the start of the frame to this position.
    #[inline(always)]
    pub fn offset_in(self, frame: &Frame) -> usize {
        self.at - frame.data
    }

    /// The value at `offset`, if the frame holds all of it.
    #[inline(always)]
    pub fn read<T: Wire>(self, offset: usize) -> Option<T> {
        let at = self.at + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: inside the frame, as was just checked; unaligned and without invalid bit patterns, as `Wire` is.
        Some(unsafe { ptr::read_unaligned(at as *const T) })
    }

    /// The sum (RFC 1071) of `N` bytes at `offset` and of `before`, if the frame holds all of them. `N` is a multiple
    /// of four, and at most [`SUM_MAX`].
    #[inline(always)]
    pub fn sum<const N: usize>(self, offset: usize, before: u32) -> Option<u32> {
        const { assert!(N.is_multiple_of(4) && N <= SUM_MAX) };
        let at = self.at + offset;
        if at + N > self.end {
            return None;
        }
        // SAFETY: inside the frame, as was just checked.
        let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, at as *mut u32, N as u32, before) };
        u32::try_from(sum).ok()
    }

    /// Writes words at `offset`, if the frame holds all of them. They are written one by one, because LLVM copies an
    /// unaligned array byte by byte.
    #[inline(always)]
    pub fn write_words<const N: usize>(self, offset: usize, words: &[u32; N]) -> Option<()> {
        let at = self.at + offset;
        if at + size_of::<[u32; N]>() > self.end {
            return None;
        }
        let mut i = 0;
        while i < N {
            // SAFETY: inside the frame, as was just checked, and nothing else refers to its bytes.
            unsafe { ptr::write_unaligned((at as *mut u32).add(i), words[i]) };
            i += 1;
        }
        Some(())
    }

    /// The words at `offset`, if the frame holds all of them, one by one as [`Cursor::write_words`].
    #[inline(always)]
    pub fn read_words<const N: usize>(self, offset: usize) -> Option<[u32; N]> {
        let at = self.at + offset;
        if at + size_of::<[u32; N]>() > self.end {
            return None;
        }
        let mut words = [0; N];
        let mut i = 0;
        while i < N {
            // SAFETY: inside the frame, as was just checked.
            words[i] = unsafe { ptr::read_unaligned((at as *const u32).add(i)) };
            i += 1;
        }
        Some(words)
    }

    /// Writes at `offset`, if the frame holds all of it.
    #[inline(always)]
    pub fn write<T: Wire>(self, offset: usize, value: T) -> Option<()> {
        let at = self.at + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: inside the frame, as was just checked, and nothing else refers to its bytes.
        unsafe { ptr::write_unaligned(at as *mut T, value) };
        Some(())
    }
}
