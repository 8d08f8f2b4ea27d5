//! The program in the kernel, run on one packet at a time (BPF_PROG_TEST_RUN). The daemon's own code loads it and
//! writes its services and backends; it is not attached to an interface, and its maps are private.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::SocketAddr,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    TestRun as _, TestRunOptions,
    maps::{Array, DevMapHash, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    programs::Xdp,
};
use lb_common::{
    counter::{Counter, counter_index},
    flow::{Flow, FlowKey},
    keyslot::{KeyId, KeySlot},
    maps::{self, BACKENDS_MAX, SERVICES_MAX},
    nat::{Translation, TranslationKey},
    reason::{self, Reason},
    revocation::RevocationKey,
    scratch::Scratch,
    session::{Admission, Session, StatefulEntry, TokenKey},
};
use nix::time::{ClockId, clock_getres};
use tollgate::datapath::{Datapath, DatapathError, Options, TableSet, embedded_object};

use crate::model::{
    fixture::{self, Fixture, HeldKey},
    packet::ETHERNET_LEN,
};

/// The maximum length of a frame's first buffer in a test run: a page without the kernel's headroom and tailroom.
pub const FIRST_BUFFER_MAX: usize = 3520;

/// More than any outer headers need.
const GROWTH_MAX: usize = 128;

/// The verdict on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed to the host's stack.
    Pass,
    /// Dropped.
    Drop,
    /// Sent back out of the interface that it arrived on.
    Transmit,
    /// Sent out of another interface.
    Redirect,
}

impl Verdict {
    /// The value that a program returns for it (`enum xdp_action`).
    pub const fn action(self) -> u32 {
        match self {
            Self::Drop => 1,
            Self::Pass => 2,
            Self::Transmit => 3,
            Self::Redirect => 4,
        }
    }

    /// Converts the return value of a program (`enum xdp_action`).
    fn of_action(action: u32) -> Result<Self> {
        match action {
            1 => Ok(Self::Drop),
            2 => Ok(Self::Pass),
            3 => Ok(Self::Transmit),
            4 => Ok(Self::Redirect),
            other => bail!("the program returned XDP action {other}, which it never should"),
        }
    }
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// The whole frame as the program left it.
    pub frame: Vec<u8>,
}

/// Counters that are not zero, or their increments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By service index and reason.
    pub reasons: BTreeMap<(u32, Reason), Counter>,
    /// By the backends' counter indices.
    pub backends: BTreeMap<u32, Counter>,
}

/// The loaded program.
pub struct Program {
    datapath: Datapath,
    key_slots: Array<MapData, KeySlot>,
    sessions: HashMap<MapData, TokenKey, Session>,
    stateful: HashMap<MapData, TokenKey, StatefulEntry>,
    egress: DevMapHash<MapData>,
    counters: PerCpuArray<MapData, Counter>,
    fixture: Fixture,
    used_slots: BTreeSet<u32>,
}

/// The variable that names another object to test than the one built with the tests. `cargo xtask mutants` runs the
/// same tests on many objects.
const OBJECT: &str = "TOLLGATE_TEST_OBJECT";

/// The object under test.
///
/// # Errors
/// If it was built without one, or the one that `TOLLGATE_TEST_OBJECT` names cannot be read.
pub fn object() -> Result<&'static [u8]> {
    static OTHER: OnceLock<Vec<u8>> = OnceLock::new();
    let Some(path) = env::var_os(OBJECT) else { return Ok(embedded_object()?) };
    if OTHER.get().is_none() {
        let read = fs::read(&path).with_context(|| format!("cannot read {OBJECT} = {}", path.display()))?;
        let _ = OTHER.set(read); // Another thread has read the same.
    }
    OTHER.get().map(Vec::as_slice).context("it was read")
}

impl Program {
    /// Loads the program as the daemon does by default, but with a small token cache.
    ///
    /// # Errors
    /// If it was built without its object or the kernel refuses it.
    pub fn load() -> Result<Self> {
        Self::load_with(&small())
    }

