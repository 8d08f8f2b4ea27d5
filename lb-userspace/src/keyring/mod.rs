//! Keys and their rotation as a pure state machine: time (unix seconds) and randomness are arguments.
//!
//! ```text
//!            event                        from        to
//!  tick      no key signs, none staged    -           staged
//!  tick      key_rotation has elapsed     -           staged     while another key is active
//!  rotate    requested by an operator     -           staged     joins a rotation in progress
//!  confirm   every kernel has the key     staged      active     signs from now on
//!                                         active      retiring   the previous key: verifies, no longer signs
//!  tick      its last token has expired   retiring    removed    the slot rests, then takes a new generation
//!  revoke    immediately                  any         revoked    listed until its last token has expired,
//!                                                                or until its slot is needed
//!  import    a key of another node        -           retiring   verifies; staged if no key signs here
//! ```
//!
//! # Lifetime of a key
//!
//! No key signs before every kernel has it, and no key ends before its last token has expired. An issuer that exports a
//! keyset may sign with its active key until `sign_until`: the time of the export plus `key_rotation` (a day if
//! rotation is manual). This promise is stored with the key. A key that was replaced by a rotation verifies until
//! `not_after`. This is the later of the last promised `sign_until` and the time of the rotation, plus `max_ttl`, plus
//! twice the clock skew. A key that was never exported ends `max_ttl` after its rotation.
//!
//! If an issuer exports again before `sign_until`, and signs with the key that is then `active`, no rotation ever
//! invalidates one of its tokens. Only `revoke` invalidates tokens, immediately and permanently.
//!
//! If `max_ttl` is raised while an issuer may still sign with a retiring key, that key is extended. Lowering `max_ttl`
//! shortens no key. Keys of a service that is removed from the configuration stay unchanged, are not rotated, and are
//! used again when the service is added again.

mod error;
mod slots;
mod stored;
mod transfer;

use std::{collections::BTreeMap, fmt, time::Duration};

use lb_common::{
    control::{SECOND_NS, SKEW_NS},
    keyslot::{KeyId, KeySlot, STATE_OFF, STATE_VERIFY},
    maps::KEY_SLOTS_MAX,
    token::keys::{DerivedKeys, MasterKey},
};
use serde::{Deserialize, Serialize};

pub use error::KeyringError;
use slots::Slots;
pub use slots::{QUOTA_MAX, slots_needed};
pub use transfer::{ExportedKey, Imported, Keyset, Skipped};

/// Fills a buffer with random bytes. It is an argument so that tests are reproducible.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);

/// An issuer's clock may be late by the skew, and the program tolerates the skew once more.
const LATE: u64 = 2 * SKEW_NS / SECOND_NS;

/// How long an issuer may sign with an exported key if rotation is manual.
const HORIZON_BY_HAND: Duration = Duration::from_hours(24);

/// The settings of a service that its keys depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySettings {
    /// The service.
    pub service_id: u32,
    /// Longest lifetime of its tokens.
    pub max_ttl: Duration,
    /// Interval of key rotation; `None`: manual rotation.
    pub rotation: Option<Duration>,
}

/// Policy for the keys of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPolicy {
    /// The service.
    pub service_id: u32,
    /// Longest lifetime of its tokens, seconds.
    pub max_ttl: u64,
    /// Interval of key rotation, seconds; `None`: manual rotation.
    pub rotation: Option<u64>,
    /// The key slots that the service may hold at once.
    pub quota: u64,
}

