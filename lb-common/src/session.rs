//! The token caches: the result of a token's HMAC verification, so that it is computed only once per token.
//!
//! There are two caches. A BEARER token without limits needs 64 bytes. The state of PROOF tokens and limits needs 192
//! more bytes, and has a separate cache, from which BEARER tokens without limits cannot evict it.

use crate::{flow::Activity, rate::GcraState, siphash::SipKey, token::Header};

/// The largest limit of source addresses per token.
pub const SOURCES_MAX: usize = 8;
/// The size of the replay window in sequence numbers, the highest one included.
pub const REPLAY_WINDOW: u32 = 512;
/// The number of words of the replay window, one for each block of 32 sequence numbers. The highest number can be
/// anywhere in its block, so the window needs the 16 blocks before it too.
pub const REPLAY_WORDS: usize = REPLAY_WINDOW as usize / 32 + 1;

/// Key of the caches. The fast tag alone has 64 bits. With the nonce, two tokens do not share an entry by chance. Both
/// words are loaded little-endian from the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TokenKey {
    /// The header's fast tag.
    pub fast_tag: u64,
    /// The header's nonce.
    pub nonce: u64,
}

impl TokenKey {
    /// The key of a header's token.
    #[inline(always)]
    pub const fn of(header: &Header) -> Self {
        Self { fast_tag: header.fast_tag(), nonce: header.nonce() }
    }
}

/// The cache entry of a verified token.
///
/// The pointer that a lookup returns stays valid, but the kernel can reuse the memory for another token while a packet
/// still uses it. Therefore each write is a compare-and-swap with the value that was read, or is harmless in the entry
/// of another token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Session {
    /// The verified claim bytes that are not in the key, loaded little-endian: bytes 0..16 and 24..40 of the header. A
    /// lookup is a hit only if they equal those of the packet.
    pub claims: [u64; 4],
    /// The session data in the claims.
    pub admission: Admission,
    /// The client of its last datagram.
    pub seen: Seen,
    /// The [`ControlPage::revocations`](crate::control::ControlPage::revocations) at its last lookup in the
    /// revocations, which did not contain it.
    pub checked: u32,
    /// PROOF: the highest sequence number that was seen.
    pub highest: u32,
}

/// The cache entry of a verified token with state: every PROOF token, and every token of a service with limits.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct StatefulEntry {
    /// The part that every token has.
    pub session: Session,
    /// PROOF: the key of its proofs.
    pub proof_key: SipKey,
    /// The state of its rate limit: when its debt will be zero (kernel clock, ns).
    pub rate: GcraState,
    /// The source addresses from which it was used, filled from the front: see [`source`]. 0: an unused element.
    pub sources: [u32; SOURCES_MAX],
    /// PROOF: the replay window: see [`ReplayWord`].
    pub window: [u64; REPLAY_WORDS],
}

impl Default for StatefulEntry {
    fn default() -> Self {
        Self {
            session: Session::default(),
            proof_key: SipKey::default(),
            rate: GcraState::default(),
            sources: [0; SOURCES_MAX],
            window: [0; REPLAY_WORDS],
        }
    }
}