    /// Loads the program into the default [`Fixture`].
    ///
    /// # Errors
    /// If it was built without its object or the kernel refuses it.
    pub fn load_with(options: &Options) -> Result<Self> {
        let datapath = Datapath::load(object()?, options)?;
        let mut program = Self {
            key_slots: Map::Array(map_of(&datapath, maps::KEY_SLOTS)?).try_into()?,
            sessions: Map::LruHashMap(map_of(&datapath, maps::SESSIONS)?).try_into()?,
            stateful: Map::LruHashMap(map_of(&datapath, maps::STATEFUL)?).try_into()?,
            counters: Map::PerCpuArray(map_of(&datapath, maps::COUNTERS)?).try_into()?,
            egress: Map::DevMapHash(map_of(&datapath, maps::EGRESS)?).try_into()?,
            datapath,
            fixture: Fixture {
                services: vec![],
                macs: Default::default(),
                keys: vec![],
                backends: vec![],
                egress: vec![],
                ..Fixture::default()
            },
            used_slots: BTreeSet::new(),
        };
        program.enter(&Fixture::default())?;
        Ok(program)
    }

    /// Writes this fixture to the program.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn enter(&mut self, fixture: &Fixture) -> Result<()> {
        let clock = |fixture: &Fixture| (fixture.now_ns, fixture.tick_ns, fixture.clock_age_ns);
        if clock(&self.fixture) != clock(fixture) || self.datapath.control_page.offset_ns() == 0 {
            self.set_clock(fixture)?;
        }
        if self.fixture.keys != fixture.keys {
            self.write_keys(&fixture.keys)?;
        }
        if !self.fixture.same_tables(fixture) {
            self.publish(&TableSet::new(&fixture.snapshot())?)?;
        }
        let generation = self.datapath.control_page.tables().generation;
        self.datapath.control_page.set_begun(generation.wrapping_add(fixture.generations_begun));
        if self.fixture.egress != fixture.egress {
            self.write_egress(&fixture.egress)?;
        }
        if self.fixture.flows != fixture.flows {
            self.write_flows(&fixture.flows)?;
        }
        if self.fixture.revocations != fixture.revocations {
            self.write_revocations(&fixture.revocations)?;
        }
        if self.fixture.translations != fixture.translations {
            self.write_translations(&fixture.translations)?;
        }
        self.fixture = fixture.clone();
        Ok(())
    }

    fn publish(&mut self, tables: &TableSet) -> Result<()> {
        loop {
            match self.datapath.tables.publish(tables) {
                Err(DatapathError::Grace(left)) => std::thread::sleep(left),
                done => return Ok(done?),
            }
        }
    }

    /// See [`Fixture::tick_ns`].
    fn set_clock(&self, fixture: &Fixture) -> Result<()> {
        let live = &self.datapath.control_page;
        let kernel_ns = self.jiffies()?.wrapping_mul(fixture.tick_ns);
        live.set_tick_ns(fixture.tick_ns);
        live.set_offset_ns(fixture.now_ns.wrapping_sub(kernel_ns));
        live.set_confirmed_ns(kernel_ns.wrapping_sub(fixture.clock_age_ns));
        Ok(())
    }

    /// The kernel's ticks.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn jiffies(&self) -> Result<u64> {
        Ok(self.datapath.read_clock()?.jiffies)
    }

    /// Empties the token caches.
    ///
    /// # Errors
    /// If an entry cannot be removed.
    pub fn forget(&mut self) -> Result<()> {
        let there: Vec<TokenKey> = self.sessions.keys().collect::<Result<_, _>>()?;
        there.iter().try_for_each(|key| self.sessions.remove(key))?;
        let there: Vec<TokenKey> = self.stateful.keys().collect::<Result<_, _>>()?;
        Ok(there.iter().try_for_each(|key| self.stateful.remove(key))?)
    }

    /// Resets the program to the state after loading, except for its counters.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn renew(&mut self) -> Result<()> {
        self.forget()?;
        self.enter(&Fixture::default())?;
        self.write_flows(&[])?;
        self.write_translations(&[])?;
        let mut scratch: PerCpuArray<_, Scratch> =
            Map::PerCpuArray(map_of(&self.datapath, maps::SCRATCH)?).try_into()?;
        let cpus = scratch.get(&0, 0)?.len();
        Ok(scratch.set(0, PerCpuValues::try_from(vec![Scratch::default(); cpus])?, 0)?)
    }

    /// Writes the map directly: tests need states that the daemon's key slots refuse to write.
    fn write_keys(&mut self, keys: &[HeldKey]) -> Result<()> {
        for slot in std::mem::take(&mut self.used_slots) {
            self.key_slots.set(slot, KeySlot::default(), 0)?;
        }
        for HeldKey { slot: key, .. } in keys {
            let slot = KeyId(key.key_id).slot();
            self.key_slots.set(slot, key, 0)?;
            self.used_slots.insert(slot);
        }
        Ok(())
    }

    fn write_revocations(&mut self, revocations: &[(RevocationKey, u64)]) -> Result<()> {
        let there = self.datapath.revocations.all()?;
        self.datapath.revocations.remove(there.keys())?;
        Ok(self.datapath.revocations.insert(revocations.iter().copied())?)
    }

    /// Overwrites a key slot, which an installer must not do while packets arrive.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn overwrite_slot(&mut self, slot: &KeySlot) -> Result<()> {
        Ok(self.key_slots.set(KeyId(slot.key_id).slot(), slot, 0)?)
    }

    fn write_egress(&mut self, interfaces: &[u32]) -> Result<()> {
        for ifindex in std::mem::take(&mut self.fixture.egress) {
            self.egress.remove(ifindex)?;
        }
        // Any device is valid: a test run sends nothing.
        interfaces
            .iter()
            .try_for_each(|ifindex| Ok(self.egress.insert(*ifindex, fixture::LOOPBACK, None, 0)?))
    }

    fn write_flows(&mut self, flows: &[(SocketAddr, u32, Admission)]) -> Result<()> {
        let mut map: HashMap<_, FlowKey, Flow> =
            Map::LruHashMap(map_of(&self.datapath, maps::FLOWS)?).try_into()?;
        let there: Vec<FlowKey> = map.keys().collect::<Result<_, _>>()?;
        there.iter().try_for_each(|key| map.remove(key))?;
        for (client, service, admission) in flows {
            let key = FlowKey {
                client_be: fixture::address_be(client.ip()),
                client_port_be: client.port().to_be(),
                service_index: u16::try_from(*service)?,
            };
            map.insert(key, Flow::unowned(admission), 0)?;
        }
        Ok(())
    }

    fn write_translations(&self, translations: &[(TranslationKey, Translation)]) -> Result<()> {
        let mut map = self.translations()?;
        let there: Vec<TranslationKey> = map.keys().collect::<Result<_, _>>()?;
        there.iter().try_for_each(|key| map.remove(key))?;
        Ok(translations.iter().try_for_each(|(key, value)| map.insert(key, value, 0))?)
    }

    /// Starts the clock of the program as the daemon does, at this unix nanosecond; returns the kernel's clock.
    ///
    /// # Errors
    /// If the clocks cannot be read.
    pub fn start_clock(&mut self, unix_ns: u64) -> Result<u64> {
        let tick_ns =
            u64::try_from(Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?).as_nanos())?;
        let kernel_ns = self.datapath.read_clock()?.jiffies * tick_ns;
        self.datapath.control_page.set_tick_ns(tick_ns);
        self.datapath.control_page.set_offset_ns(unix_ns.wrapping_sub(kernel_ns));
        self.datapath.control_page.set_confirmed_ns(kernel_ns);
        Ok(kernel_ns)
    }

    /// Runs the program on a frame.
    ///
    /// # Errors
    /// If the kernel refuses the run, as it does for frames shorter than an Ethernet header.
    pub fn run(&self, frame: &[u8]) -> Result<Outcome> {
        run_once(self.datapath.program(maps::PROGRAM)?, frame)
    }

    /// All counters that are not zero.
    ///
    /// # Errors
    /// If a map cannot be read, or a counter has no name.
    pub fn counts(&self) -> Result<Counts> {
        let (services, backends) = (self.datapath.counters.services()?, self.datapath.counters.backends()?);
        let mut counts = Counts::default();
        for at in 0..SERVICES_MAX * reason::CAPACITY as u32 {
            let counter = services.at(at);
            if counter != Counter::default() {
                let (service, number) = (at / reason::CAPACITY as u32, at % reason::CAPACITY as u32);
                let reason = Reason::from_index(number)
                    .with_context(|| format!("{number} is counted, which is no reason's number"))?;
                counts.reasons.insert((service, reason), counter);
            }
        }
        let moved = (0..BACKENDS_MAX).map(|at| (at, backends.at(at)));
        counts.backends = moved.filter(|(_, counter)| *counter != Counter::default()).collect();
        Ok(counts)
    }

    /// Packets of a service, by its index, with a reason.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counted(&self, (service, reason): (u32, Reason)) -> Result<u64> {
        let values = self.counters.get(&counter_index(service, reason), 0)?;
        Ok(values.iter().map(|counter| counter.packets).sum())
    }

    /// HMACs that all CPUs have computed.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn hmacs(&self) -> Result<u64> {
        Ok(self.datapath.counters.hmacs()?)
    }

    /// The number of tokens in both caches.
    ///
    /// # Errors
    /// If a cache cannot be read.
    pub fn remembered(&self) -> Result<usize> {
        let sessions = self.datapath.counters.sessions()?;
        Ok(usize::try_from(sessions.stateless + sessions.stateful)?)
    }

    /// The cache of tokens without state of their own.
    pub const fn sessions(&mut self) -> &mut HashMap<MapData, TokenKey, Session> {
        &mut self.sessions
    }

    /// The cache of stateful tokens.
    pub const fn stateful(&mut self) -> &mut HashMap<MapData, TokenKey, StatefulEntry> {
        &mut self.stateful
    }

    /// The translations of `forward = "nat"`.
    ///
    /// # Errors
    /// If the map cannot be opened.
    pub fn translations(&self) -> Result<HashMap<MapData, TranslationKey, Translation>> {
        Ok(Map::LruHashMap(map_of(&self.datapath, maps::TRANSLATIONS)?).try_into()?)
    }

    /// The daemon's handle to the program.
    pub const fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }
}

