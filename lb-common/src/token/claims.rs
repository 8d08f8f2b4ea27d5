//! The sealed claims: encrypted data from the issuer to the balancer.

use crate::{
    reason::Reason,
    siphash::{SipHash24, SipKey},
    token::Header,
};

/// The sealed claims, in plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// The service that the token is for.
    pub service_id: u32,
    /// The session's rate class.
    pub class: u8,
    /// The backend that the session is bound to; 0: the balancer selects the backend.
    pub backend_id: u16,
    /// The session.
    pub session_id: u64,
}

/// The two keystream blocks for a header's first 24 bytes, as little-endian words.
#[inline(always)]
pub const fn keystream(seal: SipKey, first: [u64; 3]) -> [u64; 2] {
    let common = SipHash24::new(seal).word(first[0]).word(first[1]).word(first[2]);
    [common.word(0).finish(0, 32), common.word(1u64.swap_bytes()).finish(0, 32)]
}

impl Claims {
    /// Encrypts the claims, with the keystream for the first 24 bytes of their header.
    pub const fn seal(&self, seal: SipKey, first: [u64; 3]) -> [u64; 2] {
        let [k0, k1] = keystream(seal, first);
        let word = self.service_id.swap_bytes() as u64
            | (self.class as u64) << 32
            | (self.backend_id.swap_bytes() as u64) << 48;
        [word ^ k0, self.session_id.swap_bytes() ^ k1]
    }

    /// Decrypts a header's claims. Do not trust them before the header's tags have been verified.
    ///
    /// # Errors
    /// `BadHeader` if the reserved byte is set.
    #[inline(always)]
    pub const fn unseal(header: &Header, seal: SipKey) -> Result<Self, Reason> {
        let [a, b, c, ..] = header.claims();
        let [k0, k1] = keystream(seal, [a, b, c]);
        let [s0, s1] = header.sealed();
        let word = s0 ^ k0;
        if word >> 40 & 0xff != 0 {
            return Err(Reason::BadHeader);
        }
        Ok(Self {
            service_id: (word as u32).swap_bytes(),
            class: (word >> 32) as u8,
            backend_id: ((word >> 48) as u16).swap_bytes(),
            session_id: (s1 ^ k1).swap_bytes(),
        })
    }
}
