//! The value of both counter maps.

/// Packets and bytes of one reason or one backend on one CPU. Bytes are counted for the received frame, Ethernet header
/// included.
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

/// The index of a service's counter for a reason.
pub const fn counter_index(service_index: u32, reason: crate::reason::Reason) -> u32 {
    numbered_index(service_index, reason.index())
}

/// As [`counter_index`], by the number of the reason, which is below [`CAPACITY`](crate::reason::CAPACITY).
#[inline(always)]
pub const fn numbered_index(service_index: u32, reason: u32) -> u32 {
    service_index * crate::reason::CAPACITY as u32 + reason % crate::reason::CAPACITY as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        maps::{COUNTERS_MAX, SERVICES_MAX},
        reason::{CAPACITY, Reason},
    };

    /// Each service has its own counters, one for each reason, and every index is within the map.
    #[test]
    fn each_reason_of_each_service_has_its_own_counter() {
        let mut places = std::collections::BTreeSet::new();
        for service in 0..SERVICES_MAX {
            for reason in Reason::ALL {
                let at = counter_index(service, *reason);
                assert_eq!(at, numbered_index(service, reason.index()));
                assert!(at < COUNTERS_MAX && at / CAPACITY as u32 == service);
                assert!(places.insert(at), "{service} {}", reason.name());
            }
            // A number that no reason has still yields a counter of the service. The verifier must be able to prove
            // that.
            let beyond = numbered_index(service, u32::MAX);
            assert_eq!(beyond / CAPACITY as u32, service);
        }
        assert_eq!(COUNTERS_MAX as usize, SERVICES_MAX as usize * CAPACITY);
    }
}