/// Runs a program on a frame.
///
/// # Errors
/// If the kernel refuses the run, as it does for frames shorter than an Ethernet header.
pub fn run_once(program: &Xdp, frame: &[u8]) -> Result<Outcome> {
    ensure!(
        frame.len() >= ETHERNET_LEN,
        "the kernel runs no program on {} bytes: a test frame has at least an Ethernet header",
        frame.len()
    );
    let mut out = vec![0; frame.len().max(FIRST_BUFFER_MAX) + GROWTH_MAX];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = program.test_run(options).with_context(|| format!("a test run on {} bytes", frame.len()))?;
    out.truncate(result.data_size_out as usize);
    Ok(Outcome { verdict: Verdict::of_action(result.return_value)?, frame: out })
}

/// The daemon's defaults, but with a small token cache and without the grace period for packets in flight.
pub fn small() -> Options {
    Options {
        sessions: 4096,
        grace: Duration::ZERO,
        nat_ports: Some(fixture::NAT_PORTS),
        ..Options::default()
    }
}

/// A map of the program by its name, for access without the daemon's code.
fn map_of(datapath: &Datapath, name: &'static str) -> Result<MapData> {
    let ids =
        datapath.program(maps::PROGRAM)?.info()?.map_ids()?.context("this kernel reports no map ids")?;
    for id in ids {
        let map = MapData::from_id(id)?;
        if map.info()?.name_as_str() == Some(name) {
            return Ok(map);
        }
    }
    bail!("the program uses no map `{name}`")
}

