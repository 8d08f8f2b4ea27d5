//! The key slots. An update of a value is not atomic, so a slot that verifies is never overwritten: an OFF slot is
//! written first, then written again with nothing but its state changed.
//!
//! ```text
//!   OFF ──write all of it, OFF──▶ OFF ──state──▶ VERIFY ──state──▶ OFF ──grace──▶ next generation
//! ```

use std::{
    collections::HashMap,
    ops::Deref,
    time::{Duration, Instant},
};

use aya::maps::{Array, IterableMap as _, Map, MapData};
use lb_common::{
    keyslot::{KeyId, KeySlot, STATE_OFF, STATE_VERIFY},
    maps::{KEY_SLOTS, KEY_SLOTS_MAX},
};

use super::{DatapathError, batch};

/// The map of key slots.
pub struct KeySlots {
    map: Array<MapData, KeySlot>,
    grace: Duration,
    opened_at: Instant,
    /// The slots this process has stopped.
    stopped_at: HashMap<u32, Instant>,
}

/// Values of key slots, wiped when they are dropped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SlotValues(Vec<KeySlot>);

impl FromIterator<KeySlot> for SlotValues {
    fn from_iter<I: IntoIterator<Item = KeySlot>>(slots: I) -> Self {
        // With room for all there can be: a vector that grows leaves copies behind.
        let mut values = Vec::with_capacity(KEY_SLOTS_MAX as usize);
        values.extend(slots);
        Self(values)
    }
}

impl Deref for SlotValues {
    type Target = [KeySlot];

    fn deref(&self) -> &[KeySlot] {
        &self.0
    }
}

impl Drop for SlotValues {
    fn drop(&mut self) {
        batch::wipe(&mut self.0);
    }
}

impl KeySlots {
    pub(super) fn new(map: Map, grace: Duration) -> Result<Self, DatapathError> {
        let map = map.try_into().map_err(|source| DatapathError::Map {
            map: KEY_SLOTS,
            action: "open it",
            source,
        })?;
        Ok(Self { map, grace, opened_at: Instant::now(), stopped_at: HashMap::new() })
    }

    /// All slots, by their number.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn all(&self) -> Result<SlotValues, DatapathError> {
        batch::array(self.map.map(), 1).map(SlotValues).map_err(|source| DatapathError::Map {
            map: KEY_SLOTS,
            action: "read it",
            source,
        })
    }

    /// Makes a key verify; or, if it does so already, gives it another lifetime. `key.state` does not matter.
    ///
    /// # Errors
    /// `SlotInUse` if another key verifies there, `Grace` if one did a moment ago, or if the map cannot be written.
    pub fn install(&mut self, key: &KeySlot) -> Result<(), DatapathError> {
        let slot = KeyId(key.key_id).slot();
        let wanted = KeySlot { state: STATE_VERIFY, ..*key };
        let found = self.get(slot)?;
        if found == wanted {
            return Ok(());
        }
        if found.state != STATE_OFF {
            let lifetimes =
                KeySlot { not_before_ns: wanted.not_before_ns, not_after_ns: wanted.not_after_ns, ..found };
            if lifetimes != wanted {
                return Err(DatapathError::SlotInUse { slot, held: found.key_id, wanted: key.key_id });
            }
            return self.set(slot, &wanted);
        }
        if found.key_id != 0 {
            let stopped_at = *self.stopped_at.get(&slot).unwrap_or(&self.opened_at);
            let left = self.grace.saturating_sub(stopped_at.elapsed());
            if !left.is_zero() {
                return Err(DatapathError::Grace(left));
            }
        }
        self.set(slot, &KeySlot { state: STATE_OFF, ..wanted })?;
        self.set(slot, &wanted)
    }

    /// Makes a slot verify nothing, from the next packet on.
    ///
    /// # Errors
    /// If the map cannot be read or written.
    pub fn stop(&mut self, slot: u32) -> Result<(), DatapathError> {
        let found = self.get(slot)?;
        if found.state != STATE_OFF {
            self.set(slot, &KeySlot { state: STATE_OFF, ..found })?;
            self.stopped_at.insert(slot, Instant::now());
        }
        Ok(())
    }

    fn get(&self, slot: u32) -> Result<KeySlot, DatapathError> {
        self.map.get(&slot, 0).map_err(|source| DatapathError::Map {
            map: KEY_SLOTS,
            action: "read it",
            source,
        })
    }

    fn set(&mut self, slot: u32, value: &KeySlot) -> Result<(), DatapathError> {
        self.map.set(slot, value, 0).map_err(|source| DatapathError::Map {
            map: KEY_SLOTS,
            action: "write it",
            source,
        })
    }
}
