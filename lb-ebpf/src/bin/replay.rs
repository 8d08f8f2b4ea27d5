//! For benchmarks alone: the kernel's test runs repeat one packet, and these programs make each of them another.
//!
//! Each run puts the next token of a table into its frame and then becomes the program under test by a tail call, or
//! sends the frame. What they cost is measured with a program under test that does nothing.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "`#[xdp(frags)]` writes a function without documentation around each program"
)]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::token::header;

/// Token headers. The loader sets the size.
#[btf_map(name = "tokens")]
static TOKENS: Array<[u64; header::LEN / 8], 1> = Array::new();

/// Which of them are used, in turns.
#[btf_map(name = "window")]
static WINDOW: Array<Window, 1> = Array::new();

/// The program under test.
#[btf_map(name = "tested")]
static TESTED: ProgramArray<1> = ProgramArray::new();

/// As the benchmark writes it.
#[repr(C)]
struct Window {
    first: u32,
    end: u32,
    next: u32,
    /// Bytes of a frame before anything is taken off.
    frame_len: u32,
}

/// Where the token is in a frame: behind Ethernet, IPv4 and UDP.
const TOKEN_AT: usize = 14 + 20 + 8;

/// For a program that leaves frames as long as they are.
#[xdp(frags)]
pub fn replay(ctx: XdpContext) -> u32 {
    test(&ctx, put_next_token(&ctx))
}

/// For a program that takes the token off: puts room for the next one before the frame, behind whose beginning the
/// headers lie as they were.
#[xdp(frags)]
pub fn replay_stripped(ctx: XdpContext) -> u32 {
    let ready = window()
        .and_then(|window| if len(&ctx) < window.frame_len { resize(&ctx, -STRIPPED) } else { Some(()) })
        .and_then(|()| put_next_token(&ctx));
    test(&ctx, ready)
}

/// What [`replay_stripped`] costs, for a program that takes nothing off: one change of length per run, too.
#[xdp(frags)]
pub fn replay_resized(ctx: XdpContext) -> u32 {
    let ready = window()
        .and_then(|window| resize(&ctx, if len(&ctx) < window.frame_len { -STRIPPED } else { STRIPPED }))
        .and_then(|()| put_next_token(&ctx));
    test(&ctx, ready)
}

/// Sends the frame instead.
#[xdp(frags)]
pub fn send(ctx: XdpContext) -> u32 {
    if put_next_token(&ctx).is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
}

/// The least that a program can do with a frame it does not want.
#[xdp(frags)]
pub fn discard(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Bytes of a token.
const STRIPPED: i32 = header::LEN as i32;

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
    let at = ctx.data() + TOKEN_AT;
    if at + header::LEN > ctx.data_end() {
        return None;
    }
    // SAFETY: inside the frame, as was just checked.
    unsafe { (at as *mut [u64; header::LEN / 8]).write_unaligned(*token) };
    Some(())
}

#[inline(always)]
fn len(ctx: &XdpContext) -> u32 {
    (ctx.data_end() - ctx.data()) as u32
}

#[inline(always)]
fn resize(ctx: &XdpContext, by: i32) -> Option<()> {
    // SAFETY: the context of this program run.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, by) } == 0).then_some(())
}

#[inline(always)]
fn test(ctx: &XdpContext, ready: Option<()>) -> u32 {
    if ready.is_some() {
        // SAFETY: nothing here waits to be dropped. It returns only where there is no program.
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
    // The verifier accepts no program in which this can be reached.
    loop {}
}
