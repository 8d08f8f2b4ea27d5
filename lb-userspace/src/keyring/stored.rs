//! The stored form of the keyring. It is checked when it is read, so a keyring in memory always satisfies its
//! invariants.

use std::collections::BTreeMap;

use lb_common::{keyslot::GENERATION_MAX, maps::KEY_SLOTS_MAX};
use serde::{Deserialize, Serialize};

use super::{
    Key, KeyState, Keyring,
    slots::{Slots, Used, fingerprint},
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    keys: Vec<Key>,
    slots: BTreeMap<u32, Used>,
}

impl From<Keyring> for Stored {
    fn from(keyring: Keyring) -> Self {
        Self { keys: keyring.keys.into_values().collect(), slots: keyring.slots.0 }
    }
}

/// Why the stored data is not a keyring.
#[derive(Debug, thiserror::Error)]
pub(super) enum Contradiction {
    #[error("slot {0} or its generation is out of range")]
    Slot(u32),
    #[error("key {0} is there twice")]
    Twice(u32),
    #[error("key {0} is not the last of its slot")]
    NotLast(u32),
    #[error("key {0} is {1}, and its end says otherwise")]
    End(u32, KeyState),
    #[error("service {0} has two keys that are {1}")]
    TwoOf(u32, KeyState),
}

impl TryFrom<Stored> for Keyring {
    type Error = Contradiction;

    fn try_from(stored: Stored) -> Result<Self, Contradiction> {
        let out_of_range =
            |(slot, used): &(&u32, &Used)| **slot >= KEY_SLOTS_MAX || used.generation > GENERATION_MAX;
        if let Some((slot, _)) = stored.slots.iter().find(out_of_range) {
            return Err(Contradiction::Slot(*slot));
        }
        let mut slots = Slots(stored.slots);
        let mut keys = BTreeMap::new();
        let mut signers = BTreeMap::new();
        for key in stored.keys {
            let (id, state, service_id) = (key.id, key.state, key.service_id);
            let last = |used: &Used| {
                used.generation == id.generation() && used.fingerprint == fingerprint(&key.master)
            };
            if id.0 == 0 || !slots.get(id).is_some_and(last) {
                return Err(Contradiction::NotLast(id.0));
            }
            slots.assign(id, service_id);
            let goes_on = matches!(state, KeyState::Staged | KeyState::Active);
            if goes_on != key.not_after.is_none() {
                return Err(Contradiction::End(id.0, state));
            }
            if goes_on && signers.insert((service_id, state), id).is_some() {
                return Err(Contradiction::TwoOf(service_id, state));
            }
            if keys.insert(id, key).is_some() {
                return Err(Contradiction::Twice(id.0));
            }
        }
        Ok(Self { keys, slots })
    }
}

/// Serializes key ids as numbers.
pub(super) mod number {
    use lb_common::keyslot::KeyId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::keyring) fn serialize<S: Serializer>(id: &KeyId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(id.0)
    }

    pub(in crate::keyring) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<KeyId, D::Error> {
        u32::deserialize(from).map(KeyId)
    }
}

/// Serializes master keys in hex, and leaves no copy in memory.
pub(super) mod hex_master {
    use lb_common::token::keys::MasterKey;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use zeroize::Zeroizing;

    pub(in crate::keyring) fn serialize<S: Serializer>(key: &MasterKey, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Zeroizing::new(hex::encode(key.as_bytes())))
    }

    pub(in crate::keyring) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MasterKey, D::Error> {
        let text = Zeroizing::new(String::deserialize(from)?);
        let mut bytes = Zeroizing::new([0; 32]);
        // The error must not repeat the input, which may be most of a secret.
        hex::decode_to_slice(text.as_bytes(), &mut *bytes)
            .map_err(|_| D::Error::custom("a master key is 64 hexadecimal digits"))?;
        Ok(MasterKey::from_bytes(*bytes))
    }
}
