//! Reads many map entries with one system call (BPF_MAP_LOOKUP_BATCH, Linux 5.6; per-CPU arrays 5.13), which aya does
//! not support.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{MapData, MapError},
    sys::SyscallError,
};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The fields of `union bpf_attr` that batch commands read.
#[derive(Default)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `each` for every entry of a map; one system call reads at most `chunk` entries. An entry of a per-CPU map has
/// `values_per_entry` values, an entry of any other map has one. If a hash map changes meanwhile, an entry may be
/// reported twice or not at all.
pub(super) fn lookup_all<K: Pod + Default, V: Pod + Default>(
    map: &MapData,
    values_per_entry: usize,
    chunk: usize,
    mut each: impl FnMut(&[K], &[V]),
) -> Result<(), MapError> {
    let mut keys = vec![K::default(); chunk];
    let mut values = vec![V::default(); chunk * values_per_entry];
    // An opaque position: a bucket of a hash map, or the key of an array.
    let mut position = [0u64; 2];
    let mut first = true;
    loop {
        let position_at = position.as_mut_ptr() as u64;
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { position_at },
            out_batch: position_at,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(chunk).expect("chunks are small"),
            map_fd: map.fd().as_fd().as_raw_fd().cast_unsigned(),
            ..BatchAttr::default()
        };
        // SAFETY: the kernel writes at most `count` keys of size_of::<K>() bytes and the same number of entries of
        // values_per_entry * size_of::<V>() bytes, both multiples of 8 where per-CPU maps round up; the typed map
        // that owns `map` has checked both sizes. `position` has room for any batch position.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &mut attr, size_of::<BatchAttr>()) };
        let ended = match (result, io::Error::last_os_error()) {
            (0, _) => false,
            (_, error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            (_, io_error) => {
                return Err(SyscallError { call: "BPF_MAP_LOOKUP_BATCH", io_error }.into());
            }
        };
        let found = (attr.count as usize).min(chunk);
        each(&keys[..found], &values[..found * values_per_entry]);
        if ended {
            // The values may contain keys.
            wipe(&mut values);
            return Ok(());
        }
        first = false;
    }
}

/// All values of an array, in order. For a per-CPU array, the values of all CPUs of one entry follow each other.
pub(super) fn array<V: Pod + Default>(map: &MapData, values_per_entry: usize) -> Result<Vec<V>, MapError> {
    let entries = map.info()?.max_entries() as usize;
    let mut all = Vec::with_capacity(entries * values_per_entry);
    lookup_all::<u32, V>(map, values_per_entry, 1024, |_, values| all.extend_from_slice(values))?;
    Ok(all)
}

/// Overwrites values with writes that the compiler does not remove.
pub(super) fn wipe<V: Pod + Default>(values: &mut [V]) {
    for value in values {
        // SAFETY: the unique reference is valid for writes; the value has no drop glue, because it is `Copy`.
        unsafe { std::ptr::write_volatile(value, V::default()) };
    }
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}
