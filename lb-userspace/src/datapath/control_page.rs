//! The control page: the map `control`, mapped into this process. Its words change while packets are processed.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapData;
use lb_common::{
    control::{ControlPage, Tables},
    maps,
};

use super::DatapathError;

/// The control page, [`ControlPage`]: each word is changed by one atomic store.
#[derive(Debug)]
pub struct MappedControlPage {
    words: NonNull<AtomicU64>,
}

// SAFETY: the mapping belongs to no thread, and all access goes through atomics.
unsafe impl Send for MappedControlPage {}
// SAFETY: as above.
unsafe impl Sync for MappedControlPage {}

const WORDS: usize = size_of::<ControlPage>() / size_of::<u64>();
const OFFSET: usize = std::mem::offset_of!(ControlPage, offset_ns) / size_of::<u64>();
const TICK: usize = std::mem::offset_of!(ControlPage, tick_ns) / size_of::<u64>();
const REVOCATIONS: usize = std::mem::offset_of!(ControlPage, revocations) / size_of::<u64>();
const CONFIRMED: usize = std::mem::offset_of!(ControlPage, confirmed_ns) / size_of::<u64>();
const TABLES: usize = std::mem::offset_of!(ControlPage, tables) / size_of::<u64>();
const BEGUN: usize = std::mem::offset_of!(ControlPage, begun) / size_of::<u64>();

impl MappedControlPage {
    pub(super) fn new(map: &MapData) -> Result<Self, DatapathError> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = map.fd().as_fd().as_raw_fd();
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), size_of::<ControlPage>(), protection, libc::MAP_SHARED, fd, 0)
        };
        if address == libc::MAP_FAILED {
            let source = aya::maps::MapError::IoError(io::Error::last_os_error());
            return Err(DatapathError::Map { map: maps::CONTROL, action: "map it into memory", source });
        }
        let words = NonNull::new(address.cast()).expect("mmap maps nothing at address 0 unless asked to");
        Ok(Self { words })
    }

    /// Unix time minus ticks, nanoseconds; 0 if never published.
    pub fn offset_ns(&self) -> u64 {
        self.words()[OFFSET].load(Ordering::Acquire)
    }

    /// Sets that offset, which applies to all packets from now on.
    pub fn set_offset_ns(&self, offset_ns: u64) {
        self.words()[OFFSET].store(offset_ns, Ordering::Release);
    }

    /// Nanoseconds of a tick; 0 stops the clock at the offset, for tests.
    pub fn tick_ns(&self) -> u64 {
        self.words()[TICK].load(Ordering::Acquire)
    }

    /// Sets the length of a tick; call it before setting the offset, which depends on it.
    pub fn set_tick_ns(&self, tick_ns: u64) {
        self.words()[TICK].store(tick_ns, Ordering::Release);
    }

    /// When the offset was last confirmed (kernel clock, nanoseconds).
    pub fn confirmed_ns(&self) -> u64 {
        self.words()[CONFIRMED].load(Ordering::Acquire)
    }

    /// Records that the offset is right at this time of the kernel clock.
    pub fn set_confirmed_ns(&self, kernel_ns: u64) {
        self.words()[CONFIRMED].store(kernel_ns, Ordering::Release);
    }

    /// Makes the program check every session against the revocations again. Call it after revocations were added,
    /// before success is reported.
    pub(super) fn bump_revocations(&self) {
        let words = self.words();
        // 0 means that nothing was ever revoked; sessions store 32 bits.
        let next = (words[REVOCATIONS].load(Ordering::Acquire) as u32).wrapping_add(1).max(1);
        words[REVOCATIONS].store(next.into(), Ordering::Release);
    }

    /// The active bank of tables.
    pub fn tables(&self) -> Tables {
        Tables::from_word(self.words()[TABLES].load(Ordering::Acquire))
    }

    /// Makes a bank of tables active. The daemon does this with [`Tables::publish`](super::Tables::publish), once the
    /// bank is written.
    pub fn set_tables(&self, tables: Tables) {
        self.words()[TABLES].store(tables.to_word(), Ordering::Release);
    }

    /// The last generation of tables that the daemon began to write: see [`ControlPage::begun`].
    pub fn begun(&self) -> u32 {
        self.words()[BEGUN].load(Ordering::SeqCst) as u32
    }

    /// Records that tables of this generation are about to be written: see [`ControlPage::begun`].
    pub fn set_begun(&self, generation: u32) {
        self.words()[BEGUN].store(generation.into(), Ordering::SeqCst);
    }

    fn words(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: the memory is mapped as long as `self` lives, page-aligned and zeroed by the kernel, and other code
        // changes it only by atomic stores.
        unsafe { self.words.cast().as_ref() }
    }
}

impl Drop for MappedControlPage {
    fn drop(&mut self) {
        // SAFETY: `self` owns the mapping, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), size_of::<ControlPage>()) };
    }
}
