//! The tags of token.md: fast tag, full tag and proof. All inputs and outputs are little-endian words of the wire
//! bytes.

use crate::{
    sha256::{self, HmacKey, Scratch},
    siphash::{SipHash13, SipHash24, SipKey},
    token::header::{Binding, Header, Kind, Proof},
};

/// Bytes of `claims ‖ AD`.
const CLAIMS_AND_AD: usize = 50;

/// The fast tag that the header must have to be valid.
#[inline(always)]
pub const fn fast(key: SipKey, header: &Header, binding: &Binding) -> u64 {
    let [a, b, c, d, e] = header.claims();
    let claims = SipHash13::new(key).word(a).word(b).word(c).word(d).word(e);
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

/// The full tag that a BEARER header must have to be valid.
#[inline(always)]
pub fn full(key: &HmacKey, claims: [u64; 5], binding: &Binding, scratch: &mut Scratch) -> [u64; 2] {
    let [a, b, c, d, e] = claims;
    sha256::load_block(scratch, &[a, b, c, d, e, binding.address, u64::from(binding.port)], CLAIMS_AND_AD);
    sha256::hmac(key, scratch);
    sha256::tag128(scratch)
}

/// The key of a PROOF token's session (NIST SP 800-108r1, counter mode), over u32 1 ‖ "proof" ‖ 00 ‖ claims ‖ u32 128.
#[inline(always)]
pub fn session_key(key: &HmacKey, claims: [u64; 5], scratch: &mut Scratch) -> SipKey {
    const COUNTER_LABEL: u64 = u64::from_le_bytes(*b"\0\0\0\x01proo");
    const LABEL_END: u64 = u64::from_le_bytes(*b"f\0\0\0\0\0\0\0");
    const BITS: u64 = u64::from_le_bytes(*b"\0\0\0\0\0\x80\0\0");
    // Ten bytes precede the claims, so the last two bytes of each claims word are in the next word.
    let [a, b, c, d, e] = claims;
    let across = |first: u64, second: u64| first >> 48 | second << 16;
    let words = [
        COUNTER_LABEL,
        LABEL_END | a << 16,
        across(a, b),
        across(b, c),
        across(c, d),
        across(d, e),
        e >> 48 | BITS,
    ];
    sha256::load_block(scratch, &words, 54);
    sha256::hmac(key, scratch);
    let [k0, k1] = sha256::tag128(scratch);
    SipKey { k0, k1 }
}

/// The proof over a packet's sequence number and time (bytes 48..56 of its header), the first 16 bytes of its payload,
/// padded with zeros, and the payload's length. Header and payload are loaded little-endian.
#[inline(always)]
pub const fn proof(key: SipKey, seq_and_ts: u64, payload: [u64; 2], payload_len: u16) -> u64 {
    let [first, second] = payload;
    SipHash24::new(key).word(seq_and_ts).word(first).word(second).finish(payload_len.swap_bytes() as u64, 26)
}

/// As [`proof`], on a host. `payload` is the data after the header, at most 65,535 bytes.
pub fn proof_over(key: SipKey, seq: u32, ts_ms: u32, payload: &[u8]) -> u64 {
    let mut first = [0; 16];
    let len = payload.len().min(16);
    first[..len].copy_from_slice(&payload[..len]);
    let words = u128::from_le_bytes(first);
    let [seq_and_ts, _] = Proof { seq, ts_ms, tag: 0 }.to_words();
    proof(key, seq_and_ts, [words as u64, (words >> 64) as u64], payload.len() as u16)
}
