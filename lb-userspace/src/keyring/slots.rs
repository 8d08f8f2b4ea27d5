//! Chooses the slot and generation of a new key.
//!
//! A slot takes its next key only after the previous key has not verified for a while, and only with a higher
//! generation. The last key of every slot is recorded permanently, so no id is ever reused. A slot that never had a key
//! is chosen at random and starts with a random generation. Keys of nodes that start independently, and of a node that
//! lost its store, then rarely share an id, and keysets can be imported in both directions.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{
    keyslot::{GENERATION_MAX, KeyId},
    maps::KEY_SLOTS_MAX,
    token::keys::MasterKey,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Key, KeyPolicy, KeyState, Keyring, KeyringError, LATE, Random};

/// How long a slot rests after its key has ended. By then, the last node has switched the key off.
pub(super) const REST: u64 = 60;
/// Maximum number of slots of a service, unless its rotation needs more. An operator who rotates every minute for an
/// hour stays below it.
pub const QUOTA_MAX: u64 = 64;
/// Slots of a service in addition to those of its automatic rotation: the staged key, the active key, the two rotations
/// for which an exported key is kept, and the slot that only replaces a revoked key.
const QUOTA_MIN: u64 = 5;
/// First generations are 1 to this value, which leaves a slot nearly all of its generations.
const FIRST_GENERATION_MAX: u32 = 0xffff;

/// The last key of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Used {
    pub(super) generation: u32,
    /// Start of the hash of the master key. It distinguishes the key from another key with the same id.
    #[serde(with = "hex::serde")]
    pub(super) fingerprint: [u8; 8],
    pub(super) revoked: bool,
    /// When the slot may take another key; unused while a key is in it.
    pub(super) free_at: u64,
    /// The service of that key; 0 if an older version wrote the entry, which did not record the service.
    #[serde(default)]
    pub(super) service_id: u32,
}

/// Number of key slots that the rotation of a service holds at once. A key that was exported just before its rotation
/// is kept for two rotations, the lifetime of a token and the clock skew. Then its slot rests.
pub fn slots_needed(max_ttl: Duration, rotation: Option<Duration>) -> u64 {
    let kept = max_ttl.as_secs() + LATE + REST;
    QUOTA_MIN + rotation.map_or(0, |rotation| kept / rotation.as_secs().max(1))
}

/// Every slot that ever had a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots(pub(super) BTreeMap<u32, Used>);

impl Slots {
    pub(super) fn get(&self, id: KeyId) -> Option<&Used> {
        self.0.get(&id.slot())
    }

    pub(super) fn occupy(&mut self, key: &Key) {
        let used = Used {
            generation: key.id.generation(),
            fingerprint: fingerprint(&key.master),
            revoked: false,
            free_at: 0,
            service_id: key.service_id,
        };
        self.0.insert(key.id.slot(), used);
    }

    /// Records the service of a key's slot. Older versions did not record it.
    pub(super) fn assign(&mut self, id: KeyId, service_id: u32) {
        if let Some(used) = self.0.get_mut(&id.slot()) {
            used.service_id = service_id;
        }
    }

    pub(super) fn revoked(&mut self, id: KeyId) {
        if let Some(used) = self.0.get_mut(&id.slot()) {
            used.revoked = true;
        }
    }

    pub(super) fn vacate(&mut self, id: KeyId, ended_at: u64) {
        if let Some(used) = self.0.get_mut(&id.slot()) {
            used.free_at = ended_at.saturating_add(REST);
        }
    }
}

pub(super) fn fingerprint(master: &MasterKey) -> [u8; 8] {
    let hash: [u8; 32] = Sha256::digest(master.as_bytes()).into();
    std::array::from_fn(|i| hash[i])
}

impl Keyring {
    /// Chooses the id of a new key. Its slot is one that never had a key; otherwise the one that has been free for
    /// longest; otherwise one whose revoked key is still listed.
    pub(super) fn allocate(
        &mut self,
        policy: &KeyPolicy,
        now: u64,
        random: Random<'_>,
    ) -> Result<KeyId, KeyringError> {
        // One slot is reserved for the key that replaces a revoked key, so that a service at its quota can sign again
        // immediately.
        let kept = u64::from(self.signer(policy.service_id).is_some());
        self.check_quota(policy, kept, now)?;
        if let Some(id) = self.fresh(random) {
            return Ok(id);
        }
        let revoked = |id: KeyId| self.keys.get(&id).filter(|key| key.state == KeyState::Revoked);
        // Free slots come before slots of revoked keys. Both are ordered by the time since which they are free.
        let candidates = self.slots.0.iter().filter(|(_, used)| used.generation < GENERATION_MAX);
        let free = candidates.filter_map(|(slot, used)| {
            let id = KeyId::new(*slot, used.generation)?;
            match self.keys.get(&id) {
                None => Some((false, used.free_at, id)),
                Some(_) => Some((true, revoked(id)?.not_after?.saturating_add(REST), id)),
            }
        });
        let Some((_, _, last)) = free.filter(|(_, free_at, _)| *free_at <= now).min() else {
            return Err(KeyringError::SlotsFull { next_free_at: self.next_free_at(now, |_| true) });
        };
        self.remove(last);
        Ok(KeyId(last.0 + (1 << lb_common::keyslot::SLOT_BITS)))
    }

    /// The id of a slot that never had a key.
    fn fresh(&self, random: Random<'_>) -> Option<KeyId> {
        let mut unused = (0..KEY_SLOTS_MAX).filter(|slot| !self.slots.0.contains_key(slot));
        let count = KEY_SLOTS_MAX as usize - self.slots.0.len();
        if count == 0 {
            return None;
        }
        let mut draw = || {
            let mut bytes = [0; 4];
            random(&mut bytes);
            u32::from_le_bytes(bytes)
        };
        let slot = unused.nth(draw() as usize % count)?;
        KeyId::new(slot, 1 + draw() % FIRST_GENERATION_MAX)
    }

    /// Refuses a key to a service that holds all slots of its quota except those that are `kept`.
    pub(super) fn check_quota(&self, policy: &KeyPolicy, kept: u64, now: u64) -> Result<(), KeyringError> {
        let service_id = policy.service_id;
        let own = |used: &Used| used.service_id == service_id;
        let held =
            self.taken().filter(|(used, free_at)| own(used) && free_at.is_none_or(|at| at > now)).count();
        if (held as u64).saturating_add(kept) < policy.quota {
            return Ok(());
        }
        let next_free_at = self.next_free_at(now, own);
        Err(KeyringError::QuotaUsed { service_id, held, quota: policy.quota, next_free_at })
    }

    /// When the first of these slots becomes free, even if no key is revoked.
    fn next_free_at(&self, now: u64, of: impl Fn(&Used) -> bool) -> Option<u64> {
        let usable = self.taken().filter(|(used, _)| used.generation < GENERATION_MAX && of(used));
        usable.filter_map(|(_, free_at)| free_at).filter(|at| *at > now).min()
    }

    /// All slots that ever had a key, and when each is free; `None` if its key has no end yet.
    fn taken(&self) -> impl Iterator<Item = (&Used, Option<u64>)> {
        self.slots.0.iter().filter_map(|(slot, used)| {
            let id = KeyId::new(*slot, used.generation)?;
            let ends = |key: &Key| Some(key.not_after?.saturating_add(REST));
            Some((used, self.keys.get(&id).map_or(Some(used.free_at), ends)))
        })
    }
}
