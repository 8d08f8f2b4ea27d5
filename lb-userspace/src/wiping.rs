//! An allocator that wipes freed memory: keys pass through buffers of HTTP, JSON and hex libraries.

use std::alloc::{GlobalAlloc, Layout, System};

pub struct Wiping;

// SAFETY: all memory is the system's, which keeps the promises; it is written to only after its owner gave it back.
// `realloc` is the trait's own: it allocates, copies and gives back, so that no copy is left where a buffer was.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` has so many bytes and is nobody's any more.
        unsafe { libc::explicit_bzero(block.cast(), layout.size()) };
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}