impl KeyPolicy {
    /// The policies of all configured services. The quota of a service is the number of slots that its rotation needs
    /// plus an equal share of the remaining slots, up to [`QUOTA_MAX`]. The quotas of all services fit into the table,
    /// so no service can keep another from rotating.
    pub fn of(services: impl IntoIterator<Item = KeySettings>) -> Vec<Self> {
        let of_one = |service: KeySettings| Self {
            service_id: service.service_id,
            max_ttl: service.max_ttl.as_secs(),
            rotation: service.rotation.map(|every| every.as_secs()),
            quota: slots_needed(service.max_ttl, service.rotation),
        };
        let mut policies: Vec<_> = services.into_iter().map(of_one).collect();
        let needed: u64 = policies.iter().map(|policy| policy.quota).sum();
        let share = u64::from(KEY_SLOTS_MAX).saturating_sub(needed) / (policies.len() as u64).max(1);
        for policy in &mut policies {
            policy.quota = policy.quota.max(QUOTA_MAX.min(policy.quota + share));
        }
        policies
    }

    /// How long an issuer may sign with an exported key, seconds.
    fn horizon(&self) -> u64 {
        self.rotation.unwrap_or(HORIZON_BY_HAND.as_secs())
    }
}

/// State of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// Verifies once the kernel has it; does not sign yet.
    Staged,
    /// Signs and verifies. A service has at most one active key.
    Active,
    /// Verifies, but does not sign any more.
    Retiring,
    /// Neither signs nor verifies, permanently.
    Revoked,
}

impl KeyState {
    /// Name in lists and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A key. All times are unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its id, which is never reused.
    #[serde(rename = "key_id", with = "stored::number")]
    pub id: KeyId,
    /// The service it belongs to.
    pub service_id: u32,
    /// Its state.
    pub state: KeyState,
    /// The secret.
    #[serde(with = "stored::hex_master")]
    pub master: MasterKey,
    /// When it was generated or imported.
    pub created_at: u64,
    /// When it began to sign here.
    pub activated_at: Option<u64>,
    /// The latest time until which an issuer may sign with it; 0 if it was never exported.
    pub sign_until: u64,
    /// When it stops verifying; `None` while it is staged or active.
    pub not_after: Option<u64>,
    /// The longest lifetime of its tokens: the highest `max_ttl` while it signed.
    pub max_ttl: u64,
    /// Whether it was imported from another node.
    pub imported: bool,
}

impl Key {
    /// Whether kernels should verify with it.
    pub const fn verifies(&self) -> bool {
        !matches!(self.state, KeyState::Revoked)
    }

    /// The content of its slot in the kernel.
    pub fn to_slot(&self) -> KeySlot {
        let DerivedKeys { full, fast, seal, proof } = &DerivedKeys::derive(&self.master, self.id);
        KeySlot {
            key_id: self.id.0,
            state: if self.verifies() { STATE_VERIFY } else { STATE_OFF },
            service_id: self.service_id,
            reserved: 0,
            not_before_ns: 0,
            not_after_ns: self.not_after.map_or(u64::MAX, |end| end.saturating_mul(SECOND_NS)),
            fast: *fast,
            seal: *seal,
            full: *full,
            proof: *proof,
        }
    }

    /// When the last token that the promises so far permit has expired.
    const fn last_token_ends(&self) -> u64 {
        self.sign_until.saturating_add(self.max_ttl).saturating_add(LATE)
    }

    /// Makes the key stop signing at `now`.
    fn retire(&mut self, now: u64) {
        self.state = KeyState::Retiring;
        self.sign_until = self.sign_until.max(now);
        self.not_after = Some(self.last_token_ends());
    }
}

/// What `Keyring::tick` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key was generated: install it, then call `confirm_installed`.
    Staged {
        /// Id of the service.
        service_id: u32,
        /// Id of the key.
        key_id: KeyId,
    },
    /// The last token of a key has expired, and the key was removed.
    Ended {
        /// Id of the service.
        service_id: u32,
        /// Id of the key.
        key_id: KeyId,
    },
    /// A key could not be generated; report this until it can.
    Blocked {
        /// Id of the service.
        service_id: u32,
        /// The error.
        error: KeyringError,
    },
}

/// A rotation in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The key that will sign once it is installed everywhere.
    pub staged: KeyId,
    /// The key that signs until then.
    pub active: Option<KeyId>,
    /// Whether the rotation was already in progress.
    pub joined: bool,
}

