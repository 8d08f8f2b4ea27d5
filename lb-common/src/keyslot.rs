//! A key as the program sees it: derived keys only, never the master key.

use crate::{reason::Reason, sha256::HmacKey, siphash::SipKey};

/// 20 bits of generation and 12 bits of slot: a slot's next key has another id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct KeyId(pub u32);

/// Bits of a key id that name its slot.
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

/// The slot verifies nothing.
pub const STATE_OFF: u32 = 0;
/// The slot verifies tokens within its lifetime.
pub const STATE_VERIFY: u32 = 1;

/// One slot of the key array.
///
/// An update of an array value is not atomic. So a slot that verifies is never overwritten: all of an OFF slot is
/// written first, then written again with nothing but `state` changed.
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
    /// Unix nanoseconds before which it verifies nothing.
    pub not_before_ns: u64,
    /// Unix nanoseconds from which on it verifies nothing.
    pub not_after_ns: u64,
    /// Key of the fast tag.
    pub fast: SipKey,
    /// Key of the sealed claims.
    pub seal: SipKey,
    /// Key of the full tag.
    pub full: HmacKey,
    /// Key that session keys are derived with.
    pub proof: HmacKey,
}

const _: () = {
    assert!(size_of::<KeySlot>() == 192 && align_of::<KeySlot>() == 8);
    // All that a forged packet touches is one cache line.
    assert!(core::mem::offset_of!(KeySlot, full) == 64);
};
crate::map_value!(KeySlot);

impl core::fmt::Debug for KeySlot {
    /// Without the keys.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("KeySlot")
            .field("key_id", &self.key_id)
            .field("state", &self.state)
            .field("service_id", &self.service_id)
            .finish_non_exhaustive()
    }
}

impl KeySlot {
    /// Step 3 of token.md's order: whether this slot verifies tokens with this key id for this service now.
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
