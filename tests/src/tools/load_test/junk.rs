//! The packets of floods.

use lb_common::{
    reason::Reason,
    token::{Header, header::Proof, mint::ProofToken, tags},
};

use super::{clients::NOBODY, pair::NODE_MAC};
use crate::{
    model::packet::{Family, MORE_FRAGMENTS, Packet},
    testbed::issuer::{Issuer, session, unix_now},
};

/// A class of junk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junk {
    /// Random bytes.
    NoToken,
    /// Tokens of an undefined version.
    BadHeader,
    /// Tokens of a key generation that does not exist.
    UnknownKey,
    /// Tokens that expired an hour ago.
    Expired,
    /// Valid tokens whose fast tag is wrong.
    BadFastTag,
    /// Tokens with a correct fast tag and a wrong full tag, which only a key holder can make. Each requires an HMAC
    /// verification, until the budget is used up.
    BadFullTag,
    /// A client's PROOF token with random proofs, and with higher sequence numbers than the client's.
    BadProof,
    /// The same packet of a PROOF token, repeated.
    Replay,
    /// Fragments.
    Fragment,
}

/// Number of different frames of a class.
pub const TOKENS: u32 = 4096;

/// How far the clock of the proofs is ahead: within the tolerance of five seconds, also at the end of a run.
const AHEAD_MS: u32 = 3000;

/// Source address of a flood's frames, by which the empty program recognises them (tests/replay/src/main.rs).
const FLOOD_MAC: [u8; 6] = [0x02, 0, 0xf1, 0x00, 0x0d, 0x5b];

impl Junk {
    /// All classes, the cheapest first.
    pub const ALL: [Self; 9] = [
        Self::NoToken,
        Self::Fragment,
        Self::BadHeader,
        Self::UnknownKey,
        Self::Expired,
        Self::BadFastTag,
        Self::BadFullTag,
        Self::BadProof,
        Self::Replay,
    ];

    /// The reasons that it is counted as; the first reason is its name.
    pub const fn reasons(self) -> &'static [Reason] {
        match self {
            Self::NoToken => &[Reason::NoToken],
            Self::BadHeader => &[Reason::BadHeader],
            Self::UnknownKey => &[Reason::UnknownKey],
            Self::Expired => &[Reason::Expired],
            Self::BadFastTag => &[Reason::BadFastTag],
            Self::BadFullTag => &[Reason::BadFullTag, Reason::HmacBudget],
            Self::BadProof => &[Reason::BadProof, Reason::StaleProof],
            Self::Replay => &[Reason::Replay, Reason::StaleProof],
            Self::Fragment => &[Reason::Fragment],
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.reasons()[0].name()
    }

    /// The frame that tokens are written into.
    pub fn frame(self) -> Vec<u8> {
        Packet {
            destination_mac: NODE_MAC,
            source_mac: FLOOD_MAC,
            fragment: if self == Self::Fragment { MORE_FRAGMENTS } else { 0 },
            to: Family::V4.service(),
            ..Packet::with_payload([&[0; 64][..], &NOBODY].concat())
        }
        .bytes()
    }

    /// The tokens. `victim` is a token of a client.
    pub fn tokens(self, issuer: &Issuer, victim: &ProofToken, random: &mut fastrand::Rng) -> Vec<Header> {
        if self == Self::Replay {
            let now = unix_now();
            let copied = issuer.proof_at(session(9_999, 0), now, super::TTL).header(0, AHEAD_MS, &NOBODY);
            return vec![copied; TOKENS as usize];
        }
        (0..TOKENS).map(|number| self.token(issuer, victim, number, random)).collect()
    }

    fn token(self, issuer: &Issuer, victim: &ProofToken, number: u32, random: &mut fastrand::Rng) -> Header {
        let claims = session(1_000 + u64::from(number), 0);
        let issued_at = if self == Self::Expired { unix_now() - 3600 } else { unix_now() };
        let mut words = issuer.token_at(claims, issued_at, super::TTL).words();
        match self {
            Self::NoToken => words = [0; 8].map(|_: u64| random.u64(..) << 8),
            Self::BadHeader => words[0] ^= 0x20 << 8,
            // The highest bits of the key id, which belong to the generation.
            Self::UnknownKey => words[0] ^= 0x80 << 32,
            Self::Expired | Self::Fragment | Self::Replay => {}
            Self::BadFastTag => words[5] ^= 1,
            Self::BadFullTag => {
                words[6] ^= 1;
                let header = Header::from_verified(words);
                let binding = lb_common::token::header::Binding::default();
                words[5] = tags::fast(issuer.keys().fast, &header, &binding);
            }
            Self::BadProof => {
                let real = victim.header(0, 0, &NOBODY);
                let ts_ms = (unix_now() - real.issued_at()) * 1000 + AHEAD_MS;
                let made_up = Proof { seq: random.u32(1 << 31..), ts_ms, tag: random.u64(..) };
                words = real.words();
                [words[6], words[7]] = made_up.to_words();
            }
        }
        Header::from_verified(words)
    }
}
