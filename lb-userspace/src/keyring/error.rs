//! Errors of the keyring.

use lb_common::{keyslot::KeyId, maps::KEY_SLOTS_MAX};

use super::{KeyState, slots::REST};

/// Why a keyring refused a change. The keyring is then unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// No key has this id.
    #[error("there is no key {}; see `tollgate keys list`", .0.0)]
    NoSuchKey(KeyId),
    /// Only a staged key can become active.
    #[error("key {} is {state}, and only a staged key can become active; rotate to get another", id.0)]
    NotStaged {
        /// The key.
        id: KeyId,
        /// Its state.
        state: KeyState,
    },
    /// No slot is free.
    #[error("all {KEY_SLOTS_MAX} key slots are in use{}; revoke retiring keys that are not needed (`tollgate keys \
             list`, `tollgate keys revoke`), rotate less often, or lower `max_ttl`", next_free(*next_free_at))]
    SlotsFull {
        /// Unix second at which the first slot becomes free, even if no key is revoked.
        next_free_at: Option<u64>,
    },
    /// The service holds as many slots as its quota permits.
    #[error("service {service_id} holds {held} of its {quota} key slots, and the last one is reserved for a key that \
             replaces a revoked one, or is imported{}; revoke its retiring keys that are not needed (`tollgate keys \
             list`, `tollgate keys revoke`: a slot is free {REST} s later), rotate less often, or lower `max_ttl`",
             next_free(*next_free_at))]
    QuotaUsed {
        /// The service.
        service_id: u32,
        /// The slots that it holds.
        held: usize,
        /// The quota: the number of slots that it may hold.
        quota: u64,
        /// Unix second at which the first of them becomes free, even if no key is revoked.
        next_free_at: Option<u64>,
    },
    /// A keyset of another service.
    #[error("the keyset belongs to service {found}, not to {expected}; import it for that service")]
    OtherService {
        /// The expected service.
        expected: u32,
        /// The service of the keyset.
        found: u32,
    },
    /// No key has the id 0.
    #[error("the keyset has a key with id 0, which is invalid; export it again")]
    KeyIdZero,
    /// The key ends later than the times of a token can express.
    #[error("the keyset's key {} lives until unix second {until}, and tokens have 32 bits for their times; export it \
             again", id.0)]
    TooLate {
        /// The id.
        id: KeyId,
        /// Its end.
        until: u64,
    },
    /// The two entries may contradict each other: one revoked, the other active.
    #[error("the keyset has key {} twice; export it again", .0.0)]
    Twice(KeyId),
    /// The id belongs to two different keys.
    #[error("key {} is known here with another secret or for another service; rotate on the node that exported \
             it, revoke its key there, and export again", id.0)]
    Conflict {
        /// The id.
        id: KeyId,
    },
    /// The slot of an imported key contains another key.
    #[error("key {} needs slot {}, which key {} occupies; replace that key (`tollgate keys rotate`), or rotate on the \
             node that exported the keyset, and export again", id.0, id.slot(), by.0)]
    SlotTaken {
        /// The imported key.
        id: KeyId,
        /// The key in its slot.
        by: KeyId,
    },
    /// The slot of an imported key is empty, but contained a key until a moment ago.
    #[error("key {} needs slot {}, which rests until unix second {until}; import again then", id.0, id.slot())]
    SlotRests {
        /// The imported key.
        id: KeyId,
        /// When the slot may take the key.
        until: u64,
    },
    /// The slot of an imported key has already had later keys.
    #[error("key {} is older than the last key of its slot here, and ids are never reused; export again", id.0)]
    Outdated {
        /// The imported key.
        id: KeyId,
    },
}

fn next_free(at: Option<u64>) -> String {
    let time =
        at.map(|at| std::time::UNIX_EPOCH + std::time::Duration::from_secs(at.min(u64::from(u32::MAX))));
    time.map_or_else(String::new, |time| {
        format!(", the first is free at {}", humantime::format_rfc3339_seconds(time))
    })
}
