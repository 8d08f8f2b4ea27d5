//! SHA-256 (FIPS 180-4) of one block, and HMAC-SHA-256 (RFC 2104) of a message that fits into one block. Computations
//! start from the states after the pad blocks, so a tag costs two compressions.

/// The maximum length of a message in one block, in bytes: 64 minus the byte 0x80 and the 64-bit length.
pub const MESSAGE_MAX: usize = 55;

/// An HMAC key, as the two SHA-256 states after its inner and its outer pad block.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HmacKey {
    /// The state after `key ^ ipad`.
    pub inner: [u32; 8],
    /// The state after `key ^ opad`.
    pub outer: [u32; 8],
}

/// The working memory of a computation. It is not on the stack, because a BPF program has only 512 bytes of stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    /// The chaining state; at the end, the hash.
    pub state: [u32; 8],
    /// The block, and the message schedule that is derived from it.
    pub schedule: [u32; 64],
}

const _: () = {
    assert!(size_of::<HmacKey>() == 64 && align_of::<HmacKey>() == 4);
    assert!(size_of::<Scratch>() == 32 + 256 && align_of::<Scratch>() == 4);
};

impl Default for Scratch {
    fn default() -> Self {
        Self { state: [0; 8], schedule: [0; 64] }
    }
}

/// Writes the padded block of a message. `words` are loaded little-endian from the packet, and the message is their
/// first `len` bytes. The encoded length includes the pad block of 64 bytes that was hashed before.
#[inline(always)]
pub fn load_block<const N: usize>(scratch: &mut Scratch, words: &[u64; N], len: usize) {
    const { assert!(N <= 7, "the length takes the last word") };
    let mut i = 0;
    while i < 7 {
        let begin = i * 8;
        let mut word = if i < N { words[i] } else { 0 };
        if begin <= len && len < begin + 8 {
            let shift = 8 * (len - begin);
            word = word & ((1 << shift) - 1) | 0x80 << shift;
        } else if begin > len {
            word = 0;
        }
        scratch.schedule[2 * i] = (word as u32).swap_bytes();
        scratch.schedule[2 * i + 1] = ((word >> 32) as u32).swap_bytes();
        i += 1;
    }
    scratch.schedule[14] = 0;
    scratch.schedule[15] = (64 + len as u32) * 8;
}

/// Computes HMAC-SHA-256 of the message that `load_block` has written. The tag is in `scratch.state`.
#[inline(always)]
pub fn hmac(key: &HmacKey, scratch: &mut Scratch) {
    scratch.state = key.inner;
    compress(scratch);
    let mut i = 0;
    while i < 8 {
        scratch.schedule[i] = scratch.state[i];
        i += 1;
    }
    scratch.schedule[8] = 0x8000_0000;
    while i < 14 {
        scratch.schedule[i + 1] = 0;
        i += 1;
    }
    scratch.schedule[15] = (64 + 32) * 8;
    scratch.state = key.outer;
    compress(scratch);
}

/// The first 16 bytes of the tag in `scratch.state`, as two little-endian words of its wire bytes.
#[inline(always)]
pub const fn tag128(scratch: &Scratch) -> [u64; 2] {
    let s = &scratch.state;
    [
        s[0].swap_bytes() as u64 | (s[1].swap_bytes() as u64) << 32,
        s[2].swap_bytes() as u64 | (s[3].swap_bytes() as u64) << 32,
    ]
}

/// The word in both halves of the result, so that the low half of a right shift by less than 32 is a rotation. BPF has
/// no rotate instruction: this needs one shift per rotation, while `rotate_right` needs two shifts and an or.
#[inline(always)]
const fn twice(x: u32) -> u64 {
    x as u64 | (x as u64) << 32
}

