//! Copies keys from the store into the kernel. A key is stored before the kernel has it, and the kernel has it before
//! it signs. A revocation of a key is stored before the kernel stops the key.

use std::collections::BTreeSet;

use lb_common::{
    keyslot::{KeyId, STATE_VERIFY},
    maps::KEY_SLOTS_MAX,
};

use super::{clock::unix_now, stored::Stored};
use crate::{
    config,
    datapath::{DatapathError, KeySlots, SlotValues},
    keyring::{Event, Key, KeyPolicy, KeySettings, Keyring, KeyringError},
    store::StoreError,
};

/// Why a change of keys failed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The keyring refused the change.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The change could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// The keys in the kernel, compared with those of the store.
pub struct Keys {
    policies: Vec<KeyPolicy>,
    /// The desired key slots, of a revision of the store.
    wanted: Wanted,
    installed: BTreeSet<KeyId>,
}

#[derive(Default)]
struct Wanted {
    revision: Option<u64>,
    slots: SlotValues,
}

/// The differences to the kernel, and those that could not be corrected.
#[derive(Debug, Default)]
pub struct SlotReport {
    /// The differences, a line each.
    pub differences: Vec<String>,
    /// Errors of writes.
    pub errors: Vec<DatapathError>,
}

impl Keys {
    /// The keys of these services.
    pub fn new(services: &[config::Service]) -> Self {
        let settings = services.iter().map(|service| KeySettings {
            service_id: service.id,
            max_ttl: service.max_ttl,
            rotation: service.key_rotation,
        });
        Self { policies: KeyPolicy::of(settings), wanted: Wanted::default(), installed: BTreeSet::new() }
    }

    /// Whether the kernel verifies with a key.
    pub fn is_installed(&self, id: KeyId) -> bool {
        self.installed.contains(&id)
    }

    /// The policy of a service.
    pub fn policy(&self, service_id: u32) -> Option<KeyPolicy> {
        self.policies.iter().find(|policy| policy.service_id == service_id).copied()
    }

    /// Makes, rotates and ends keys that are due, and stores the result.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn tick(&self, stored: &mut Stored) -> Result<Vec<Event>, KeysError> {
        change(stored, |keyring, now, random| Ok(keyring.tick(now, &self.policies, random))).await
    }

    /// Makes the key slots in the kernel equal to the stored keyring. Keys that should not verify are stopped first.
    ///
    /// # Errors
    /// If the slots cannot be read. Failed writes are in the report.
    pub fn sync(&mut self, stored: &Stored, kernel: &mut KeySlots) -> Result<SlotReport, DatapathError> {
        if self.wanted.revision != Some(stored.revision()) {
            let slots = stored.state().keyring.verifying().map(Key::to_slot).collect();
            self.wanted = Wanted { revision: Some(stored.revision()), slots };
        }
        let mut report = SlotReport::default();
        let found = kernel.all()?;
        let wanted_ids: BTreeSet<u32> = self.wanted.slots.iter().map(|slot| slot.key_id).collect();
        for (slot, held) in (0..KEY_SLOTS_MAX).zip(found.iter()) {
            if held.state == STATE_VERIFY && !wanted_ids.contains(&held.key_id) {
                report.differences.push(format!("key {} verifies but should not", held.key_id));
                report.errors.extend(kernel.stop(slot).err());
            }
        }
        self.installed.clear();
        for wanted in self.wanted.slots.iter() {
            let id = KeyId(wanted.key_id);
            if found[id.slot() as usize] != *wanted {
                report.differences.push(format!("key {} is not in the kernel as it should be", id.0));
                if let Err(error) = kernel.install(wanted) {
                    report.errors.push(error);
                    continue;
                }
            }
            self.installed.insert(id);
        }
        Ok(report)
    }

    /// Activates staged keys that the kernel has.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn confirm(&self, stored: &mut Stored) -> Result<Vec<KeyId>, KeysError> {
        let staged: Vec<KeyId> = self
            .policies
            .iter()
            .filter_map(|policy| stored.state().keyring.staged(policy.service_id))
            .map(|key| key.id)
            .filter(|id| self.installed.contains(id))
            .collect();
        if staged.is_empty() {
            return Ok(staged);
        }
        change(stored, |keyring, now, _| {
            staged.iter().try_for_each(|id| keyring.confirm_installed(*id, now).map(drop))
        })
        .await?;
        Ok(staged)
    }
}

/// Changes the keyring and commits it.
///
/// # Errors
/// If the change is refused, or not stored. Then nothing has changed.
pub async fn change<T>(
    stored: &mut Stored,
    mut change: impl FnMut(&mut Keyring, u64, &mut dyn FnMut(&mut [u8])) -> Result<T, KeyringError>,
) -> Result<T, KeysError> {
    stored
        .change(|state| {
            let mut random_error = None;
            let mut random =
                |buffer: &mut [u8]| random_error = getrandom::fill(buffer).err().or(random_error);
            let result = change(&mut state.keyring, unix_now(), &mut random)?;
            random_error.map_or(Ok(result), |error| Err(KeysError::Random(error)))
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{control::stored::tests::Told, store::FileStore};

    const SERVICE: u32 = 42;

    fn signer(stored: &Stored) -> Option<KeyId> {
        stored.state().keyring.signer(SERVICE).map(|key| key.id)
    }

    /// The invariant of key rotation, for the store and the kernel together.
    #[tokio::test]
    async fn a_key_signs_only_once_the_kernel_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(FileStore::open(directory.path()).unwrap());
        let mut stored = Stored::open(store, Box::new(Told::of(directory.path()))).await.unwrap();
        let policies = vec![KeyPolicy { service_id: SERVICE, max_ttl: 60, rotation: None, quota: 64 }];
        let mut keys = Keys { policies, wanted: Wanted::default(), installed: BTreeSet::new() };
        let events = keys.tick(&mut stored).await.unwrap();
        let [Event::Staged { key_id: first, .. }] = events[..] else { panic!("{events:?}") };
        for _ in 0..3 {
            assert_eq!(keys.confirm(&mut stored).await.unwrap(), []);
            assert_eq!(keys.tick(&mut stored).await.unwrap(), []);
            assert_eq!(signer(&stored), None);
        }
        keys.installed.insert(first);
        assert_eq!(keys.confirm(&mut stored).await.unwrap(), [first]);
        assert_eq!(signer(&stored), Some(first));

        let policy = keys.policy(SERVICE).unwrap();
        let rotate = |keyring: &mut Keyring, now, random: &mut dyn FnMut(&mut [u8])| {
            keyring.rotate(&policy, now, random)
        };
        let second = change(&mut stored, rotate).await.unwrap().staged;
        assert_eq!(keys.confirm(&mut stored).await.unwrap(), [], "the kernel has another key of the service");
        assert_eq!(signer(&stored), Some(first));
        keys.installed.insert(second);
        assert_eq!(keys.confirm(&mut stored).await.unwrap(), [second]);
        assert_eq!(signer(&stored), Some(second));
    }
}
