//! The internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// A checksum that is being updated: a one's-complement sum of 16-bit words, all in the same byte order.
///
/// Words are added, subtracted and stored in memory order, because the checksum does not depend on the byte order (RFC
/// 1071 §2 B).
#[derive(Clone, Copy, Debug)]
pub struct Checksum(u64);

impl Checksum {
    /// The sum that a checksum field of a packet represents, in memory order.
    #[inline(always)]
    pub const fn of_field(field: u16) -> Self {
        Self(!field as u64)
    }

    /// The sum of no bytes.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a word.
    #[inline(always)]
    pub const fn add(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds four bytes.
    #[inline(always)]
    pub const fn add_u32(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Subtracts four bytes.
    #[inline(always)]
    pub const fn subtract_u32(self, word: u32) -> Self {
        Self(self.0 + !word as u64)
    }

    /// Adds another sum.
    #[inline(always)]
    pub const fn join(self, other: Self) -> Self {
        self.add_u64(other.0)
    }

    /// Subtracts another sum.
    #[inline(always)]
    pub const fn part(self, other: Self) -> Self {
        self.add(other.field())
    }

    /// Adds eight bytes, as a word in either byte order.
    #[inline(always)]
    pub const fn add_u64(self, word: u64) -> Self {
        Self(self.0 + (word & 0xffff_ffff) + (word >> 32))
    }

    /// Subtracts a word (RFC 1624, equation 3).
    #[inline(always)]
    pub const fn subtract(self, word: u16) -> Self {
        Self(self.0 + !word as u64)
    }

    /// Subtracts eight bytes.
    #[inline(always)]
    pub const fn subtract_u64(self, word: u64) -> Self {
        self.add_u64(!word)
    }

    /// Whether a field holds this sum itself, not its complement. Neither the field nor the sum is zero; they are
    /// compared modulo 65,535.
    #[inline(always)]
    pub const fn is_in(self, field: u16) -> bool {
        const MODULUS: u64 = 0xffff;
        // The multiple of the modulus keeps the difference positive. The compiler replaces the division by a
        // multiplication.
        (self.0 + (MODULUS << 16) - field as u64).is_multiple_of(MODULUS)
    }

    /// The checksum field.
    #[inline(always)]
    pub const fn field(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16 & 0xffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }

    /// The checksum field of UDP: zero means no checksum, so a sum of zero is sent as all ones (RFC 768).
    #[inline(always)]
    pub const fn udp_field(self) -> u16 {
        match self.field() {
            0 => 0xffff,
            field => field,
        }
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A direct implementation of RFC 1071, in network byte order.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    fn le_words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()))
    }

    proptest! {
        #[test]
        fn whole(bytes in proptest::collection::vec(any::<u8>(), 0..16).prop_map(|b| b.repeat(8))) {
            let ours = le_words(&bytes).fold(Checksum::new(), Checksum::add_u64);
            prop_assert_eq!(ours.field().to_be(), reference(&bytes));
        }

        #[test]
        fn by_difference(head: [u8; 16], gone: [u8; 64], tail: [u8; 24]) {
            let all = [&head[..], &gone, &tail].concat();
            let rest = [&head[..], &tail].concat();
            let ours = le_words(&gone).fold(
                Checksum::of_field(reference(&all).to_be()), Checksum::subtract_u64);
            let expected = reference(&rest);
            // 0 and 0xffff represent the same sum. If the rest is all zeros, the incremental update can yield either.
            let same = |a: u16, b: u16| a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0);
            prop_assert!(same(ours.field().to_be(), expected), "{:04x} {:04x}", ours.field().to_be(), expected);
        }

        #[test]
        fn a_field_with_the_sum_itself_is_recognised(words in proptest::collection::vec(1u32.., 1..12), field: u16) {
            let sum = words.iter().fold(Checksum::new(), |sum, word| sum.add_u32(*word));
            let same = !sum.field();
            prop_assert!(sum.is_in(same), "{same:04x}");
            prop_assert_eq!(sum.is_in(field), field % 0xffff == same % 0xffff, "{:04x} {:04x}", field, same);
        }

        /// Every method that adds or subtracts, on as many words as a packet can have.
        #[test]
        fn what_is_added_and_subtracted_again_is_gone(
            kept in proptest::collection::vec(any::<u32>(), 1..400),
            a: u16, b: u32, c: u64,
            all_ones: bool,
        ) {
            let kept = if all_ones { vec![u32::MAX; kept.len()] } else { kept };
            let bytes: Vec<u8> = kept.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let expected = Checksum::of_field(reference(&bytes).to_be()).field();
            let sum = kept.iter().fold(Checksum::new(), |sum, word| sum.add_u32(*word));
            prop_assert_eq!(sum.field(), expected);
            let other = Checksum::new().add(a).add_u32(b).add_u64(c);
            let same = |a: u16, b: u16| a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0);
            for there_and_gone in [
                sum.add(a).subtract(a),
                sum.subtract(a).add(a),
                sum.add_u32(b).subtract_u32(b),
                sum.subtract_u32(b).add_u32(b),
                sum.add_u64(c).subtract_u64(c),
                sum.join(other).part(other),
                sum.join(other).subtract(a).subtract_u32(b).subtract_u64(c),
            ] {
                prop_assert!(same(there_and_gone.field(), expected), "{:04x} {expected:04x}", there_and_gone.field());
            }
        }
    }

    /// A carry out of any part of the sum is added back.
    #[test]
    fn carries_come_round() {
        for (sum, field) in [
            (0, 0xffff),
            (1, 0xfffe),
            (0xffff, 0),
            (0x1_0000, 0xfffe),
            (0x1_ffff, 0xfffe),
            (0xffff_ffff, 0),
            (0x1_0000_0000, 0xfffe),
            (0xffff_ffff_ffff, 0),
            (0xffff_0001_0000, 0xfffe),
            (0x0001_ffff_fffe_ffff, 0),
            (0xffff_ffff_0000_0000, 0),
            (0xffff_ffff_0000_0001, 0xfffe),
            (u64::MAX, 0),
        ] {
            assert_eq!(Checksum(sum).field(), field, "{sum:x}");
        }
    }

    #[test]
    fn udp_never_sends_zero() {
        assert_eq!(Checksum::new().add(0xffff).field(), 0);
        assert_eq!(Checksum::new().add(0xffff).udp_field(), 0xffff);
    }
}