/// The compression function: `state` absorbs the first 16 words of `schedule`.
///
/// A separate function with loops instead of 64 unrolled rounds: the stack frames of a BPF program's functions share
/// 512 bytes, and code that fits into the cache is faster for a single packet.
#[inline(never)]
pub fn compress(scratch: &mut Scratch) {
    let w = scratch.schedule.as_mut_ptr();
    // SAFETY: `i` is below 64 at every call, and `w` points to the exclusively borrowed array of 64 words. Volatile,
    // because LLVM would otherwise keep the words as values, and spill them to the stack.
    let load = |i: usize| unsafe { w.add(i).read_volatile() };

    let expand = |i: usize| {
        let (w15, w2) = (load(i - 15), load(i - 2));
        let (d15, d2) = (twice(w15), twice(w2));
        let s0 = (d15 >> 7 ^ d15 >> 18) as u32 ^ w15 >> 3;
        let s1 = (d2 >> 17 ^ d2 >> 19) as u32 ^ w2 >> 10;
        let word = load(i - 16).wrapping_add(s0).wrapping_add(load(i - 7)).wrapping_add(s1);
        // SAFETY: as above.
        unsafe { w.add(i).write_volatile(word) };
    };
    let mut i = 16;
    while i < 64 {
        expand(i);
        expand(i + 1);
        expand(i + 2);
        expand(i + 3);
        i += 4;
    }

    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = scratch.state;
    // A round writes its results to `d` and `h`, instead of moving all eight variables. After eight rounds, each
    // variable has its original role again.
    macro_rules! round {
        ($i:expr, $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident) => {
            let (ee, aa) = (twice($e), twice($a));
            $h = $h
                .wrapping_add((ee >> 6 ^ ee >> 11 ^ ee >> 25) as u32)
                .wrapping_add($g ^ $e & ($f ^ $g))
                .wrapping_add(K[$i])
                .wrapping_add(load($i));
            $d = $d.wrapping_add($h);
            $h = $h
                .wrapping_add((aa >> 2 ^ aa >> 13 ^ aa >> 22) as u32)
                .wrapping_add($b ^ ($a ^ $b) & ($b ^ $c));
        };
    }
    let mut i = 0;
    while i < 64 {
        round!(i, a b c d e f g h);
        round!(i + 1, h a b c d e f g);
        round!(i + 2, g h a b c d e f);
        round!(i + 3, f g h a b c d e);
        round!(i + 4, e f g h a b c d);
        round!(i + 5, d e f g h a b c);
        round!(i + 6, c d e f g h a b);
        round!(i + 7, b c d e f g h a);
        i += 8;
    }

    // The state is read again, by volatile reads: LLVM would otherwise keep its words on the stack for 64 rounds.
    for (sum, word) in scratch.state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        let sum = &raw mut *sum;
        // SAFETY: a word of the exclusively borrowed state.
        unsafe { sum.write_volatile(sum.read_volatile().wrapping_add(word)) };
    }
}

/// The round constants (FIPS 180-4 §4.2.2).
static K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::block_api::compress256;

    const INITIAL: [u32; 8] =
        [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

    proptest! {
        #[test]
        fn compression_agrees_with_sha2(state: [u32; 8], block: [u8; 64]) {
            let mut theirs = state;
            compress256(&mut theirs, &[block]);
            let mut words = [0; 16];
            for (word, bytes) in words.iter_mut().zip(block.as_chunks().0) {
                *word = u32::from_be_bytes(*bytes);
            }
            let mut ours = Scratch { state, ..Scratch::default() };
            ours.schedule[..16].copy_from_slice(&words);
            compress(&mut ours);
            prop_assert_eq!(ours.state, theirs);
        }

        #[test]
        fn hmac_agrees_with_hmac(key: [u8; 32], message in proptest::collection::vec(any::<u8>(), 0..=MESSAGE_MAX)) {
            use hmac::{KeyInit, Mac};
            let mut theirs = hmac::Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
            theirs.update(&message);
            let theirs = theirs.finalize().into_bytes();

            let pad = |byte| {
                let mut state = INITIAL;
                let mut block = [byte; 64];
                block.iter_mut().zip(key).for_each(|(block, key)| *block ^= key);
                compress256(&mut state, &[block]);
                state
            };
            let ours = HmacKey { inner: pad(0x36), outer: pad(0x5c) };
            let mut bytes = [0xee; 56];
            bytes[..message.len()].copy_from_slice(&message);
            let words: [u64; 7] = core::array::from_fn(|i| {
                u64::from_le_bytes(bytes[i * 8..][..8].try_into().unwrap())
            });
            let mut scratch = Scratch::default();
            load_block(&mut scratch, &words, message.len());
            hmac(&ours, &mut scratch);
            let [low, high] = tag128(&scratch);
            prop_assert_eq!([low.to_le_bytes(), high.to_le_bytes()].concat(), &theirs[..16]);
        }
    }
}
