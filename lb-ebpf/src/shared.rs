//! Memory that other CPUs or the daemon write while this program reads it: entries of hash maps, and the control page.
//!
//! It is accessed only through [`Shared`]. Reads and writes are volatile: LLVM must neither repeat nor drop one, and
//! each read sees the value at one moment. Values of one word are never torn. A value of several words can be: the
//! reader compares it with the packet (see `admit::cached`), or the worst case is stated where it is read.
//!
//! The kernel can give an entry of an LRU map to another key while this program holds a pointer to it. The memory stays
//! allocated. Therefore a step writes to an entry by compare-and-exchange with the value that it read, or writes a
//! value that is harmless in the entry of another key.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::btf_maps::{Array, LruHashMap};

/// A value, or a field of one, in memory that other CPUs write.
#[repr(transparent)]
pub struct Shared<T>(NonNull<T>);

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// The entry of a key in an LRU map.
    #[inline(always)]
    pub fn entry<K, const N: usize>(map: &LruHashMap<K, T, N>, key: &K) -> Option<Self> {
        NonNull::new(map.get_ptr_mut(key)?).map(Self)
    }

    /// The value of an array of one.
    #[inline(always)]
    pub fn value<const FLAGS: usize>(map: &Array<T, 1, FLAGS>) -> Option<Self> {
        NonNull::new(map.get_ptr_mut(0)?).map(Self)
    }

    /// The entry that a caller passed to a global subprogram; `None` if it passed none.
    ///
    /// # Safety
    /// The pointer is null, or points to a value of a map.
    #[inline(always)]
    pub unsafe fn from_pointer(pointer: *mut T) -> Option<Self> {
        NonNull::new(pointer).map(Self)
    }

    /// A field, by its pointer. Use the macro `field!`, which derives the pointer from the value.
    ///
    /// # Safety
    /// The pointer must point to a field of the same value.
    #[inline(always)]
    pub const unsafe fn project<F>(self, field: *mut F) -> Shared<F> {
        // SAFETY: a field of a value that is not at address 0.
        Shared(unsafe { NonNull::new_unchecked(field) })
    }

    /// The pointer, for a global subprogram or a helper of the kernel.
    #[inline(always)]
    pub const fn as_ptr(self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Shared<T> {
    /// Copies a value of several words, one word after the other: LLVM would call a function that copies bytes, which
    /// BPF does not have.
    #[inline(always)]
    pub fn copy_to(self, to: &mut T) {
        copy_words(self.0.as_ptr(), to);
    }

    /// As [`Shared::copy_to`], into the shared value.
    #[inline(always)]
    pub fn copy_from(self, from: &mut T) {
        copy_words(from, self.0.as_ptr());
    }
}

#[inline(always)]
fn copy_words<T>(from: *mut T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(size_of::<u64>()) && align_of::<T>() == align_of::<u64>()) };
    let (from, to) = (from.cast::<u64>(), to.cast::<u64>());
    let mut word = 0;
    while word < size_of::<T>() / size_of::<u64>() {
        // SAFETY: within both values, which are aligned and stay allocated.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
        word += 1;
    }
}

impl<T, const N: usize> Shared<[T; N]> {
    /// An element of an array.
    #[inline(always)]
    pub const fn at(self, index: usize) -> Option<Shared<T>> {
        if index >= N {
            return None;
        }
        // SAFETY: within the array.
        Some(Shared(unsafe { self.0.cast::<T>().add(index) }))
    }
}

impl<T: Copy> Shared<T> {
    /// A value that only this CPU writes for now, for a function that also takes entries of maps.
    #[inline(always)]
    pub const fn own(value: &mut T) -> Self {
        Self(NonNull::from_mut(value))
    }

    /// Reads it.
    #[inline(always)]
    pub fn read(self) -> T {
        // SAFETY: aligned memory of a map's value, which stays allocated; its types are valid for every bit pattern.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    /// Writes it.
    #[inline(always)]
    pub fn write(self, value: T) {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().write_volatile(value) }
    }
}

/// The field of a [`Shared`] value: `field!(entry, admission.active)`.
macro_rules! field {
    ($shared:expr, $($field:tt)+) => {{
        let shared = $shared;
        // SAFETY: a field of the value to which the pointer points. Only its address is taken, and nothing is read.
        unsafe { shared.project(&raw mut (*shared.as_ptr()).$($field)+) }
    }};
}
pub(crate) use field;

// Core has no atomic operations for this target; BPF has these (ISA v3).

impl Shared<u64> {
    /// Changes the word from `old` to `new`; false if it is not `old`.
    #[inline(always)]
    pub fn replace(self, old: u64, new: u64) -> bool {
        let found: u64;
        // SAFETY: an aligned word of a map's value. r0 is compared, and gets the word that was there.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({at} + 0, r0, {new})",
                at = in(reg) self.as_ptr(),
                new = in(reg) new,
                inout("r0") old => found,
                options(nostack),
            );
        }
        found == old
    }
}

impl Shared<u32> {
    /// Changes the word from `old` to `new` and returns `old`; if it is another word, leaves it and returns that.
    #[inline(always)]
    pub fn exchange(self, old: u32, new: u32) -> u32 {
        let found: u32;
        // SAFETY: as above.
        unsafe {
            asm!(
                "w0 = cmpxchg32_32({at} + 0, w0, {new})",
                at = in(reg) self.as_ptr(),
                new = in(wreg) new,
                inout("w0") old => found,
                options(nostack),
            );
        }
        found
    }
}