impl core::fmt::Debug for StatefulEntry {
    /// Omits the key.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StatefulEntry")
            .field("session", &self.session)
            .field("rate", &self.rate)
            .field("sources", &self.sources)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

/// The client of a token's last datagram, in one word that is written atomically. It avoids a write of the flow for
/// every datagram. Two clients can have the same word, and then share a flow. Only a holder of the token can cause
/// that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Seen(u64);

impl Seen {
    /// From a client's address, as two words in memory order (the second is 0 for IPv4), and its port.
    #[inline(always)]
    pub const fn client([high, low]: [u64; 2], port_be: u16) -> Self {
        // Exact for IPv4. The second word of an IPv6 address is mixed in (Fibonacci hashing, Knuth, TAOCP 3, §6.4).
        Self(high ^ (port_be as u64) << 32 ^ low.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// The session data in a verified token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Admission {
    /// The session.
    pub session_id: u64,
    /// The backend that it is bound to; 0: the balancer selects the backend.
    pub backend_id: u16,
    /// Its rate class.
    pub class: u8,
    /// Zero.
    pub reserved: u8,
    /// In a cache entry: when its last datagram from the client in `seen` arrived.
    pub active: Activity,
}

const _: () = {
    assert!(size_of::<TokenKey>() == 16 && align_of::<TokenKey>() == 8);
    // With the kernel's 48-byte element header and the key before it, an entry fills two cache lines, and an entry with
    // state five. The third line contains the proof key, the rate, the sources and the first word of the window.
    assert!(size_of::<Session>() == 64 && align_of::<Session>() == 8);
    assert!(core::mem::offset_of!(Session, admission) == 32);
    assert!(size_of::<StatefulEntry>() == 256 && align_of::<StatefulEntry>() == 8);
    assert!(core::mem::offset_of!(StatefulEntry, proof_key) == 64);
    assert!(core::mem::offset_of!(StatefulEntry, window) == 120);
    assert!(size_of::<Admission>() == 16);
};
crate::map_value!(TokenKey, Session, StatefulEntry);

impl Session {
    /// The words of a header's claims that an entry stores.
    #[inline(always)]
    pub const fn kept([a, b, _nonce, d, e]: [u64; 5]) -> [u64; 4] {
        [a, b, d, e]
    }
}

/// A source address in the form of [`StatefulEntry::sources`]. It is exact for IPv4. For IPv6, it is a 32-bit hash of
/// the first 64 bits: a sender with so many prefixes that some collide does not need a shared token. Never 0.
///
/// `address` as in [`Source`](crate::token::Source).
#[inline(always)]
pub const fn source(address: u64) -> u32 {
    // For IPv4, the upper half is 0. For IPv6, it is mixed in by Fibonacci hashing (Knuth, TAOCP 3, §6.4).
    let mixed = address as u32 ^ ((address >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    // 0 is reserved, so the value of 255.255.255.255, which is not a valid source address, becomes 1.
    !mixed | (mixed == u32::MAX) as u32
}

/// A word of the replay window: `(block + 1) << 32 | bits`. A block is a range of 32 sequence numbers, and the index of
/// its word is `block % REPLAY_WORDS`. A sequence number is marked by one compare-and-swap of one word, so if several
/// CPUs process copies of a packet at the same time, exactly one copy passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayWord(pub u64);

impl ReplayWord {
    /// The index of a sequence number's word.
    #[inline(always)]
    pub const fn place(seq: u32) -> usize {
        ((seq >> 5) % REPLAY_WORDS as u32) as usize
    }

    /// The word with a sequence number marked in it; `None` if it is already marked, or if the word belongs to a later
    /// block.
    #[inline(always)]
    pub const fn mark(self, seq: u32) -> Option<Self> {
        let (block, bit) = ((seq >> 5) as u64 + 1, 1 << (seq & 31));
        let held = self.0 >> 32;
        if held > block || held == block && self.0 & bit != 0 {
            return None;
        }
        let before = if held == block { self.0 } else { block << 32 };
        Some(Self(before | bit))
    }
}

/// Whether a sequence number is below the replay window of the highest so far.
#[inline(always)]
pub const fn is_behind(seq: u32, highest: u32) -> bool {
    highest >= REPLAY_WINDOW && seq <= highest - REPLAY_WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// The window equals a set of numbers with a lower bound.
        #[test]
        fn a_window_is_exact(steps in proptest::collection::vec((0..4_u8, 0..1200_u32), 1..600)) {
            let (mut words, mut highest) = ([0; REPLAY_WORDS], 0_u32);
            let mut seen = BTreeSet::new();
            for (kind, by) in steps {
                let seq = if kind == 0 { highest.saturating_add(by) } else { highest.saturating_sub(by / 2) };
                let passes = !is_behind(seq, highest) && match ReplayWord(words[ReplayWord::place(seq)]).mark(seq) {
                    Some(word) => { words[ReplayWord::place(seq)] = word.0; true }
                    None => false,
                };
                prop_assert_eq!(passes, i64::from(seq) > i64::from(highest) - 512 && seen.insert(seq));
                if passes {
                    highest = highest.max(seq);
                }
            }
        }
    }

    #[test]
    fn the_last_number_has_its_place() {
        assert!(ReplayWord(0).mark(u32::MAX).is_some_and(|word| word.mark(u32::MAX).is_none()));
    }

    #[test]
    fn sources_are_told_apart() {
        let v4 = |address: [u8; 4]| source(u32::from_le_bytes(address).into());
        let all = [
            v4([0; 4]),
            v4([10, 0, 0, 1]),
            v4([10, 0, 0, 2]),
            v4([255; 4]),
            source(0x1_0000_0000),
            source(u64::MAX),
        ];
        assert!(all.iter().all(|source| *source != 0));
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
