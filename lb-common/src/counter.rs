//! The value of both counter maps.

/// Packets and bytes of one reason or one backend on one CPU. Bytes are those of the frame as it came in,
/// Ethernet header included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16 && align_of::<Counter>() == 8);
crate::map_value!(Counter);

/// Where a service's counter of a reason stands.
pub const fn counter_index(service_index: u32, reason: crate::reason::Reason) -> u32 {
    numbered_index(service_index, reason.index())
}

/// The same, by the reason's number, which is below [`CAPACITY`](crate::reason::CAPACITY).
#[inline(always)]
pub const fn numbered_index(service_index: u32, reason: u32) -> u32 {
    service_index * crate::reason::CAPACITY as u32 + reason % crate::reason::CAPACITY as u32
}
