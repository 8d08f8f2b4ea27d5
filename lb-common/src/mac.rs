//! The table of the destination MAC addresses that each interface accepts.

/// A destination MAC address: its six octets in memory order, followed by two zero bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Mac(u64);

impl Mac {
    /// The table key for all unicast addresses that the interface does not accept. It is not the address of any frame.
    pub const OTHERS: Self = Self(u64::MAX);

    /// From its octets.
    pub const fn new([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// From the first eight bytes of a frame, in memory order. The last two bytes belong to the source address, and are
    /// ignored.
    #[inline(always)]
    pub const fn of_frame(first: u64) -> Self {
        Self(first & u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]))
    }

    /// Whether it is a group address, broadcast included (IEEE 802-2014 §8.2.2: the I/G bit).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0 & u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]) != 0
    }

    /// The bucket of the entry for this address on an interface. The daemon picks a seed with which no bucket
    /// overflows.
    #[inline(always)]
    pub const fn bucket(self, ifindex: u32, seed: u32) -> u32 {
        // Multiplicative hashing (Knuth, TAOCP 3, §6.4): the highest bits of the product depend on all lower bits. The
        // seed changes the factor, which stays odd. If the seed were added to the address, it would move all entries by
        // the same amount. Interface indexes differ in their low bits, so they are shifted away from the low bits of
        // the address.
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let factor = FACTOR.wrapping_add((seed as u64) << 17);
        ((self.0 ^ (ifindex as u64) << 24).wrapping_mul(factor) >> (64 - MAC_BUCKETS.ilog2())) as u32
    }
}

/// The number of buckets in one bank of the table.
pub const MAC_BUCKETS: u32 = 256;
/// The number of entries in a bucket: one cache line.
pub const MAC_BUCKET_LEN: usize = 4;
/// The maximum number of entries of all interfaces together.
pub const MACS_MAX: usize = 256;

/// An address that an interface accepts, or the entry for [`Mac::OTHERS`] that each interface has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct MacEntry {
    /// The address.
    pub mac: Mac,
    /// The interface index; 0: an unused entry.
    pub ifindex: u32,
    /// For [`Mac::OTHERS`]: 1 if frames for other stations are passed, because a switch of this host is behind the
    /// interface; 0 if they are dropped. For addresses: 0.
    pub passes: u16,
    /// For [`Mac::OTHERS`]: 1 if the program is attached to the interface in generic mode, else 0. For addresses: 0.
    pub generic: u16,
}

/// A bucket of the table, filled from the front.
pub type MacBucket = [MacEntry; MAC_BUCKET_LEN];

const _: () = assert!(size_of::<MacEntry>() == 16 && align_of::<MacEntry>() == 8);
crate::map_value!(MacEntry);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_address_does_not_count() {
        let mac = [0x02, 0, 0x5e, 0x10, 0xff, 0x01];
        let first = [0x02, 0, 0x5e, 0x10, 0xff, 0x01, 0xab, 0xcd];
        assert_eq!(Mac::of_frame(u64::from_ne_bytes(first)), Mac::new(mac));
        assert_ne!(Mac::of_frame(u64::MAX), Mac::OTHERS);
    }

    #[test]
    fn the_first_bit_on_the_wire_tells_groups() {
        assert!(Mac::new([0xff; 6]).is_group() && Mac::new([0x33, 0x33, 0, 0, 0, 1]).is_group());
        assert!(Mac::new([1, 0, 0x5e, 0, 0, 1]).is_group());
        assert!(
            !Mac::new([0, 0, 0x5e, 0, 1, 10]).is_group() && !Mac::new([0xfe, 0xff, 0, 0, 0, 1]).is_group()
        );
    }

    /// Inputs that a weak hash maps to few buckets: one address on many interfaces, and consecutive addresses.
    #[test]
    fn entries_spread_over_the_buckets() {
        let spread = |macs: &mut dyn Iterator<Item = (u32, Mac)>| {
            let mut used = [0_u8; MAC_BUCKETS as usize];
            macs.for_each(|(ifindex, mac)| used[mac.bucket(ifindex, 0) as usize] += 1);
            used.into_iter().filter(|count| *count > 0).count()
        };
        let last = |last| Mac::new([2, 0, 0, 0, 0, last]);
        assert!(spread(&mut (1..=64).map(|ifindex| (ifindex, last(1)))) > 40);
        assert!(spread(&mut (1..=64).map(|octet| (2, last(octet)))) > 40);
        assert!(spread(&mut (1..=64).map(|octet| (2, Mac::new([octet * 2, 0, 0, 0, 0, 1])))) > 40);
    }
}
