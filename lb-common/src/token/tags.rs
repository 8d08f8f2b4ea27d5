//! The tags of token.md: fast, full and proof. All in and out as little-endian words of the wire bytes.

use crate::{
    sha256::{self, HmacKey, Scratch},
    siphash::{SipHash24, SipKey, siphash24},
    token::header::{Binding, Header, Kind},
};

/// Bytes of `claims ‖ AD`.
const CLAIMS_AND_AD: usize = 50;

/// The fast tag the header should carry.
#[inline(always)]
pub const fn fast(key: SipKey, header: &Header, binding: &Binding) -> u64 {
    let [a, b, c, d, e] = header.claims();
    let claims = SipHash24::new(key).word(a).word(b).word(c).word(d).word(e);
    match header.kind() {
        Kind::Bearer => {
            let [t0, t1] = header.full_tag();
            claims
                .word(t0)
                .word(t1)
                .word(binding.address)
                .finish(binding.port as u64, CLAIMS_AND_AD as u64 + 16)
        }
        Kind::Proof => claims.word(binding.address).finish(binding.port as u64, CLAIMS_AND_AD as u64),
    }
}

/// The full tag a BEARER header should carry.
#[inline(always)]
pub fn full(key: &HmacKey, claims: [u64; 5], binding: &Binding, scratch: &mut Scratch) -> [u64; 2] {
    let [a, b, c, d, e] = claims;
    sha256::load_block(scratch, &[a, b, c, d, e, binding.address, u64::from(binding.port)], CLAIMS_AND_AD);
    sha256::hmac(key, scratch);
    sha256::tag128(scratch)
}

/// The key of a PROOF token's session (NIST SP 800-108r1, counter mode).
pub fn session_key(key: &HmacKey, claims: [u64; 5], scratch: &mut Scratch) -> SipKey {
    // u32 1 ‖ "proof" ‖ 00 ‖ claims ‖ u32 128
    let mut message = [0; 56];
    message[..10].copy_from_slice(b"\0\0\0\x01proof\0");
    for (i, word) in claims.iter().enumerate() {
        message[10 + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
    }
    message[50..54].copy_from_slice(&128u32.to_be_bytes());
    let mut words = [0; 7];
    for (word, bytes) in words.iter_mut().zip(message.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    sha256::load_block(scratch, &words, 54);
    sha256::hmac(key, scratch);
    let [k0, k1] = sha256::tag128(scratch);
    SipKey { k0, k1 }
}

/// The proof over a packet's sequence number, time, and payload (the bytes after the header).
pub fn proof(key: SipKey, seq: u32, ts_ms: u32, payload: &[u8]) -> u64 {
    let mut message = [0; 26];
    message[..4].copy_from_slice(&seq.to_be_bytes());
    message[4..8].copy_from_slice(&ts_ms.to_be_bytes());
    let first = payload.len().min(16);
    message[8..8 + first].copy_from_slice(&payload[..first]);
    message[24..].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    siphash24(key, &message)
}
