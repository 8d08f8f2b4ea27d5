//! Key slots of the XDP program. They contain derived keys, never a master key.

use crate::{reason::Reason, sha256::HmacKey, siphash::SipKey};

/// A key id: 20 bits of generation and 12 bits of slot. The next key in a slot has another generation, and therefore
/// another id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct KeyId(pub u32);

/// The number of bits of a key id that contain its slot.
pub const SLOT_BITS: u32 = 12;
/// The highest generation.
pub const GENERATION_MAX: u32 = (1 << 20) - 1;

impl KeyId {
    /// The id of a slot's key; `None` if either is out of range.
    pub const fn new(slot: u32, generation: u32) -> Option<Self> {
        if slot >> SLOT_BITS != 0 || generation > GENERATION_MAX {
            return None;
        }
        Some(Self(generation << SLOT_BITS | slot))
    }

    /// The slot, 0..4096.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 & ((1 << SLOT_BITS) - 1)
    }

    /// The generation.
    pub const fn generation(self) -> u32 {
        self.0 >> SLOT_BITS
    }
}

/// The slot verifies no tokens.
pub const STATE_OFF: u32 = 0;
/// The slot verifies tokens within its lifetime.
pub const STATE_VERIFY: u32 = 1;

/// One slot of the key array.
///
/// An update of an array value is not atomic. Therefore a slot in state VERIFY is never overwritten: the daemon first
/// writes the complete slot in state OFF, then writes it again with only `state` changed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KeySlot {
    /// The `KeyId` in the slot.
    pub key_id: u32,
    /// `STATE_*`.
    pub state: u32,
    /// The service whose tokens it verifies.
    pub service_id: u32,
    /// Zero.
    pub reserved: u32,
    /// The start of its validity, Unix time in nanoseconds.
    pub not_before_ns: u64,
    /// The end of its validity (exclusive), Unix time in nanoseconds.
    pub not_after_ns: u64,
    /// Key of the fast tag.
    pub fast: SipKey,
    /// Key of the sealed claims.
    pub seal: SipKey,
    /// Key of the full tag.
    pub full: HmacKey,
    /// Key from which session keys are derived.
    pub proof: HmacKey,
}

const _: () = {
    assert!(size_of::<KeySlot>() == 192 && align_of::<KeySlot>() == 8);
    // A forged packet reads only the first cache line of a slot.
    assert!(core::mem::offset_of!(KeySlot, full) == 64);
};
crate::map_value!(KeySlot);

impl core::fmt::Debug for KeySlot {
    /// Omits the keys.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("KeySlot")
            .field("key_id", &self.key_id)
            .field("state", &self.state)
            .field("service_id", &self.service_id)
            .finish_non_exhaustive()
    }
}

impl KeySlot {
    /// Step 3 in the order of token.md: whether this slot verifies tokens with this key id for this service now.
    #[inline(always)]
    pub fn admits(&self, key_id: KeyId, service_id: u32, now_ns: u64) -> Result<(), Reason> {
        if self.key_id != key_id.0 || self.key_id == 0 {
            return Err(Reason::UnknownKey);
        }
        if self.state != STATE_VERIFY
            || self.service_id != service_id
            || now_ns < self.not_before_ns
            || now_ns >= self.not_after_ns
        {
            return Err(Reason::InactiveKey);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::KEY_SLOTS_MAX;

    #[test]
    fn an_id_is_a_slot_and_a_generation() {
        for slot in [0, 1, 7, KEY_SLOTS_MAX - 1] {
            for generation in [0, 1, 0xf_0f0f, GENERATION_MAX] {
                let id = KeyId::new(slot, generation).unwrap();
                assert_eq!((id.slot(), id.generation()), (slot, generation));
                assert_eq!(id.0, generation * KEY_SLOTS_MAX + slot);
            }
        }
        assert_eq!(KeyId::new(KEY_SLOTS_MAX - 1, GENERATION_MAX), Some(KeyId(u32::MAX)));
        assert_eq!((KeyId::new(KEY_SLOTS_MAX, 1), KeyId::new(1, GENERATION_MAX + 1)), (None, None));
    }

    #[test]
    fn a_slot_admits_its_key_for_its_service_in_its_time() {
        let id = KeyId::new(5, 3).unwrap();
        let slot = KeySlot {
            key_id: id.0,
            state: STATE_VERIFY,
            service_id: 42,
            not_before_ns: 100,
            not_after_ns: 200,
            ..KeySlot::default()
        };
        let inactive = Err(Reason::InactiveKey);
        for (now, expected) in [(99, inactive), (100, Ok(())), (199, Ok(())), (200, inactive)] {
            assert_eq!(slot.admits(id, 42, now), expected, "{now}");
        }
        assert_eq!(slot.admits(id, 43, 150), inactive);
        assert_eq!(KeySlot { state: STATE_OFF, ..slot }.admits(id, 42, 150), inactive);
        assert_eq!(KeySlot { state: 2, ..slot }.admits(id, 42, 150), inactive);
        let unknown = Err(Reason::UnknownKey);
        assert_eq!(slot.admits(KeyId::new(5, 4).unwrap(), 42, 150), unknown);
        // A slot that never had a key.
        assert_eq!(KeySlot { key_id: 0, ..slot }.admits(KeyId(0), 42, 150), unknown);
    }

    #[test]
    fn no_key_is_printed() {
        let secret = SipKey { k0: 0x1234_5678_9abc_def0, k1: 0x1234_5678_9abc_def0 };
        let slot = KeySlot { key_id: 77, fast: secret, seal: secret, ..KeySlot::default() };
        let shown = format!("{slot:?}");
        assert!(shown.contains("key_id: 77") && !shown.contains("1311768467463790320"), "{shown}");
    }
}
