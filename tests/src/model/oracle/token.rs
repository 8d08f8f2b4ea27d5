//! The verification of a single token: a second implementation of token.md, which uses common crates for the
//! primitives. It parses the 64 bytes and derives the keys itself, so it shares no mistake with lb-common.

use std::net::{IpAddr, SocketAddr};

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use lb_common::{reason::Reason, service::Service};
use sha2::Sha256;
use siphasher::sip::{SipHasher13, SipHasher24};

const SECOND_NS: u64 = 1_000_000_000;
/// Maximum difference between the clocks of issuers and balancers.
const SKEW_NS: u64 = 2 * SECOND_NS;
/// Maximum difference between the time of a proof and now.
const PROOF_WINDOW_NS: u64 = 5 * SECOND_NS;

const BEARER: u8 = 1;
const PROOF: u8 = 2;
const BIND_ADDR: u8 = 1;
const BIND_PORT: u8 = 2;
const BIND_V6: u8 = 4;

/// The keys that are derived from a master key.
pub struct Keys {
    full: [u8; 32],
    fast: [u8; 16],
    seal: [u8; 16],
    proof: [u8; 32],
}

impl Keys {
    /// HKDF-SHA-256 (RFC 5869) with token.md's salt and labels.
    pub fn derive(master: &[u8; 32], key_id: u32) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"tollgate/v1"), master);
        Self {
            full: expand(&hkdf, "full", key_id),
            fast: expand(&hkdf, "fast", key_id),
            seal: expand(&hkdf, "seal", key_id),
            proof: expand(&hkdf, "proof", key_id),
        }
    }
}

fn expand<const N: usize>(hkdf: &Hkdf<Sha256>, label: &str, key_id: u32) -> [u8; N] {
    let info = [label.as_bytes(), &[0], &key_id.to_be_bytes()].concat();
    let mut key = [0; N];
    hkdf.expand(&info, &mut key).expect("a few bytes");
    key
}

fn siphash13(key: &[u8; 16], message: &[u8]) -> [u8; 8] {
    SipHasher13::new_with_key(key).hash(message).to_le_bytes()
}

fn siphash24(key: &[u8; 16], message: &[u8]) -> [u8; 8] {
    SipHasher24::new_with_key(key).hash(message).to_le_bytes()
}

fn hmac_128(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    *mac.finalize().into_bytes().first_chunk().expect("32 bytes")
}

/// A header of a valid form, and the payload after it.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    header: &'a [u8; 64],
    payload: &'a [u8],
}

/// The sealed claims in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The audience.
    pub service_id: u32,
    /// The rate class.
    pub class: u8,
    /// 0: any backend.
    pub backend_id: u16,
    /// The session.
    pub session_id: u64,
}

