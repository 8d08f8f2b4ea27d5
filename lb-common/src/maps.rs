//! The maps: their names, their sizes and the version of their layout.

/// Changes with every incompatible change of a map's key, value or meaning. Pins live under a directory of this
/// name, and the daemon compares layouts before it re-uses them.
pub const ABI_VERSION: u32 = 7;

/// One `ControlPage`, mapped into the daemon.
pub const CONTROL: &str = "control";
/// `bank * BUCKETS + bucket` → `ServiceBucket`. Looked up for every datagram.
pub const SERVICES: &str = "services";
/// `bank * MAC_BUCKETS + bucket` → `MacBucket`. Looked up for every packet of a service.
pub const MACS: &str = "macs";
/// Slot → `KeySlot`.
pub const KEY_SLOTS: &str = "key_slots";
/// `TokenKey` → `Session`: the token cache. Its size is set when it is made.
pub const SESSIONS: &str = "sessions";
/// `TokenKey` → `StatefulEntry`: the cache of PROOF tokens, and of services with limits. As large.
pub const STATEFUL: &str = "stateful";
/// `bank * SERVICES_MAX + service index` → `MaglevTable`.
pub const MAGLEV: &str = "maglev";
/// `bank * BACKENDS_MAX + place` → `Backend`: the usable ones alone.
pub const BACKENDS: &str = "backends";
/// `PinnedKey` → index among the backends.
pub const PINNED: &str = "pinned";
/// Per CPU: `service index * reason::CAPACITY + reason` → `Counter`.
pub const COUNTERS: &str = "counters";
/// Per CPU: a backend's counter index → `Counter`.
pub const BACKEND_COUNTERS: &str = "backend_counters";
/// Per CPU: one `Scratch`.
pub const SCRATCH: &str = "scratch";

/// `FlowKey` → `Flow`. As large as the token cache.
pub const FLOWS: &str = "flows";
/// `TranslationKey` → `Translation`. As large as the token cache.
pub const TRANSLATIONS: &str = "translations";
/// `FragmentKey` → `FragmentedAnswer`.
pub const FRAGMENTS: &str = "fragments";
/// Interface number → device: the interfaces that frames may be sent to.
pub const EGRESS: &str = "egress";

/// `bank * SERVICES_MAX + service index` → `RateTable`. Looked up for services with `FLAG_RATED`.
pub const RATES: &str = "rates";
/// `RevocationKey` → unix nanoseconds until when it counts. A plain hash map: an LRU's victims could flush it.
pub const REVOCATIONS: &str = "revocations";

/// Every map, for code that pins, compares or removes all of them.
pub const ALL: [&str; 18] = [
    CONTROL,
    SERVICES,
    MACS,
    KEY_SLOTS,
    SESSIONS,
    STATEFUL,
    MAGLEV,
    BACKENDS,
    PINNED,
    COUNTERS,
    BACKEND_COUNTERS,
    SCRATCH,
    FLOWS,
    TRANSLATIONS,
    FRAGMENTS,
    EGRESS,
    RATES,
    REVOCATIONS,
];

/// Banks of the tables that are published together: one is active.
pub const BANKS: u32 = 2;
/// Services a node can have, and one more: index 0 counts what is for none.
pub const SERVICES_MAX: u32 = 256;
/// Key slots: what the 12 bits of a key id can name.
pub const KEY_SLOTS_MAX: u32 = 1 << 12;
/// Backends of all services of a node.
pub const BACKENDS_MAX: u32 = 4096;
/// Entries of the token cache where the configuration names no number.
pub const SESSIONS_DEFAULT: u32 = 262_144;
/// Interfaces that frames may be sent to.
pub const EGRESS_MAX: u32 = 256;
/// Fragmented answers of backends whose later fragments are translated.
pub const FRAGMENTS_MAX: u32 = 4096;
/// Revocations in force at once.
pub const REVOCATIONS_MAX: u32 = 65_536;
/// Counters of all services.
pub const COUNTERS_MAX: u32 = SERVICES_MAX * crate::reason::CAPACITY as u32;

/// The program.
pub const PROGRAM: &str = "tollgate";
/// The program that passes everything.
pub const PROGRAM_PASS: &str = "pass";
/// The program that reads the kernel's clocks, by test run.
pub const PROGRAM_CLOCK: &str = "clock";
/// The load-time global: what one HMAC costs of the budget, nanoseconds.
pub const HMAC_COST_NS: &str = "HMAC_COST_NS";
/// The load-time global: the ports of `forward = "nat"` as `nat::Ports::to_word` puts them; 0 for none.
pub const NAT_PORTS: &str = "NAT_PORTS";
/// The load-time global: translations that a session holds towards one backend, at most.
pub const NAT_PORTS_PER_SESSION: &str = "NAT_PORTS_PER_SESSION";
/// HMACs that a CPU makes in a second where the configuration names no number: a sixth of its time.
pub const HMACS_PER_SECOND_DEFAULT: u64 = 200_000;
