//! The maps, once: their names, their sizes and the version of their layout.

/// Changes with every incompatible change of a map's key, value or meaning. Pins live under a directory of this
/// name, and the daemon compares layouts before it re-uses them.
pub const ABI_VERSION: u32 = 1;

/// `ServiceKey` → `Service`. Looked up for every packet.
pub const SERVICES: &str = "services";
/// Slot → `KeySlot`.
pub const KEY_SLOTS: &str = "key_slots";
/// One `Clock`.
pub const CLOCK: &str = "clock";
/// `TokenKey` → `Session`: the token cache. Its size is set when it is made.
pub const SESSIONS: &str = "sessions";
/// Service index → `MaglevTable`.
pub const MAGLEV: &str = "maglev";
/// `BackendKey` → `Backend`: the usable ones alone.
pub const BACKENDS: &str = "backends";
/// Per CPU: `service index * reason::CAPACITY + reason` → `Counter`.
pub const COUNTERS: &str = "counters";
/// Per CPU: a backend's counter index → `Counter`.
pub const BACKEND_COUNTERS: &str = "backend_counters";
/// Per CPU: one `Scratch`.
pub const SCRATCH: &str = "scratch";

/// Every map, for whoever pins, compares or removes them all.
pub const ALL: [&str; 9] =
    [SERVICES, KEY_SLOTS, CLOCK, SESSIONS, MAGLEV, BACKENDS, COUNTERS, BACKEND_COUNTERS, SCRATCH];

/// Services a node can have, and one more: index 0 counts what is for none.
pub const SERVICES_MAX: u32 = 256;
/// Entries of the service map: an address entry beside each service.
pub const SERVICE_ENTRIES_MAX: u32 = 2 * SERVICES_MAX;
/// Key slots: what the 12 bits of a key id can name.
pub const KEY_SLOTS_MAX: u32 = 1 << 12;
/// Backends of all services of a node.
pub const BACKENDS_MAX: u32 = 4096;
/// Entries of the token cache where the configuration names no number.
pub const SESSIONS_DEFAULT: u32 = 262_144;
/// Counters of all services.
pub const COUNTERS_MAX: u32 = SERVICES_MAX * crate::reason::CAPACITY as u32;
