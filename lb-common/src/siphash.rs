//! SipHash over whole little-endian words (Aumasson and Bernstein, INDOCRYPT 2012).
//!
//! Every message in token.md has a length that is known at compile time. Therefore words are hashed as they were
//! loaded, LLVM unrolls the loops, and no state for partial words is needed.

/// SipHash-1-3: the fast tag (docs/adr/0016-fast-tag-siphash-1-3.md).
pub type SipHash13 = SipHash<1, 3>;
/// SipHash-2-4: keystream and proofs.
pub type SipHash24 = SipHash<2, 4>;

/// A SipHash key.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SipKey {
    /// The first eight key bytes, little-endian.
    pub k0: u64,
    /// The last eight key bytes, little-endian.
    pub k1: u64,
}

const _: () = assert!(size_of::<SipKey>() == 16 && align_of::<SipKey>() == 8);

impl SipKey {
    /// From its 16 bytes.
    pub const fn from_bytes(bytes: &[u8; 16]) -> Self {
        let both = u128::from_le_bytes(*bytes);
        Self { k0: both as u64, k1: (both >> 64) as u64 }
    }

    /// Its 16 bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        ((self.k1 as u128) << 64 | self.k0 as u128).to_le_bytes()
    }
}

/// The state of SipHash-C-D, with C rounds for each word and D rounds at the end. Copy the state to hash messages that
/// have a common prefix.
#[derive(Clone, Copy)]
pub struct SipHash<const C: usize, const D: usize> {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl<const C: usize, const D: usize> SipHash<C, D> {
    /// Begins a message.
    #[inline(always)]
    pub const fn new(key: SipKey) -> Self {
        Self {
            v0: key.k0 ^ 0x736f_6d65_7073_6575,
            v1: key.k1 ^ 0x646f_7261_6e64_6f6d,
            v2: key.k0 ^ 0x6c79_6765_6e65_7261,
            v3: key.k1 ^ 0x7465_6462_7974_6573,
        }
    }

    /// Adds eight bytes of the message, as a little-endian word.
    #[inline(always)]
    pub const fn word(mut self, word: u64) -> Self {
        self.v3 ^= word;
        self = self.rounds::<C>();
        self.v0 ^= word;
        self
    }

    /// Ends a message of `len` bytes with its last `len % 8` bytes, as a little-endian word.
    #[inline(always)]
    pub const fn finish(mut self, tail: u64, len: u64) -> u64 {
        self = self.word(len << 56 | tail);
        self.v2 ^= 0xff;
        self = self.rounds::<D>();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }

    fn bytes(self, message: &[u8]) -> u64 {
        let (words, tail) = message.as_chunks::<8>();
        let state = words.iter().fold(self, |state, word| state.word(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        state.finish(u64::from_le_bytes(last), message.len() as u64)
    }

    #[inline(always)]
    const fn rounds<const N: usize>(mut self) -> Self {
        let mut done = 0;
        while done < N {
            self = self.round();
            done += 1;
        }
        self
    }

    #[inline(always)]
    const fn round(mut self) -> Self {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
        self
    }
}

/// SipHash-1-3 of a message of any length, for tests and hosts.
pub fn siphash13(key: SipKey, message: &[u8]) -> u64 {
    SipHash13::new(key).bytes(message)
}

/// SipHash-2-4 of a message of any length, for tests and hosts.
pub fn siphash24(key: SipKey, message: &[u8]) -> u64 {
    SipHash24::new(key).bytes(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hasher;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_siphasher(key: [u8; 16], message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut theirs = siphasher::sip::SipHasher24::new_with_key(&key);
            theirs.write(&message);
            prop_assert_eq!(siphash24(SipKey::from_bytes(&key), &message), theirs.finish());
            let mut theirs = siphasher::sip::SipHasher13::new_with_key(&key);
            theirs.write(&message);
            prop_assert_eq!(siphash13(SipKey::from_bytes(&key), &message), theirs.finish());
        }

        #[test]
        fn a_key_is_its_bytes(key: [u8; 16]) {
            prop_assert_eq!(SipKey::from_bytes(&key).to_bytes(), key);
        }
    }
}
