//! The maps. Their names, sizes and values are defined in lb-common.
//!
//! The lookups that every packet needs are in arrays: these lookups are inlined, while a hash map costs two calls.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_RDONLY_PROG},
    btf_maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use lb_common::{
    backend::{Backend, PinnedKey},
    balance::MaglevTable,
    control::{ControlPage, SECOND_NS},
    counter::Counter,
    flow::{Flow, FlowKey},
    keyslot::KeySlot,
    mac::{MAC_BUCKETS, MacBucket},
    maps::{
        BACKENDS_MAX, BANKS, COUNTERS_MAX, EGRESS_MAX, FRAGMENTS_MAX, HMACS_PER_SECOND_DEFAULT,
        KEY_SLOTS_MAX, REVOCATIONS_MAX, SERVICES_MAX, SESSIONS_DEFAULT,
    },
    nat::{FragmentKey, FragmentedAnswer, PER_SESSION_DEFAULT, Translation, TranslationKey},
    rate::RateTable,
    revocation::RevocationKey,
    scratch::Scratch,
    service::{BUCKETS, ServiceBucket},
    session::{Session, StatefulEntry, TokenKey},
};

/// The flag of maps that only the daemon writes: the verifier rejects a program that writes to them.
const READ_ONLY: usize = BPF_F_RDONLY_PROG as usize;

/// Mapped into the daemon's memory; the daemon changes a word by one atomic store. Without `READ_ONLY`, because the
/// kernel does not allow a writable mapping of a map that is read-only for programs.
#[btf_map(name = "control")]
pub static CONTROL: Array<ControlPage, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map(name = "services")]
pub static SERVICES: Array<ServiceBucket, { (BANKS * BUCKETS) as usize }, READ_ONLY> = Array::new();

#[btf_map(name = "macs")]
pub static MACS: Array<MacBucket, { (BANKS * MAC_BUCKETS) as usize }, READ_ONLY> = Array::new();

#[btf_map(name = "rates")]
pub static RATES: Array<RateTable, { (BANKS * SERVICES_MAX) as usize }, READ_ONLY> = Array::new();

#[btf_map(name = "revocations")]
pub static REVOCATIONS: HashMap<RevocationKey, u64, { REVOCATIONS_MAX as usize }, READ_ONLY> = HashMap::new();

#[btf_map(name = "key_slots")]
pub static KEY_SLOTS: Array<KeySlot, { KEY_SLOTS_MAX as usize }, READ_ONLY> = Array::new();

/// The loader sets its size.
#[btf_map(name = "sessions")]
pub static SESSIONS: LruHashMap<TokenKey, Session, { SESSIONS_DEFAULT as usize }> = LruHashMap::new();

/// The loader sets its size.
#[btf_map(name = "stateful")]
pub static STATEFUL: LruHashMap<TokenKey, StatefulEntry, { SESSIONS_DEFAULT as usize }> = LruHashMap::new();

#[btf_map(name = "maglev")]
pub static MAGLEV: Array<MaglevTable, { (BANKS * SERVICES_MAX) as usize }, READ_ONLY> = Array::new();

#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, { (BANKS * BACKENDS_MAX) as usize }, READ_ONLY> = Array::new();

#[btf_map(name = "pinned")]
pub static PINNED: HashMap<PinnedKey, u32, { (BANKS * BACKENDS_MAX) as usize }, READ_ONLY> = HashMap::new();

#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuArray<Counter, { COUNTERS_MAX as usize }> = PerCpuArray::new();

#[btf_map(name = "backend_counters")]
pub static BACKEND_COUNTERS: PerCpuArray<Counter, { BACKENDS_MAX as usize }> = PerCpuArray::new();

#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The loader sets its size.
#[btf_map(name = "flows")]
pub static FLOWS: LruHashMap<FlowKey, Flow, { SESSIONS_DEFAULT as usize }> = LruHashMap::new();

/// The loader sets its size.
#[btf_map(name = "translations")]
pub static TRANSLATIONS: LruHashMap<TranslationKey, Translation, { SESSIONS_DEFAULT as usize }> =
    LruHashMap::new();

#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentedAnswer, { FRAGMENTS_MAX as usize }> =
    LruHashMap::new();

#[btf_map(name = "egress")]
pub static EGRESS: DevMapHash<{ EGRESS_MAX as usize }> = DevMapHash::new();

/// The ports of `forward = "nat"`, encoded by `Ports::to_word`. Set at load time: without ports, the verifier removes
/// the code that only translations need.
#[unsafe(no_mangle)]
pub static NAT_PORTS: Global<u32> = Global::new(0);

/// The maximum number of translations of a session towards one backend. Set at load time.
#[unsafe(no_mangle)]
pub static NAT_PORTS_PER_SESSION: Global<u32> = Global::new(PER_SESSION_DEFAULT);

/// The cost of one HMAC verification in nanoseconds of a CPU's budget: a second divided by `hmac_budget`. Set at load
/// time.
#[unsafe(no_mangle)]
pub static HMAC_COST_NS: Global<u64> = Global::new(SECOND_NS / HMACS_PER_SECOND_DEFAULT);