/// The result of confirming a key as installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The key that signs from now on.
    pub active: KeyId,
    /// The key that signed before.
    pub retiring: Option<KeyId>,
}

/// The result of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// State of the key before.
    pub was: KeyState,
    /// The service it belongs to.
    pub service_id: u32,
    /// Whether the service still has a key that signs. If not, the next `tick` stages one.
    pub signer_left: bool,
}

/// The keys of all services, and the last key of every slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "stored::Stored", into = "stored::Stored")]
pub struct Keyring {
    keys: BTreeMap<KeyId, Key>,
    slots: Slots,
}

impl Keyring {
    /// Every key, by id.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    /// A key.
    pub fn key(&self, id: KeyId) -> Option<&Key> {
        self.keys.get(&id)
    }

    /// The key that signs for a service.
    pub fn signer(&self, service_id: u32) -> Option<&Key> {
        self.of(service_id).find(|key| key.state == KeyState::Active)
    }

    /// The key that will sign for a service once it is installed.
    pub fn staged(&self, service_id: u32) -> Option<&Key> {
        self.of(service_id).find(|key| key.state == KeyState::Staged)
    }

    /// The keys that the kernel should verify with.
    pub fn verifying(&self) -> impl Iterator<Item = &Key> {
        self.keys().filter(|key| key.verifies())
    }

    /// Generates first keys, starts due rotations and ends keys. Call it at start and when the configuration changes,
    /// before services reach the kernel, after `revoke` and `import`, and at `next_deadline`. Store the keyring if it
    /// has changed, even without events.
    pub fn tick(&mut self, now: u64, policies: &[KeyPolicy], random: Random<'_>) -> Vec<Event> {
        for policy in policies {
            self.follow_max_ttl(now, policy);
        }
        let mut events = self.end(now);
        for policy in policies {
            let due = match self.signer(policy.service_id) {
                Some(signer) => rotation_due(signer, policy).is_some_and(|due| due <= now),
                None => true,
            };
            if due && self.staged(policy.service_id).is_none() {
                let service_id = policy.service_id;
                events.push(match self.stage(policy, now, random) {
                    Ok(key_id) => Event::Staged { service_id, key_id },
                    Err(error) => Event::Blocked { service_id, error },
                });
            }
        }
        events
    }

    /// When `tick` next has something to do.
    pub fn next_deadline(&self, policies: &[KeyPolicy]) -> Option<u64> {
        let ends = self.keys().filter_map(leaves_at);
        let rotations = policies.iter().filter(|policy| self.staged(policy.service_id).is_none());
        ends.chain(rotations.filter_map(|policy| rotation_due(self.signer(policy.service_id)?, policy))).min()
    }

    /// Starts a rotation of the key of a service, or joins the one in progress.
    ///
    /// # Errors
    /// If no slot is free, or the service holds its quota of slots.
    pub fn rotate(
        &mut self,
        policy: &KeyPolicy,
        now: u64,
        random: Random<'_>,
    ) -> Result<Rotation, KeyringError> {
        let active = self.signer(policy.service_id).map(|key| key.id);
        if let Some(staged) = self.staged(policy.service_id) {
            return Ok(Rotation { staged: staged.id, active, joined: true });
        }
        Ok(Rotation { staged: self.stage(policy, now, random)?, active, joined: false })
    }

    /// Confirms that every kernel verifies with a staged key: it becomes active, and the previous key retires. `None`
    /// if the key is active already.
    ///
    /// # Errors
    /// If there is no such key, or it may no longer sign.
    pub fn confirm_installed(&mut self, id: KeyId, now: u64) -> Result<Option<Activation>, KeyringError> {
        let key = self.keys.get(&id).ok_or(KeyringError::NoSuchKey(id))?;
        match key.state {
            KeyState::Staged => {}
            KeyState::Active => return Ok(None),
            state => return Err(KeyringError::NotStaged { id, state }),
        }
        let retiring = self.signer(key.service_id).map(|signer| signer.id);
        if let Some(signer) = retiring.and_then(|id| self.keys.get_mut(&id)) {
            signer.retire(now);
        }
        if let Some(key) = self.keys.get_mut(&id) {
            key.state = KeyState::Active;
            key.activated_at = Some(now);
            key.sign_until = key.sign_until.max(now);
        }
        Ok(Some(Activation { active: id, retiring }))
    }