impl<'a> Token<'a> {
    /// Step 2, without the service's policy.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Reason> {
        let (header, payload) = datagram.split_first_chunk::<64>().ok_or(Reason::NoToken)?;
        if header[0] != 0x0b {
            return Err(Reason::NoToken);
        }
        let [_, version_and_type, flags, bind_len, ..] = *header;
        let good_form = matches!(version_and_type, 0x11 | 0x12)
            && match (flags & BIND_ADDR != 0, flags & BIND_V6 != 0) {
                (true, true) => (1..=64).contains(&bind_len),
                (true, false) => (1..=32).contains(&bind_len),
                (false, false) => bind_len == 0,
                (false, true) => false,
            }
            && flags & !(BIND_ADDR | BIND_PORT | BIND_V6) == 0;
        if good_form { Ok(Self { header, payload }) } else { Err(Reason::BadHeader) }
    }

    /// The end of step 2: whether the service accepts tokens of this type with this binding.
    pub fn allowed(&self, service: &Service) -> Result<(), Reason> {
        let accepted = 1 << (self.kind() - BEARER);
        let bound = self.flags() & BIND_ADDR != 0;
        if service.accept & accepted == 0 || service.bind == 1 && !bound {
            return Err(Reason::Policy);
        }
        Ok(())
    }

    /// Step 4, at a unix nanosecond.
    pub fn in_time(&self, service: &Service, now_ns: u64) -> Result<(), Reason> {
        let (issued, expires) = (self.word(8), self.word(12));
        let [issued_ns, expires_ns] =
            [issued, expires].map(|second| u128::from(second) * u128::from(SECOND_NS));
        let (now, skew) = (u128::from(now_ns), u128::from(SKEW_NS));
        if issued_ns > now + skew {
            return Err(Reason::NotYetValid);
        }
        if now >= expires_ns + skew {
            return Err(Reason::Expired);
        }
        if expires < issued || expires - issued > service.max_ttl {
            return Err(Reason::Lifetime);
        }
        if issued < service.revoked_before { Err(Reason::Revoked) } else { Ok(()) }
    }

    /// Step 5.
    pub fn signed(&self, keys: &Keys, from: SocketAddr) -> Result<(), Reason> {
        let of_this_family = self.flags() & BIND_ADDR == 0 || from.is_ipv6() == (self.flags() & BIND_V6 != 0);
        let signed = match self.kind() {
            BEARER => [self.claims(), &self.header[48..64], &self.bound_to(from)].concat(),
            _ => [self.claims(), &self.bound_to(from)[..]].concat(),
        };
        if of_this_family && siphash13(&keys.fast, &signed) == self.header[40..48] {
            Ok(())
        } else {
            Err(Reason::BadFastTag)
        }
    }

    /// Step 6 for a token that is not in the cache.
    pub fn admitted(&self, keys: &Keys, service: &Service, from: SocketAddr) -> Result<Sealed, Reason> {
        if !self.is_proof() {
            let signed = [self.claims(), &self.bound_to(from)].concat();
            if hmac_128(&keys.full, &signed) != self.header[48..64] {
                return Err(Reason::BadFullTag);
            }
        }
        let sealed = self.unseal(keys)?;
        if sealed.service_id == service.id { Ok(sealed) } else { Err(Reason::WrongService) }
    }

    fn unseal(&self, keys: &Keys) -> Result<Sealed, Reason> {
        let keystream = [0_u64, 1]
            .map(|block| siphash24(&keys.seal, &[&self.header[..24], &block.to_be_bytes()].concat()));
        let sealed = &self.header[24..40];
        let clear: Vec<u8> = sealed.iter().zip(keystream.as_flattened()).map(|(a, b)| a ^ b).collect();
        if clear[5] != 0 {
            return Err(Reason::BadHeader);
        }
        Ok(Sealed {
            service_id: u32::from_be_bytes(*clear.first_chunk().expect("16 bytes")),
            class: clear[4],
            backend_id: u16::from_be_bytes([clear[6], clear[7]]),
            session_id: u64::from_be_bytes(*clear.last_chunk().expect("16 bytes")),
        })
    }

    /// Step 8, first half: whether the proof is recent.
    pub fn fresh(&self, now_ns: u64) -> Result<(), Reason> {
        let made_at = u64::from(self.word(8)) * SECOND_NS + u64::from(self.word(52)) * 1_000_000;
        if made_at.abs_diff(now_ns) > PROOF_WINDOW_NS { Err(Reason::StaleProof) } else { Ok(()) }
    }

    /// Step 8, second half: whether the holder of the session key made the proof.
    pub fn proven(&self, session_key: &[u8; 16]) -> Result<(), Reason> {
        let mut first = [0; 16];
        let len = self.payload.len().min(16);
        first[..len].copy_from_slice(&self.payload[..len]);
        let len = (self.payload.len() as u16).to_be_bytes();
        let proof = siphash24(session_key, &[&self.header[48..56], &first, &len].concat());
        if proof == self.header[56..64] { Ok(()) } else { Err(Reason::BadProof) }
    }

    /// The key of its session (NIST SP 800-108r1, counter mode).
    pub fn session_key(&self, keys: &Keys) -> [u8; 16] {
        let input = [&1_u32.to_be_bytes()[..], b"proof\0", self.claims(), &128_u32.to_be_bytes()].concat();
        hmac_128(&keys.proof, &input)
    }

    /// The associated data, `addr8 ‖ port2`.
    fn bound_to(&self, from: SocketAddr) -> [u8; 10] {
        let mut bound = [0; 10];
        if self.flags() & BIND_ADDR != 0 {
            match from.ip() {
                IpAddr::V4(v4) => bound[..4].copy_from_slice(&v4.octets()),
                IpAddr::V6(v6) => bound[..8].copy_from_slice(&v6.octets()[..8]),
            }
            for (byte, of_byte) in bound[..8].iter_mut().zip(0_u32..) {
                let kept = u32::from(self.header[3]).saturating_sub(8 * of_byte).min(8);
                *byte &= !(0xff_u32 >> kept) as u8;
            }
        }
        if self.flags() & BIND_PORT != 0 {
            bound[8..].copy_from_slice(&from.port().to_be_bytes());
        }
        bound
    }

    /// Bytes 0..40.
    pub fn claims(&self) -> &'a [u8] {
        &self.header[..40]
    }

    /// The key in the cache: its fast tag and nonce.
    pub fn id(&self) -> ([u8; 8], [u8; 8]) {
        let bytes = |at: usize| *self.header[at..].first_chunk().expect("in the header");
        (bytes(40), bytes(16))
    }

    /// Whether it is bound to an address.
    pub const fn is_bound(&self) -> bool {
        self.flags() & BIND_ADDR != 0
    }

    /// Id of the key that should have signed it.
    pub fn key_id(&self) -> u32 {
        self.word(4)
    }

    /// Sequence number of the packet; only for PROOF.
    pub fn seq(&self) -> u32 {
        self.word(48)
    }

    /// Whether it is a PROOF token.
    pub const fn is_proof(&self) -> bool {
        self.kind() == PROOF
    }

    const fn kind(&self) -> u8 {
        self.header[1] & 0xf
    }

    const fn flags(&self) -> u8 {
        self.header[2]
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(*self.header[at..].first_chunk().expect("in the header"))
    }
}
