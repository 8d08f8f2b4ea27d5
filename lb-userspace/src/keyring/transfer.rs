//! Keysets, with which issuers sign and other nodes verify.

use std::collections::BTreeSet;

use lb_common::{keyslot::KeyId, token::keys::MasterKey};
use serde::{Deserialize, Serialize};

use super::{Key, KeyPolicy, KeyState, Keyring, KeyringError, LATE, slots::REST, stored::hex_master};

/// The keys of a service with their secrets, as `keys export` prints and `keys import` reads them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Keyset {
    /// Name of the service.
    pub service: String,
    /// Id of the service.
    pub service_id: u32,
    /// All keys that verify.
    pub keys: Vec<ExportedKey>,
}

/// A key of a keyset, with its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExportedKey {
    /// Id of the key.
    pub key_id: u32,
    /// State of the key; an issuer signs with the `active` key only.
    pub state: KeyState,
    /// The master key in hex, a secret.
    #[serde(with = "hex_master")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub master: MasterKey,
    /// The key verifies at least until this time.
    pub not_after: u64,
    /// An issuer may sign with the key until this time; 0: not at all.
    pub sign_until: u64,
}

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Keys that were unknown here: install them.
    pub added: Vec<KeyId>,
    /// Keys that were already known; their lifetimes may be extended.
    pub known: Vec<KeyId>,
    /// Keys that were not imported.
    pub skipped: Vec<(KeyId, Skipped)>,
}

/// Why a key was not imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// It was revoked, here or on the exporting node.
    Revoked,
    /// Its last token has expired.
    Ended,
}

impl Keyring {
    /// The keys of a service, for an issuer or another node. It promises the issuer that it may sign until
    /// `sign_until`, so the keyring must be stored before the keyset leaves this node.
    pub fn export(&mut self, service: &str, policy: &KeyPolicy, now: u64) -> Keyset {
        let horizon = now.saturating_add(policy.horizon());
        let keys = self.keys.values_mut().filter(|key| key.service_id == policy.service_id && key.verifies());
        let keys = keys.map(|key| {
            key.max_ttl = if key.not_after.is_none() { key.max_ttl.max(policy.max_ttl) } else { key.max_ttl };
            if key.state == KeyState::Active {
                key.sign_until = key.sign_until.max(horizon);
            }
            // A staged key that becomes active and is replaced immediately would still verify for this long.
            let at_least = key.last_token_ends().max(now.saturating_add(key.max_ttl).saturating_add(LATE));
            ExportedKey {
                key_id: key.id.0,
                state: key.state,
                master: key.master.clone(),
                not_after: key.not_after.unwrap_or(at_least),
                sign_until: key.sign_until,
            }
        });
        Keyset { service: service.to_owned(), service_id: policy.service_id, keys: keys.collect() }
    }

    /// Imports the keys of another node, or of an earlier store: this node then verifies with them. If the service has
    /// neither an active nor a staged key, the active key of the keyset is staged. Importing the same keyset twice
    /// changes nothing; a later keyset of the same node extends the lifetimes of keys.
    ///
    /// # Errors
    /// If a key cannot be imported. Then no key is imported.
    pub fn import(
        &mut self,
        keyset: &Keyset,
        policy: &KeyPolicy,
        now: u64,
    ) -> Result<Imported, KeyringError> {
        if keyset.service_id != policy.service_id {
            return Err(KeyringError::OtherService { expected: policy.service_id, found: keyset.service_id });
        }
        let mut new = self.clone();
        let mut imported = Imported::default();
        let mut ids = BTreeSet::new();
        for key in &keyset.keys {
            let id = KeyId(key.key_id);
            if id.0 == 0 {
                return Err(KeyringError::KeyIdZero);
            }
            let until = key.not_after.max(key.sign_until);
            if until > u64::from(u32::MAX) {
                return Err(KeyringError::TooLate { id, until });
            }
            if !ids.insert(id) {
                return Err(KeyringError::Twice(id));
            }
            if new.keys.contains_key(&id) {
                new.import_known(key, policy, &mut imported)?;
            } else {
                new.import_new(key, policy, now, &mut imported)?;
            }
        }
        *self = new;
        Ok(imported)
    }

