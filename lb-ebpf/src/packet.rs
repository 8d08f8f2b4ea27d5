//! The only pointer arithmetic: a frame, and bounds-checked reads and writes by value.

use core::ptr;

use aya_ebpf::{bindings::xdp_md, helpers::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::live::ClockReading;
use network_types::{eth::EthHdr, ip::Ipv4Hdr, udp::UdpHdr, vlan::VlanHdr};

/// What may be copied out of a packet and into it: types without padding, valid for every bit pattern.
///
/// # Safety
/// The type is `repr(C)` of integers, or an integer, and has no padding.
pub unsafe trait Wire: Copy {}

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
// SAFETY: arrays of bytes, 20 bytes.
unsafe impl Wire for Ipv4Hdr {}
// SAFETY: arrays of bytes, 8 bytes.
unsafe impl Wire for UdpHdr {}
// SAFETY: two u64, `repr(C)`.
unsafe impl Wire for ClockReading {}
// SAFETY: an array of what is safe.
unsafe impl<T: Wire, const N: usize> Wire for [T; N] {}

/// A frame as the driver handed it over.
pub struct Frame {
    ctx: *mut xdp_md,
    data: usize,
    end: usize,
}

impl Frame {
    /// The frame of a program run.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx, data: ctx.data(), end: ctx.data_end() }
    }

    /// Its length in bytes, Ethernet header included.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        (self.end - self.data) as u64
    }

    /// Its first byte.
    #[inline(always)]
    pub fn start(&self) -> Cursor {
        Cursor { at: self.data, end: self.end }
    }

    /// The interface it came in on.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        // SAFETY: `ctx` is the context of this program run; the verifier checks the offset.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    /// Takes `len` bytes off its start. Whoever calls this touches no cursor afterwards.
    #[inline(always)]
    pub fn take_off(&self, len: u16) -> Result<(), ()> {
        // SAFETY: `ctx` is the context of this program run.
        match unsafe { bpf_xdp_adjust_head(self.ctx, len.into()) } {
            0 => Ok(()),
            _ => Err(()),
        }
    }
}

/// A position in a frame.
#[derive(Clone, Copy)]
pub struct Cursor {
    at: usize,
    end: usize,
}

impl Cursor {
    /// Further on by `bytes`, which may lie beyond the end: reading there finds nothing.
    #[inline(always)]
    pub fn skip(self, bytes: usize) -> Self {
        Self { at: self.at + bytes, ..self }
    }

    /// Whether the frame holds `len` bytes from here, where it holds at least none.
    ///
    /// In 32 bits: from a comparison of pointers LLVM concludes that later reads need no check, and the verifier,
    /// which follows no such conclusion, refuses them.
    #[inline(always)]
    pub fn holds(self, len: u16) -> bool {
        self.end.wrapping_sub(self.at) as u32 >= u32::from(len)
    }

    /// Bytes from the start of the frame to here.
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