impl Counts {
    /// The increments since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            reasons: moved(&self.reasons, &before.reasons),
            backends: moved(&self.backends, &before.backends),
        }
    }

    /// Counts one frame.
    pub fn add(&mut self, service: u32, reason: Reason, backend: Option<u32>, bytes: usize) {
        let counter = self.reasons.entry((service, reason)).or_default();
        let backend = backend.map(|backend| self.backends.entry(backend).or_default());
        for counter in [Some(counter), backend].into_iter().flatten() {
            counter.packets += 1;
            counter.bytes += bytes as u64;
        }
    }

    /// Packets of all reasons.
    pub fn packets(&self) -> u64 {
        self.reasons.values().map(|counter| counter.packets).sum()
    }
}

fn moved<K: Ord + Copy>(after: &BTreeMap<K, Counter>, before: &BTreeMap<K, Counter>) -> BTreeMap<K, Counter> {
    let difference = |(key, after): (&K, &Counter)| {
        let before = before.get(key).copied().unwrap_or_default();
        let moved = Counter { packets: after.packets - before.packets, bytes: after.bytes - before.bytes };
        (moved != Counter::default()).then_some((*key, moved))
    };
    after.iter().filter_map(difference).collect()
}

/// `count`, or a fiftieth of it on an emulated machine, which is slow.
pub fn at_scale(count: usize) -> usize {
    let emulated = fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains("QEMU TCG"));
    if emulated { count / 50 } else { count }
}

/// The CPUs that this thread may run on.
///
/// # Errors
/// If the kernel does not report them.
pub fn cpus() -> Result<Vec<usize>> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    Ok((0..nix::sched::CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect())
}

/// Pins the calling thread to one CPU, for state that is per CPU.
///
/// # Errors
/// If there is no such CPU.
pub fn pin_to_cpu(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).with_context(|| format!("CPU {cpu}"))
}
