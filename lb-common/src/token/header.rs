//! The 64-byte token header: layout, format and lifetime. Nothing here needs a key.

use crate::{
    control::{SECOND_NS, SKEW_NS},
    keyslot::KeyId,
    reason::Reason,
    service::{ACCEPT_BEARER, ACCEPT_PROOF, BIND_REQUIRED, Service},
};

/// Bytes of a header.
pub const LEN: usize = 64;
/// The maximum difference between a proof's time and the balancer's time (token.md).
pub const PROOF_WINDOW_NS: u64 = 5 * SECOND_NS;
/// The first byte: a value that RFC 7983 leaves unassigned.
pub const MAGIC: u8 = 0x0b;
/// The version that this code implements.
pub const VERSION: u8 = 1;
/// The token is bound to the client's address prefix.
pub const FLAG_BIND_ADDR: u8 = 1 << 0;
/// The token is bound to the client's UDP port.
pub const FLAG_BIND_PORT: u8 = 1 << 1;
/// The bound prefix is an IPv6 prefix.
pub const FLAG_BIND_V6: u8 = 1 << 2;
/// The maximum length of a bound IPv4 prefix, in bits: a whole address.
pub const BIND_LEN_MAX_V4: u8 = 32;
/// The maximum length of a bound IPv6 prefix, in bits: the network half of an address.
pub const BIND_LEN_MAX_V6: u8 = 64;

/// The token types of version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any sender that has the header is admitted.
    Bearer,
    /// Each packet proves that its sender has the session key.
    Proof,
}

impl Kind {
    /// The type code in the low four bits of byte 1.
    pub const fn code(self) -> u8 {
        match self {
            Self::Bearer => 1,
            Self::Proof => 2,
        }
    }
}

/// The source of a packet, in the form to which a token can be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whether the packet is IPv6.
    pub v6: bool,
    /// An IPv4 address and four zero bytes, or the first eight bytes of an IPv6 address, loaded little-endian.
    pub address: u64,
    /// The UDP port, loaded little-endian.
    pub port: u16,
}

/// The associated data of the tags: `addr8 ‖ port2`, both loaded little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// The masked address, or zero.
    pub address: u64,
    /// The port, or zero.
    pub port: u16,
}

/// A well-formed header. Its words are loaded little-endian from the packet, as SipHash requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header([u64; LEN / 8]);

impl Header {
    /// Step 2 in the order of token.md: accepts the headers that a version 1 issuer can create.
    ///
    /// # Errors
    /// `NoToken` if the first byte is wrong, `BadHeader` for any other error.
    #[inline(always)]
    pub fn parse(words: [u64; LEN / 8]) -> Result<Self, Reason> {
        let header = Self(words);
        if header.byte(0) != MAGIC {
            return Err(Reason::NoToken);
        }
        let longest = match header.flags() {
            flags if flags & !(FLAG_BIND_ADDR | FLAG_BIND_PORT | FLAG_BIND_V6) != 0 => {
                return Err(Reason::BadHeader);
            }
            flags if flags & FLAG_BIND_ADDR == 0 && flags & FLAG_BIND_V6 != 0 => {
                return Err(Reason::BadHeader);
            }
            flags if flags & FLAG_BIND_ADDR == 0 => 0,
            flags if flags & FLAG_BIND_V6 == 0 => BIND_LEN_MAX_V4,
            _ => BIND_LEN_MAX_V6,
        };
        let versioned = matches!(
            header.byte(1) ^ VERSION << 4,
            code if code == Kind::Bearer.code() || code == Kind::Proof.code()
        );
        // `bind_len` is 0 if and only if no address is bound.
        if !versioned || header.bind_len() > longest || (header.bind_len() == 0) != (longest == 0) {
            return Err(Reason::BadHeader);
        }
        Ok(header)
    }

    /// From words whose format has been verified by [`Header::parse`].
    #[inline(always)]
    pub const fn from_verified(words: [u64; LEN / 8]) -> Self {
        Self(words)
    }

    /// From the start of a datagram's payload.
    ///
    /// # Errors
    /// `NoToken` if the payload is too short, else as [`Header::parse`].
    pub fn from_payload(payload: &[u8]) -> Result<Self, Reason> {
        let (words, _) = payload.as_chunks::<8>();
        let Some(words) = words.first_chunk::<{ LEN / 8 }>() else {
            return Err(Reason::NoToken);
        };
        Self::parse(words.map(u64::from_le_bytes))
    }

    /// The whole header, loaded little-endian.
    #[inline(always)]
    pub const fn words(&self) -> [u64; LEN / 8] {
        self.0
    }

    /// The 64 bytes in wire order.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }

    /// Whether the service allows this type and this binding.
    ///
    /// # Errors
    /// `Policy`.
    #[inline(always)]
    pub fn allowed_by(&self, service: &Service) -> Result<(), Reason> {
        let bit = match self.kind() {
            Kind::Bearer => ACCEPT_BEARER,
            Kind::Proof => ACCEPT_PROOF,
        };
        if service.accept & bit == 0 || service.bind == BIND_REQUIRED && self.flags() & FLAG_BIND_ADDR == 0 {
            return Err(Reason::Policy);
        }
        Ok(())
    }

