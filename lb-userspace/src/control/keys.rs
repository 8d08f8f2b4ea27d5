//! Keys from the store into the kernel. A key is stored before the kernel has it, and the kernel has it before
//! anything is signed with it; what is revoked is stored first, then stopped.

use std::{collections::BTreeSet, sync::Arc};

use lb_common::{
    keyslot::{KeyId, STATE_VERIFY},
    maps::KEY_SLOTS_MAX,
};

use super::clock::unix_now;
use crate::{
    config,
    datapath::{DatapathError, KeySlots, SlotValues},
    keyring::{Event, Key, KeyPolicy, Keyring, KeyringError},
    store::{self, State, Store, StoreError},
};

/// How often a commit is tried again when somebody else was faster.
const ATTEMPTS: usize = 8;

/// Why keys were not changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The keyring cannot.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The store cannot.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// The keys, as stored and as in the kernel.
pub struct Keys {
    store: Arc<dyn Store>,
    stored: store::Snapshot,
    policies: Vec<KeyPolicy>,
    /// What the kernel should have, of the stored revision.
    wanted: Wanted,
    installed: BTreeSet<KeyId>,
}

#[derive(Default)]
struct Wanted {
    revision: Option<u64>,
    slots: SlotValues,
}

/// What a comparison with the kernel found, and what could not be mended.
#[derive(Debug, Default)]
pub struct SlotReport {
    /// What differed, a line each.
    pub differences: Vec<String>,
    /// What could not be written.
    pub errors: Vec<DatapathError>,
}

impl Keys {
    /// Reads the store.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn open(store: Arc<dyn Store>, services: &[config::Service]) -> Result<Self, StoreError> {
        let stored = store.snapshot().await?;
        let policies = services.iter().map(KeyPolicy::from).collect();
        Ok(Self { store, stored, policies, wanted: Wanted::default(), installed: BTreeSet::new() })
    }

    /// The keyring as it is stored.
    pub fn keyring(&self) -> &Keyring {
        &self.stored.state.keyring
    }

    /// Of the stored state.
    pub const fn revision(&self) -> u64 {
        self.stored.revision
    }

    /// Whether the kernel verifies with a key.
    pub fn is_installed(&self, id: KeyId) -> bool {
        self.installed.contains(&id)
    }

    /// What the configuration says of a service's keys.
    pub fn policy(&self, service_id: u32) -> Option<KeyPolicy> {
        self.policies.iter().find(|policy| policy.service_id == service_id).copied()
    }

    /// Takes over what others have committed.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn refresh(&mut self) -> Result<(), StoreError> {
        self.stored = self.store.snapshot().await?;
        Ok(())
    }

    /// Does what time asks for, and stores it.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn tick(&mut self) -> Result<Vec<Event>, KeysError> {
        let policies = self.policies.clone();
        self.change(|keyring, now, random| Ok(keyring.tick(now, &policies, random))).await
    }

    /// Changes the keyring and commits it; again on what others have committed meanwhile.
    ///
    /// # Errors
    /// If the change is refused, or not stored. Then nothing has changed.
    pub async fn change<T>(
        &mut self,
        mut change: impl FnMut(&mut Keyring, u64, &mut dyn FnMut(&mut [u8])) -> Result<T, KeyringError>,
    ) -> Result<T, KeysError> {
        let mut attempt = 0;
        loop {
            let mut state = State::clone(&self.stored.state);
            let mut random_error = None;
            let mut random =
                |buffer: &mut [u8]| random_error = getrandom::fill(buffer).err().or(random_error);
            let result = change(&mut state.keyring, unix_now(), &mut random)?;
            if let Some(error) = random_error {
                return Err(KeysError::Random(error));
            }
            if state == *self.stored.state {
                return Ok(result);
            }
            attempt += 1;
            match self.store.commit(self.stored.revision, state).await {
                Ok(stored) => {
                    self.stored = stored;
                    return Ok(result);
                }
                Err(StoreError::Conflict { .. }) if attempt < ATTEMPTS => self.refresh().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes the kernel's slots those of the stored keyring: what is not wanted stops first.
    ///
    /// # Errors
    /// If the slots cannot be read. What cannot be written is in the report.
    pub fn sync(&mut self, kernel: &mut KeySlots) -> Result<SlotReport, DatapathError> {
        if self.wanted.revision != Some(self.stored.revision) {
            let slots = self.keyring().verifying().map(Key::to_slot).collect();
            self.wanted = Wanted { revision: Some(self.stored.revision), slots };
        }
        let mut report = SlotReport::default();
        let found = kernel.all()?;
        let wanted_ids: BTreeSet<u32> = self.wanted.slots.iter().map(|slot| slot.key_id).collect();
        for (slot, held) in (0..KEY_SLOTS_MAX).zip(found.iter()) {
            if held.state == STATE_VERIFY && !wanted_ids.contains(&held.key_id) {
                report.differences.push(format!("key {} verifies and should not", held.key_id));
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

    /// Lets staged keys sign that the kernel has.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn confirm(&mut self) -> Result<Vec<KeyId>, KeysError> {
        let staged: Vec<KeyId> = self
            .policies
            .iter()
            .filter_map(|policy| self.keyring().staged(policy.service_id))
            .map(|key| key.id)
            .filter(|id| self.installed.contains(id))
            .collect();
        if staged.is_empty() {
            return Ok(staged);
        }
        self.change(|keyring, now, _| {
            staged.iter().try_for_each(|id| keyring.confirm_installed(*id, now).map(drop))
        })
        .await?;
        Ok(staged)
    }
}
