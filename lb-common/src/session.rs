//! The token caches: what the full check of a token found, so that it is paid for once.
//!
//! There are two. A BEARER token without limits needs 64 bytes; what PROOF and limits count from packet to packet takes
//! 192 more, and a cache of its own, which no number of BEARER tokens pushes it out of.

use crate::{flow::Activity, rate::GcraState, siphash::SipKey, token::Header};

/// Source addresses that a token may be limited to, at most.
pub const SOURCES_MAX: usize = 8;
/// Sequence numbers below the highest that are still told apart, the highest itself among them.
pub const REPLAY_WINDOW: u32 = 512;
/// Words that hold them: wherever in its block of 32 the highest is, the others are in the 16 blocks before.
pub const REPLAY_WORDS: usize = REPLAY_WINDOW as usize / 32 + 1;

/// Key of the caches. The fast tag alone is 64 bits; with the nonce, two tokens never share an entry by chance.
/// Both words as loaded little-endian from the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TokenKey {
    /// The header's fast tag.
    pub fast_tag: u64,
    /// The header's nonce.
    pub nonce: u64,
}

impl TokenKey {
    /// Of a header.
    #[inline(always)]
    pub const fn of(header: &Header) -> Self {
        Self { fast_tag: header.fast_tag(), nonce: header.nonce() }
    }
}

/// What is known of a verified token.
///
/// A look-up's pointer stays valid, but the memory may be given to another token while a packet still uses it: what is
/// written here is written by a compare-and-swap that expects what was read, or does no harm in another's entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Session {
    /// Of the 40 claim bytes that were verified those that are not in the key, as loaded little-endian: 0..16 and
    /// 24..40. A hit counts only if they are the packet's.
    pub claims: [u64; 4],
    /// What they say.
    pub admission: Admission,
    /// Where its last datagram came from.
    pub seen: Seen,
    /// The [`ControlPage::revocations`](crate::control::ControlPage::revocations) at which it was found not to be
    /// revoked.
    pub checked: u32,
    /// PROOF: the highest sequence number so far.
    pub highest: u32,
}

/// What is known of a verified token of which something is counted: every PROOF token, and all of a service with
/// limits.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct StatefulEntry {
    /// What is known of every token.
    pub session: Session,
    /// PROOF: the key of its proofs.
    pub proof_key: SipKey,
    /// When its rate will have no debt any more (kernel clock, ns).
    pub rate: GcraState,
    /// The source addresses it came from, filled from the front: see [`source`]. 0 is a free place.
    pub sources: [u32; SOURCES_MAX],
    /// PROOF: which sequence numbers were seen: see [`ReplayWord`].
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
    /// Without the key.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StatefulEntry")
            .field("session", &self.session)
            .field("rate", &self.rate)
            .field("sources", &self.sources)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

/// Where a token's last datagram came from, in one word that is written at once. It saves writing the flow of every
/// datagram. Two clients may come to the same word, and then share a flow; whoever makes it so holds the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Seen(u64);

impl Seen {
    /// A client by its address, two words as they lie in memory (the second is 0 for IPv4), and port.
    #[inline(always)]
    pub const fn client([high, low]: [u64; 2], port_be: u16) -> Self {
        // Exact for IPv4; what IPv6 has more is mixed in (Fibonacci hashing, Knuth, TAOCP 3, §6.4).
        Self(high ^ (port_be as u64) << 32 ^ low.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// What a verified token says of its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Admission {
    /// The session.
    pub session_id: u64,
    /// The backend it is pinned to; 0 lets the balancer choose.
    pub backend_id: u16,
    /// Its rate class.
    pub class: u8,
    /// Zero.
    pub reserved: u8,
    /// In an entry of a cache: when its last datagram came from the client that `seen` names.
    pub active: Activity,
}

const _: () = {
    assert!(size_of::<TokenKey>() == 16 && align_of::<TokenKey>() == 8);
    // With the kernel's 48 bytes and the key before it, two cache lines and five. What PROOF and limits need besides
    // the first of their own is in the next, but for one word of the window.
    assert!(size_of::<Session>() == 64 && align_of::<Session>() == 8);
    assert!(core::mem::offset_of!(Session, admission) == 32);
    assert!(size_of::<StatefulEntry>() == 256 && align_of::<StatefulEntry>() == 8);
    assert!(core::mem::offset_of!(StatefulEntry, proof_key) == 64);
    assert!(core::mem::offset_of!(StatefulEntry, window) == 120);
    assert!(size_of::<Admission>() == 16);
};
crate::map_value!(TokenKey, Session, StatefulEntry);

impl Session {
    /// Of a header's claims those that an entry keeps.
    #[inline(always)]
    pub const fn kept([a, b, _nonce, d, e]: [u64; 5]) -> [u64; 4] {
        [a, b, d, e]
    }
}

/// A source address as [`StatefulEntry::sources`] holds it: an IPv4 address is told exactly; an IPv6 address by its
/// first 64 bits, of which 32 are kept. Whoever has so many prefixes that some look alike needs no shared token. Never
/// 0.
///
/// `address` as in [`Source`](crate::token::Source).
#[inline(always)]
pub const fn source(address: u64) -> u32 {
    // IPv4: the upper half is 0. Fibonacci hashing (Knuth, TAOCP 3, §6.4) for the rest.
    let mixed = address as u32 ^ ((address >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    // 255.255.255.255 is nobody's source.
    !mixed | (mixed == u32::MAX) as u32
}

/// A word of the replay window: `(block + 1) << 32 | bits`, where `block` holds 32 sequence numbers and has its place
/// by `block % REPLAY_WORDS`. What a block marks changes by one compare-and-swap of one word, so that of the same
/// packet on several CPUs at once exactly one passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayWord(pub u64);

impl ReplayWord {
    /// The place of a sequence number's word.
    #[inline(always)]
    pub const fn place(seq: u32) -> usize {
        ((seq >> 5) % REPLAY_WORDS as u32) as usize
    }

    /// The word with a sequence number marked in it; `None` if it is marked already, or a later block has its place.
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
        /// The window is a set of numbers with a lower end.
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
