//! Token issuance: creates headers.

use core::net::IpAddr;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    keyslot::KeyId,
    sha256::Scratch,
    siphash::SipKey,
    token::{
        Claims, Header, Kind, Source,
        header::{
            BIND_LEN_MAX_V4, BIND_LEN_MAX_V6, FLAG_BIND_ADDR, FLAG_BIND_PORT, FLAG_BIND_V6, MAGIC, Proof,
            VERSION,
        },
        keys::DerivedKeys,
        tags,
    },
};

/// A client address prefix that a token is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// The error for a prefix length to which a token cannot be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token can be bound to 1 to {longest} bits of {address}, not to {len}")]
pub struct PrefixLength {
    address: IpAddr,
    len: u8,
    longest: u8,
}

impl Prefix {
    /// # Errors
    /// If the length is outside 1..=32 (IPv4) or 1..=64 (IPv6).
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixLength> {
        let longest = Self::longest(address);
        if len == 0 || len > longest {
            return Err(PrefixLength { address, len, longest });
        }
        Ok(Self { address, len })
    }

    /// The longest prefix of this address that a token can be bound to.
    pub const fn longest(address: IpAddr) -> u8 {
        if address.is_ipv4() { BIND_LEN_MAX_V4 } else { BIND_LEN_MAX_V6 }
    }
}

impl Source {
    /// The source of a packet.
    pub fn new(address: IpAddr, port: u16) -> Self {
        let mut first = [0; 8];
        match address {
            IpAddr::V4(v4) => first[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => first.copy_from_slice(&v6.octets()[..8]),
        }
        Self { v6: address.is_ipv6(), address: u64::from_le_bytes(first), port: port.to_be() }
    }
}

/// The contents of a new token.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The sealed claims.
    pub claims: Claims,
    /// The issue time, Unix seconds.
    pub issued_at: u32,
    /// The expiry time, Unix seconds.
    pub expires_at: u32,
    /// Random bytes that no other token has.
    pub nonce: [u8; 8],
    /// The prefix from which the client must send.
    pub bind: Option<Prefix>,
    /// The port from which the client must send.
    pub bind_port: Option<u16>,
}

/// The data that the client of a PROOF token receives.
#[derive(Debug)]
pub struct ProofToken {
    claims: [u64; 5],
    fast_tag: u64,
    session_key: SessionKey,
}

/// The key of a PROOF token's session.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SessionKey([u8; 16]);

impl SessionKey {
    /// Its bytes, for the client.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl core::fmt::Debug for SessionKey {
    /// Omits the key.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

impl Grant {
    /// Creates a BEARER header: any sender that has it is admitted.
    pub fn bearer(&self, key_id: KeyId, keys: &DerivedKeys) -> Header {
        let claims = self.claims_words(Kind::Bearer, key_id, keys);
        let unsigned = header(claims, 0, [0; 2]);
        let binding = unsigned.binding(&self.source()).expect("the source is of the bound family");
        let full = tags::full(&keys.full, claims, &binding, &mut Scratch::default());
        header(claims, tags::fast(keys.fast, &header(claims, 0, full), &binding), full)
    }

    /// The data that the client of a PROOF token needs to create headers.
    pub fn proof(&self, key_id: KeyId, keys: &DerivedKeys) -> ProofToken {
        let claims = self.claims_words(Kind::Proof, key_id, keys);
        let unsigned = header(claims, 0, [0; 2]);
        let binding = unsigned.binding(&self.source()).expect("the source is of the bound family");
        let session_key = tags::session_key(&keys.proof, claims, &mut Scratch::default());
        ProofToken {
            claims,
            fast_tag: tags::fast(keys.fast, &unsigned, &binding),
            session_key: SessionKey(session_key.to_bytes()),
        }
    }

    fn claims_words(&self, kind: Kind, key_id: KeyId, keys: &DerivedKeys) -> [u64; 5] {
        let (mut flags, mut bind_len) = (0, 0);
        if let Some(prefix) = self.bind {
            flags |= FLAG_BIND_ADDR | if prefix.address.is_ipv6() { FLAG_BIND_V6 } else { 0 };
            bind_len = prefix.len;
        }
        if self.bind_port.is_some() {
            flags |= FLAG_BIND_PORT;
        }
        let be = |high: u32, low: u32| (u64::from(high) << 32 | u64::from(low)).swap_bytes();
        let first = [
            be(u32::from_be_bytes([MAGIC, VERSION << 4 | kind.code(), flags, bind_len]), key_id.0),
            be(self.issued_at, self.expires_at),
            u64::from_le_bytes(self.nonce),
        ];
        let sealed = self.claims.seal(keys.seal, first);
        [first[0], first[1], first[2], sealed[0], sealed[1]]
    }

    fn source(&self) -> Source {
        let address = self.bind.map_or(core::net::Ipv4Addr::UNSPECIFIED.into(), |prefix| prefix.address);
        Source::new(address, self.bind_port.unwrap_or(0))
    }
}

fn header(claims: [u64; 5], fast_tag: u64, last: [u64; 2]) -> Header {
    let [a, b, c, d, e] = claims;
    Header::parse([a, b, c, d, e, fast_tag, last[0], last[1]]).expect("a grant makes well-formed headers")
}

impl ProofToken {
    /// The claims' bytes.
    pub fn claims(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes.copy_from_slice(&header(self.claims, 0, [0; 2]).to_bytes()[..40]);
        bytes
    }

    /// The fast tag's bytes.
    pub const fn fast_tag(&self) -> [u8; 8] {
        self.fast_tag.to_le_bytes()
    }

    /// The session's key.
    pub const fn session_key(&self) -> &SessionKey {
        &self.session_key
    }

    /// Creates the header of a packet with this payload. A value of `seq` must never be used twice.
    pub fn header(&self, seq: u32, ts_ms: u32, payload: &[u8]) -> Header {
        let key = SipKey::from_bytes(self.session_key.as_bytes());
        let tag = tags::proof_over(key, seq, ts_ms, payload);
        header(self.claims, self.fast_tag, Proof { seq, ts_ms, tag }.to_words())
    }
}
