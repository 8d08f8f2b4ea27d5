//! XDP programs for benchmark and load test: the kernel's test runs repeat one packet, and these programs replace its
//! token in every run.
//!
//! Each run writes the next token of a table into the frame. Then it becomes the program under test by a tail call, or
//! sends the frame. The cost of the replay is measured with a program under test that does nothing.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "`#[xdp(frags)]` writes a function without documentation around each program"
)]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::token::header;

/// Token headers. The loader sets the size.
#[btf_map(name = "tokens")]
static TOKENS: Array<[u64; header::LEN / 8], 1> = Array::new();

/// The range of tokens to use, and the next one.
#[btf_map(name = "window")]
static WINDOW: Array<Window, 1> = Array::new();

/// The program under test.
#[btf_map(name = "tested")]
static TESTED: ProgramArray<1> = ProgramArray::new();

/// The start of a frame.
#[btf_map(name = "heads")]
static HEADS: Array<[u32; HEAD_WORDS], 1> = Array::new();

/// Layout as in the benchmark.
#[repr(C)]
struct Window {
    first: u32,
    end: u32,
    next: u32,
    /// Bytes of a frame before its length is changed.
    frame_len: u32,
    /// Offset of the token in a frame.
    token_at: u32,
    /// The number of bytes by which every second run shortens the frame, for a program under test that keeps its
    /// length.
    alternate: u32,
}

/// When frames are sent; with the interval 0, immediately.
#[btf_map(name = "pace")]
static PACE: Array<Pace, 1> = Array::new();

/// Layout as in the load test. Times of the kernel's monotonic clock.
#[repr(C)]
struct Pace {
    interval_ns: u64,
    due_ns: u64,
}

/// Number of frames that may be late.
const LATE: u64 = 128;
/// Maximum number of clock readings before the next frame: about 20 microseconds.
const READINGS: u32 = 1000;

/// Covers the largest offset of a token: after Ethernet, two tags, IPv6 and UDP.
const TOKEN_AT_MASK: usize = 0x7f;
/// The longest headers that a program under test changes, and some reserve: 22 + 40 + 8 bytes.
const HEAD_WORDS: usize = 18;

/// For a program that keeps the length of frames.
#[xdp(frags)]
pub fn replay(ctx: XdpContext) -> u32 {
    test(&ctx, put_next_token(&ctx))
}

/// For a program that changes headers or the length of the frame: restores both.
#[xdp(frags)]
pub fn replay_restored(ctx: XdpContext) -> u32 {
    let ready = window()
        .and_then(|window| {
            let longer_by = len(&ctx) as i32 - window.frame_len as i32;
            let take_off = if longer_by == 0 { window.alternate as i32 } else { longer_by };
            if take_off == 0 { Some(()) } else { resize(&ctx, take_off) }
        })
        .and_then(|()| put_head(&ctx))
        .and_then(|()| put_next_token(&ctx));
    test(&ctx, ready)
}

/// Sends the frame instead of running a program under test.
#[xdp(frags)]
pub fn send(ctx: XdpContext) -> u32 {
    wait();
    if put_next_token(&ctx).is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
}

/// Waits until the next frame is due. Frames are sent in batches, so some are late and the next ones are sent earlier;
/// a longer pause is not compensated.
#[inline(always)]
fn wait() {
    // SAFETY: one program sends at a time.
    let Some(pace) = PACE.get_ptr_mut(0).map(|pace| unsafe { &mut *pace }) else { return };
    if pace.interval_ns == 0 {
        return;
    }
    // SAFETY: the helper has no arguments.
    let mut now_ns = unsafe { bpf_ktime_get_ns() };
    for _ in 0..READINGS {
        if now_ns >= pace.due_ns {
            break;
        }
        // SAFETY: as above.
        now_ns = unsafe { bpf_ktime_get_ns() };
    }
    pace.due_ns = (pace.due_ns + pace.interval_ns).max(now_ns - LATE * pace.interval_ns);
}

/// The minimum work of a program that drops a frame.
#[xdp(frags)]
pub fn discard(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Like [`discard`], for the frames of a flood, identified by the last four bytes of their source MAC address
/// (lb-tests, load_test/junk.rs).
#[xdp(frags)]
pub fn discard_flood(ctx: XdpContext) -> u32 {
    const FLOOD: u32 = u32::from_ne_bytes([0xf1, 0x00, 0x0d, 0x5b]);
    let at = ctx.data() + 8;
    if at + size_of::<u32>() > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: inside the frame, as was just checked.
    let source = unsafe { (at as *const u32).read_unaligned() };
    if source == FLOOD { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

#[inline(always)]
fn window() -> Option<&'static mut Window> {
    // SAFETY: one benchmark runs one of these programs at a time.
    WINDOW.get_ptr_mut(0).map(|window| unsafe { &mut *window })
}

#[inline(always)]
fn put_next_token(ctx: &XdpContext) -> Option<()> {
    let window = window()?;
    let token = TOKENS.get(window.next)?;
    window.next = if window.next + 1 < window.end { window.next + 1 } else { window.first };
    let at = ctx.data() + (window.token_at as usize & TOKEN_AT_MASK);
    if at + header::LEN > ctx.data_end() {
        return None;
    }
    // SAFETY: inside the frame, as was just checked.
    unsafe { (at as *mut [u64; header::LEN / 8]).write_unaligned(*token) };
    Some(())
}

#[inline(always)]
fn put_head(ctx: &XdpContext) -> Option<()> {
    let head = HEADS.get(0)?;
    let at = ctx.data();
    if at + size_of::<[u32; HEAD_WORDS]>() > ctx.data_end() {
        return None;
    }
    for (word, i) in head.iter().zip(0..) {
        // SAFETY: inside the frame, as was just checked. Word by word: LLVM copies an unaligned array byte by byte.
        unsafe { (at as *mut u32).add(i).write_unaligned(*word) };
    }
    Some(())
}

/// From the kernel: LLVM would subtract pointers in 32 bits, which the verifier rejects.
#[inline(always)]
fn len(ctx: &XdpContext) -> u32 {
    // SAFETY: the context of this program run.
    (unsafe { bpf_xdp_get_buff_len(ctx.ctx) }) as u32
}

#[inline(always)]
fn resize(ctx: &XdpContext, by: i32) -> Option<()> {
    // SAFETY: the context of this program run.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, by) } == 0).then_some(())
}

#[inline(always)]
fn test(ctx: &XdpContext, ready: Option<()>) -> u32 {
    if ready.is_some() {
        // SAFETY: no value here needs to be dropped. The call returns only if there is no program.
        unsafe { TESTED.tail_call(ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// The licence that lets a program call the kernel's GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program in which this code is reachable.
    loop {}
}
