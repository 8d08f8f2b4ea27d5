//! The maps: their names, their sizes and the version of their layout.

/// The version of the map layout. It changes with every incompatible change of a map's key, value or meaning. Maps are
/// pinned in a directory that is named after it, and the daemon compares layouts before it reuses pinned maps.
pub const ABI_VERSION: u32 = 7;

/// One `ControlPage`, mapped into the daemon.
pub const CONTROL: &str = "control";
/// `bank * BUCKETS + bucket` → `ServiceBucket`. Looked up for every datagram.
pub const SERVICES: &str = "services";
/// `bank * MAC_BUCKETS + bucket` → `MacBucket`. Looked up for every packet of a service.
pub const MACS: &str = "macs";
/// Slot → `KeySlot`.
pub const KEY_SLOTS: &str = "key_slots";
/// `TokenKey` → `Session`: the token cache. The daemon sets its size when it creates the map.
pub const SESSIONS: &str = "sessions";
/// `TokenKey` → `StatefulEntry`: the cache of stateful entries, for PROOF tokens and for services with limits. As large
/// as the token cache.
pub const STATEFUL: &str = "stateful";
/// `bank * SERVICES_MAX + service index` → `MaglevTable`.
pub const MAGLEV: &str = "maglev";
/// `bank * BACKENDS_MAX + index` → `Backend`. Only usable backends have an entry.
pub const BACKENDS: &str = "backends";
/// `PinnedKey` → index within the bank of `backends`.
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
/// Interface index → device: the interfaces through which frames may be sent.
pub const EGRESS: &str = "egress";

/// `bank * SERVICES_MAX + service index` → `RateTable`. Looked up for services with `FLAG_RATED`.
pub const RATES: &str = "rates";
/// `RevocationKey` → the end of the revocation, Unix time in nanoseconds. A plain hash map: an LRU map could evict
/// revocations that are in force.
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
/// 1 plus the maximum number of services of a node. Index 0 counts packets that are for no service.
pub const SERVICES_MAX: u32 = 256;
/// The number of key slots: the slot has 12 bits in a key id.
pub const KEY_SLOTS_MAX: u32 = 1 << 12;
/// The maximum number of backends of all services of a node.
pub const BACKENDS_MAX: u32 = 4096;
/// The default number of entries of the token cache.
pub const SESSIONS_DEFAULT: u32 = 262_144;
/// The maximum number of interfaces through which frames may be sent.
pub const EGRESS_MAX: u32 = 256;
/// The maximum number of fragmented answers whose later fragments can be translated at the same time.
pub const FRAGMENTS_MAX: u32 = 4096;
/// The maximum number of revocations in force.
pub const REVOCATIONS_MAX: u32 = 65_536;
/// The number of counters of all services.
pub const COUNTERS_MAX: u32 = SERVICES_MAX * crate::reason::CAPACITY as u32;

/// The name of the XDP program.
pub const PROGRAM: &str = "tollgate";
/// The name of the program that passes every frame.
pub const PROGRAM_PASS: &str = "pass";
/// The name of the program that reads the kernel's clocks in a test run.
pub const PROGRAM_CLOCK: &str = "clock";
/// Load-time variable: the cost of one HMAC verification, in nanoseconds of the budget.
pub const HMAC_COST_NS: &str = "HMAC_COST_NS";
/// Load-time variable: the ports of `forward = "nat"`, encoded by `nat::Ports::to_word`; 0: none.
pub const NAT_PORTS: &str = "NAT_PORTS";
/// Load-time variable: the maximum number of translations of a session towards one backend.
pub const NAT_PORTS_PER_SESSION: &str = "NAT_PORTS_PER_SESSION";
/// The default maximum of HMAC verifications per CPU per second: a sixth of a CPU's time.
pub const HMACS_PER_SECOND_DEFAULT: u64 = 200_000;