    /// Step 4 in the order of token.md: checks the lifetime at the Unix time `now_ns` (nanoseconds). Seconds are
    /// multiplied, and nanoseconds are not divided, because a division costs more than all of these checks.
    ///
    /// # Errors
    /// `NotYetValid`, `Expired`, `Lifetime` or `Revoked`.
    #[inline(always)]
    pub fn lives(&self, service: &Service, now_ns: u64) -> Result<(), Reason> {
        let (issued, expires) = (self.issued_at(), self.expires_at());
        if u64::from(issued) * SECOND_NS > now_ns + SKEW_NS {
            return Err(Reason::NotYetValid);
        }
        if now_ns >= u64::from(expires) * SECOND_NS + SKEW_NS {
            return Err(Reason::Expired);
        }
        if issued > expires || expires - issued > service.max_ttl {
            return Err(Reason::Lifetime);
        }
        if issued < service.revoked_before {
            return Err(Reason::Revoked);
        }
        Ok(())
    }

    /// The data that the tags of a packet from `source` cover in addition to the header.
    ///
    /// # Errors
    /// `BadFastTag` if the packet's address family differs from that of the bound prefix.
    #[inline(always)]
    pub fn binding(&self, source: &Source) -> Result<Binding, Reason> {
        let flags = self.flags();
        let mut binding = Binding::default();
        if flags & FLAG_BIND_ADDR != 0 {
            if (flags & FLAG_BIND_V6 != 0) != source.v6 {
                return Err(Reason::BadFastTag);
            }
            let mask = u64::MAX << ((64 - u32::from(self.bind_len())) & 63);
            binding.address = source.address & mask.swap_bytes();
        }
        if flags & FLAG_BIND_PORT != 0 {
            binding.port = source.port;
        }
        Ok(binding)
    }

    #[inline(always)]
    const fn byte(&self, offset: u32) -> u8 {
        (self.0[0] >> (8 * offset)) as u8
    }

    /// BEARER or PROOF.
    #[inline(always)]
    pub const fn kind(&self) -> Kind {
        if self.byte(1) & 0xf == Kind::Bearer.code() { Kind::Bearer } else { Kind::Proof }
    }

    /// `FLAG_*`.
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        self.byte(2)
    }

    /// The length of the bound prefix in bits; 0: no prefix is bound.
    #[inline(always)]
    pub const fn bind_len(&self) -> u8 {
        self.byte(3)
    }

    /// The id of the key that signed the header.
    #[inline(always)]
    pub const fn key_id(&self) -> KeyId {
        KeyId(((self.0[0] >> 32) as u32).swap_bytes())
    }

    /// The issue time, Unix seconds.
    #[inline(always)]
    pub const fn issued_at(&self) -> u32 {
        (self.0[1] as u32).swap_bytes()
    }

    /// The expiry time, Unix seconds.
    #[inline(always)]
    pub const fn expires_at(&self) -> u32 {
        ((self.0[1] >> 32) as u32).swap_bytes()
    }

    /// The nonce's bytes, loaded little-endian.
    #[inline(always)]
    pub const fn nonce(&self) -> u64 {
        self.0[2]
    }

    /// Bytes 0..40, loaded little-endian.
    #[inline(always)]
    pub const fn claims(&self) -> [u64; 5] {
        let w = &self.0;
        [w[0], w[1], w[2], w[3], w[4]]
    }

    /// Whether bytes 0..40 equal these claims. Compared word by word, because BPF has no `memcmp`.
    #[inline(always)]
    pub const fn claims_are(&self, claims: &[u64; 5]) -> bool {
        let [a, b, c, d, e] = self.claims();
        a ^ claims[0] | b ^ claims[1] | c ^ claims[2] | d ^ claims[3] | e ^ claims[4] == 0
    }

    /// Bytes 24..40, loaded little-endian.
    #[inline(always)]
    pub const fn sealed(&self) -> [u64; 2] {
        [self.0[3], self.0[4]]
    }

    /// Bytes 40..48, loaded little-endian.
    #[inline(always)]
    pub const fn fast_tag(&self) -> u64 {
        self.0[5]
    }

    /// Bytes 48..64 of a BEARER header, loaded little-endian.
    #[inline(always)]
    pub const fn full_tag(&self) -> [u64; 2] {
        [self.0[6], self.0[7]]
    }

    /// Bytes 48..64 of a PROOF header.
    pub const fn proof(&self) -> Proof {
        let w = self.0[6];
        Proof { seq: (w as u32).swap_bytes(), ts_ms: ((w >> 32) as u32).swap_bytes(), tag: self.0[7] }
    }
}

/// The last 16 bytes of a PROOF header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Sequence number, never used twice.
    pub seq: u32,
    /// Milliseconds since `issued_at`.
    pub ts_ms: u32,
    /// The proof's bytes, loaded little-endian.
    pub tag: u64,
}

impl Proof {
    /// The last two words of the header.
    pub const fn to_words(self) -> [u64; 2] {
        [self.seq.swap_bytes() as u64 | (self.ts_ms.swap_bytes() as u64) << 32, self.tag]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_payload_is_parsed_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            match Header::from_payload(&payload) {
                Ok(header) => prop_assert_eq!(&header.to_bytes()[..], &payload[..LEN]),
                Err(reason) => prop_assert!(matches!(reason, Reason::NoToken | Reason::BadHeader)),
            }
        }

        #[test]
        fn form(kind: u8, flags: u8, bind_len: u8) {
            let mut payload = [0; LEN];
            payload[..4].copy_from_slice(&[MAGIC, kind, flags, bind_len]);
            let bound = flags & 1 != 0;
            let longest = if flags & 4 != 0 { 64 } else { 32 };
            let good = (kind == 0x11 || kind == 0x12)
                && flags < 8
                && (bound || flags & 4 == 0)
                && (if bound { (1..=longest).contains(&bind_len) } else { bind_len == 0 });
            prop_assert_eq!(Header::from_payload(&payload).is_ok(), good);
        }
    }
}
