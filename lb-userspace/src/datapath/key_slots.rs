//! The key slots. An update of a map value is not atomic, so a slot in state VERIFY is never overwritten: the whole
//! slot is written in state OFF first, then written again with only its state changed.
//!
//! ```text
//!   OFF ──write all of it, OFF──▶ OFF ──state──▶ VERIFY ──state──▶ OFF ──grace──▶ next generation
//! ```

use std::{
    collections::HashMap,
    ops::Deref,
    time::{Duration, Instant},
};

use aya::maps::{Array, IterableMap as _, Map, MapData, MapError};
use lb_common::{
    keyslot::{KeyId, KeySlot, STATE_OFF, STATE_VERIFY},
    maps::{KEY_SLOTS, KEY_SLOTS_MAX},
};

use super::{DatapathError, batch};

/// The values of the slots. The kernel map implements it, and in tests an array that checks each write.
pub trait SlotArray {
    /// The value of a slot.
    ///
    /// # Errors
    /// If it cannot be read.
    fn get(&self, slot: u32) -> Result<KeySlot, MapError>;

    /// Writes the value of a slot.
    ///
    /// # Errors
    /// If it cannot be written.
    fn set(&mut self, slot: u32, value: &KeySlot) -> Result<(), MapError>;
}

impl SlotArray for Array<MapData, KeySlot> {
    fn get(&self, slot: u32) -> Result<KeySlot, MapError> {
        Self::get(self, &slot, 0)
    }

    fn set(&mut self, slot: u32, value: &KeySlot) -> Result<(), MapError> {
        Self::set(self, slot, value, 0)
    }
}

/// The map of key slots.
pub struct KeySlots<A = Array<MapData, KeySlot>> {
    map: A,
    grace: Duration,
    opened_at: Instant,
    /// Slots that this process has stopped, and when.
    stopped_at: HashMap<u32, Instant>,
}

/// Values of key slots, wiped when they are dropped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SlotValues(Vec<KeySlot>);

impl FromIterator<KeySlot> for SlotValues {
    fn from_iter<I: IntoIterator<Item = KeySlot>>(slots: I) -> Self {
        // With full capacity, because a vector that grows leaves copies of the secrets behind.
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
        Ok(Self::over(map, grace))
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
}

impl<A: SlotArray> KeySlots<A> {
    fn over(map: A, grace: Duration) -> Self {
        Self { map, grace, opened_at: Instant::now(), stopped_at: HashMap::new() }
    }

    /// Installs a key that verifies. If the key already verifies, changes its lifetime. `key.state` is ignored.
    ///
    /// # Errors
    /// `SlotInUse` if another key verifies in the slot, `Grace` if another key verified there a moment ago, or if the
    /// map cannot be written.
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

    /// Stops a slot from verifying, from the next packet on.
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
        self.map.get(slot).map_err(|source| DatapathError::Map { map: KEY_SLOTS, action: "read it", source })
    }

    fn set(&mut self, slot: u32, value: &KeySlot) -> Result<(), DatapathError> {
        self.map.set(slot, value).map_err(|source| DatapathError::Map {
            map: KEY_SLOTS,
            action: "write it",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(40);

    /// Slots that reject writes that a packet could see half done. A write is not atomic, so two values that differ
    /// in more than one word may replace each other only if neither verifies.
    #[derive(Default)]
    struct Strict {
        slots: HashMap<u32, KeySlot>,
        writes: usize,
    }

    impl SlotArray for Strict {
        fn get(&self, slot: u32) -> Result<KeySlot, MapError> {
            Ok(self.slots.get(&slot).copied().unwrap_or_default())
        }

        fn set(&mut self, slot: u32, value: &KeySlot) -> Result<(), MapError> {
            let found = self.get(slot)?;
            let both_off = found.state == STATE_OFF && value.state == STATE_OFF;
            let only_state = KeySlot { state: value.state, ..found } == *value;
            let lifetimes =
                KeySlot { not_before_ns: value.not_before_ns, not_after_ns: value.not_after_ns, ..found };
            assert!(both_off || only_state || lifetimes == *value, "{found:?} is written over by {value:?}");
            self.slots.insert(slot, *value);
            self.writes += 1;
            Ok(())
        }
    }

    fn slots() -> KeySlots<Strict> {
        KeySlots::over(Strict::default(), GRACE)
    }

    /// A key of slot 5.
    fn key(generation: u32) -> KeySlot {
        let seed = u64::from(generation);
        KeySlot {
            key_id: KeyId::new(5, generation).unwrap().0,
            state: STATE_VERIFY,
            service_id: 42,
            not_after_ns: u64::MAX,
            fast: lb_common::siphash::SipKey { k0: seed, k1: !seed },
            ..KeySlot::default()
        }
    }

    /// How long a key of slot 5 must wait.
    fn waits(slots: &mut KeySlots<Strict>, key: &KeySlot) -> Option<Duration> {
        match slots.install(key) {
            Ok(()) => None,
            Err(DatapathError::Grace(left)) => Some(left),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_slot_verifies_only_once_all_of_it_is_written() {
        let mut slots = slots();
        slots.install(&key(1)).unwrap();
        assert_eq!((slots.map.get(5).unwrap(), slots.map.writes), (key(1), 2));
        slots.install(&key(1)).unwrap();
        assert_eq!(slots.map.writes, 2, "what is there is not written again");
        let ending = KeySlot { not_after_ns: 7, ..key(1) };
        slots.install(&ending).unwrap();
        assert_eq!(slots.map.get(5).unwrap(), ending);
        slots.install(&KeySlot { state: STATE_OFF, ..key(1) }).unwrap();
        assert_eq!(slots.map.get(5).unwrap(), key(1), "`state` does not matter");
    }

    #[test]
    fn a_key_that_verifies_is_not_written_over() {
        let mut slots = slots();
        slots.install(&key(1)).unwrap();
        let error = slots.install(&key(2)).unwrap_err();
        assert!(matches!(error, DatapathError::SlotInUse { slot: 5, .. }), "{error}");
        assert_eq!(slots.map.get(5).unwrap(), key(1));
    }

    /// A packet may be between two reads of the slot.
    #[test]
    fn a_stopped_slot_waits_for_its_grace() {
        let mut slots = slots();
        slots.install(&key(1)).unwrap();
        slots.stop(5).unwrap();
        assert_eq!(slots.map.get(5).unwrap(), KeySlot { state: STATE_OFF, ..key(1) });
        let stopped_at = slots.stopped_at[&5];
        while let Some(left) = waits(&mut slots, &key(2)) {
            assert!(left <= GRACE);
            assert_eq!(slots.map.get(5).unwrap().key_id, key(1).key_id);
            std::thread::sleep(left);
        }
        assert!(stopped_at.elapsed() >= GRACE, "after {:?}", stopped_at.elapsed());
        assert_eq!(slots.map.get(5).unwrap(), key(2));
        slots.stop(6).unwrap();
        assert!(!slots.stopped_at.contains_key(&6), "a slot that is off was not stopped");
    }

    /// The previous process may have stopped the slot a moment ago.
    #[test]
    fn a_slot_found_off_waits_for_its_grace() {
        let mut map = Strict::default();
        map.set(5, &KeySlot { state: STATE_OFF, ..key(1) }).unwrap();
        let mut slots = KeySlots::over(map, GRACE);
        let opened_at = slots.opened_at;
        while let Some(left) = waits(&mut slots, &key(2)) {
            assert!(left <= GRACE);
            std::thread::sleep(left);
        }
        assert!(opened_at.elapsed() >= GRACE, "after {:?}", opened_at.elapsed());
    }
}