    /// Revokes a key immediately and permanently. A revoked key stays revoked.
    ///
    /// # Errors
    /// If there is no such key.
    pub fn revoke(&mut self, id: KeyId, now: u64) -> Result<Revocation, KeyringError> {
        let key = self.keys.get_mut(&id).ok_or(KeyringError::NoSuchKey(id))?;
        let (was, service_id) = (key.state, key.service_id);
        if was != KeyState::Revoked {
            if was == KeyState::Active {
                key.sign_until = key.sign_until.max(now);
            }
            key.state = KeyState::Revoked;
            key.not_after = Some(now);
            self.slots.revoked(id);
        }
        Ok(Revocation { was, service_id, signer_left: self.signer(service_id).is_some() })
    }

    fn of(&self, service_id: u32) -> impl Iterator<Item = &Key> {
        self.keys().filter(move |key| key.service_id == service_id)
    }

    fn stage(&mut self, policy: &KeyPolicy, now: u64, random: Random<'_>) -> Result<KeyId, KeyringError> {
        let id = self.allocate(policy, now, random)?;
        let mut master = zeroize::Zeroizing::new([0; 32]);
        random(&mut *master);
        let key = Key {
            id,
            service_id: policy.service_id,
            state: KeyState::Staged,
            master: MasterKey::from_bytes(*master),
            created_at: now,
            activated_at: None,
            sign_until: 0,
            not_after: None,
            max_ttl: policy.max_ttl,
            imported: false,
        };
        self.insert(key);
        Ok(id)
    }

    fn insert(&mut self, key: Key) {
        self.slots.occupy(&key);
        self.keys.insert(key.id, key);
    }

    /// Removes a key from the list; its slot rests from the end of the key.
    fn remove(&mut self, id: KeyId) {
        if let Some(key) = self.keys.remove(&id) {
            self.slots.vacate(id, key.not_after.unwrap_or(key.created_at));
        }
    }

    fn follow_max_ttl(&mut self, now: u64, policy: &KeyPolicy) {
        for key in self.keys.values_mut().filter(|key| key.service_id == policy.service_id) {
            match key.state {
                KeyState::Staged | KeyState::Active => key.max_ttl = key.max_ttl.max(policy.max_ttl),
                KeyState::Retiring if now <= key.sign_until.saturating_add(LATE) => {
                    key.max_ttl = key.max_ttl.max(policy.max_ttl);
                    key.not_after = key.not_after.max(Some(key.last_token_ends()));
                }
                KeyState::Retiring | KeyState::Revoked => {}
            }
        }
    }

    fn end(&mut self, now: u64) -> Vec<Event> {
        let over = |key: &&Key| leaves_at(key).is_some_and(|end| end <= now);
        let ended: Vec<_> = self.keys().filter(over).map(|key| (key.service_id, key.id)).collect();
        ended
            .into_iter()
            .map(|(service_id, key_id)| {
                self.remove(key_id);
                Event::Ended { service_id, key_id }
            })
            .collect()
    }
}

/// When a key is removed from the list.
fn leaves_at(key: &Key) -> Option<u64> {
    match key.state {
        KeyState::Staged | KeyState::Active => None,
        KeyState::Retiring => key.not_after,
        // Its last token has expired by then, so the key need not be listed any more.
        KeyState::Revoked => key.not_after.map(|end| end.max(key.last_token_ends())),
    }
}

fn rotation_due(signer: &Key, policy: &KeyPolicy) -> Option<u64> {
    Some(signer.activated_at?.saturating_add(policy.rotation?))
}

#[cfg(test)]
mod tests;