    fn import_known(
        &mut self,
        theirs: &ExportedKey,
        policy: &KeyPolicy,
        imported: &mut Imported,
    ) -> Result<(), KeyringError> {
        let id = KeyId(theirs.key_id);
        let Some(ours) = self.keys.get_mut(&id) else { return Err(KeyringError::NoSuchKey(id)) };
        if ours.master != theirs.master || ours.service_id != policy.service_id {
            return Err(KeyringError::Conflict { id });
        }
        if ours.state == KeyState::Revoked || theirs.state == KeyState::Revoked {
            imported.skipped.push((id, Skipped::Revoked));
            return Ok(());
        }
        if theirs.sign_until > ours.sign_until {
            ours.sign_until = theirs.sign_until;
            ours.max_ttl = ours.max_ttl.max(policy.max_ttl);
        }
        if let Some(not_after) = ours.not_after {
            ours.not_after = Some(not_after.max(theirs.not_after).max(ours.last_token_ends()));
        }
        imported.known.push(id);
        Ok(())
    }

    fn import_new(
        &mut self,
        theirs: &ExportedKey,
        policy: &KeyPolicy,
        now: u64,
        imported: &mut Imported,
    ) -> Result<(), KeyringError> {
        let id = KeyId(theirs.key_id);
        let mut key = Key {
            id,
            service_id: policy.service_id,
            state: KeyState::Retiring,
            master: theirs.master.clone(),
            created_at: now,
            activated_at: None,
            sign_until: theirs.sign_until,
            not_after: None,
            max_ttl: policy.max_ttl,
            imported: true,
        };
        let not_after = theirs.not_after.max(if key.sign_until == 0 { 0 } else { key.last_token_ends() });
        if theirs.state == KeyState::Revoked {
            imported.skipped.push((id, Skipped::Revoked));
            return Ok(());
        }
        if not_after <= now {
            imported.skipped.push((id, Skipped::Ended));
            return Ok(());
        }
        if self.seen_revoked(&key, now)? {
            imported.skipped.push((id, Skipped::Revoked));
            return Ok(());
        }
        self.check_quota(policy, 0, now)?;
        let signs = self.signer(policy.service_id).is_some() || self.staged(policy.service_id).is_some();
        if theirs.state == KeyState::Active && !signs {
            key.state = KeyState::Staged;
        } else {
            key.not_after = Some(not_after);
        }
        self.insert(key);
        imported.added.push(id);
        Ok(())
    }

    /// Makes the slot of a key's id available for it. Returns true if this key was revoked here before.
    fn seen_revoked(&mut self, key: &Key, now: u64) -> Result<bool, KeyringError> {
        let id = key.id;
        let Some(used) = self.slots.get(id) else { return Ok(false) };
        if used.generation > id.generation() {
            return Err(KeyringError::Outdated { id });
        }
        if used.generation == id.generation() {
            if used.fingerprint != super::slots::fingerprint(&key.master) {
                return Err(KeyringError::Conflict { id });
            }
            return Ok(used.revoked);
        }
        let (revoked, free_at) = (used.revoked, used.free_at);
        let occupant = self.keys.values().find(|other| other.id.slot() == id.slot());
        match occupant {
            Some(other) if !revoked || other.not_after.is_none_or(|end| end.saturating_add(REST) > now) => {
                Err(KeyringError::SlotTaken { id, by: other.id })
            }
            Some(other) => {
                let by = other.id;
                self.remove(by);
                Ok(false)
            }
            None if free_at > now => Err(KeyringError::SlotRests { id, until: free_at }),
            None => Ok(false),
        }
    }
}
