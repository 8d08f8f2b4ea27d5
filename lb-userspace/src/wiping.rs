//! An allocator that wipes freed memory: keys pass through buffers of HTTP, JSON and hex libraries.

use std::alloc::{GlobalAlloc, Layout, System};

pub struct Wiping;

// SAFETY: the system allocator provides all memory and satisfies the contract; memory is overwritten only after its
// owner has freed it. `realloc` is the default of the trait: it allocates, copies and frees, so no copy is left in the
// old buffer.
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
        // SAFETY: `block` has this many bytes, and its owner has freed it.
        unsafe { libc::explicit_bzero(block.cast(), layout.size()) };
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}
