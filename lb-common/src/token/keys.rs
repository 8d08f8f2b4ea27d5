//! Master keys, and the keys that are derived from them. Only for hosts: the kernel never has a master key.

use hkdf::Hkdf;
use sha2::{Sha256, block_api::compress256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{keyslot::KeyId, sha256::HmacKey, siphash::SipKey};

/// One random master key. It belongs to one key id and one service.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; 32]);

impl MasterKey {
    /// From its bytes, which must be random.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for storage or export.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl core::fmt::Debug for MasterKey {
    /// Omits the key.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// The four keys derived from a master key.
#[derive(Clone)]
pub struct DerivedKeys {
    /// HMAC key of the full tag.
    pub full: HmacKey,
    /// SipHash key of the fast tag.
    pub fast: SipKey,
    /// SipHash key of the sealed claims.
    pub seal: SipKey,
    /// HMAC key from which session keys are derived.
    pub proof: HmacKey,
}

impl core::fmt::Debug for DerivedKeys {
    /// Omits the keys.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("DerivedKeys(..)")
    }
}

impl Drop for DerivedKeys {
    fn drop(&mut self) {
        for key in [&mut self.full, &mut self.proof] {
            key.inner.zeroize();
            key.outer.zeroize();
        }
        for key in [&mut self.fast, &mut self.seal] {
            key.k0.zeroize();
            key.k1.zeroize();
        }
    }
}

impl DerivedKeys {
    /// HKDF-SHA-256 (RFC 5869) with salt `tollgate/v1` and info `label ‖ 0x00 ‖ key_id`.
    pub fn derive(master: &MasterKey, key_id: KeyId) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"tollgate/v1"), master.as_bytes());
        Self {
            full: hmac_key(expand(&hkdf, "full", key_id)),
            fast: sip_key(expand(&hkdf, "fast", key_id)),
            seal: sip_key(expand(&hkdf, "seal", key_id)),
            proof: hmac_key(expand(&hkdf, "proof", key_id)),
        }
    }
}

fn expand<const N: usize>(hkdf: &Hkdf<Sha256>, label: &str, key_id: KeyId) -> [u8; N] {
    let mut key = [0; N];
    hkdf.expand_multi_info(&[label.as_bytes(), &[0], &key_id.0.to_be_bytes()], &mut key)
        .expect("16 and 32 bytes are less than the 8160 HKDF can make");
    key
}

fn sip_key(mut bytes: [u8; 16]) -> SipKey {
    let key = SipKey::from_bytes(&bytes);
    bytes.zeroize();
    key
}

/// The states after the pad blocks (RFC 2104 §4).
fn hmac_key(mut key: [u8; 32]) -> HmacKey {
    let after_pad = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(key).for_each(|(block, key)| *block ^= key);
        // FIPS 180-4 §5.3.3.
        let mut state = [
            0x6a09_e667,
            0xbb67_ae85,
            0x3c6e_f372,
            0xa54f_f53a,
            0x510e_527f,
            0x9b05_688c,
            0x1f83_d9ab,
            0x5be0_cd19,
        ];
        compress256(&mut state, &[block]);
        block.zeroize();
        state
    };
    let midstates = HmacKey { inner: after_pad(0x36), outer: after_pad(0x5c) };
    key.zeroize();
    midstates
}
