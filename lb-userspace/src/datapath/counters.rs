//! The counters of the program, summed over all CPUs.

use aya::maps::{HashMap, IterableMap as _, Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::{
    counter::{Counter, counter_index},
    maps::{BACKEND_COUNTERS, COUNTERS, SCRATCH, SESSIONS, STATEFUL, TRANSLATIONS},
    nat::{Translation, TranslationKey},
    reason::{self, Reason},
    scratch::Scratch,
    session::{Session, StatefulEntry, TokenKey},
};

use super::{DatapathError, batch};

/// The maps of counters.
pub struct Counters {
    counters: PerCpuArray<MapData, Counter>,
    backends: PerCpuArray<MapData, Counter>,
    scratch: PerCpuArray<MapData, Scratch>,
    sessions: HashMap<MapData, TokenKey, Session>,
    stateful: HashMap<MapData, TokenKey, StatefulEntry>,
    translations: HashMap<MapData, TranslationKey, Translation>,
    cpus: usize,
}

/// Number of tokens in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Token cache entries: BEARER tokens of services without limits.
    pub stateless: u64,
    /// Stateful entries: PROOF tokens, and tokens of services with limits.
    pub stateful: u64,
}

/// One reading of a counter map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals(Vec<Counter>);

impl Totals {
    /// The counter of a service index and reason, in a reading of [`Counters::services`].
    pub fn of(&self, service_index: u32, reason: Reason) -> Counter {
        self.at(counter_index(service_index, reason))
    }

    /// Reads a whole per-CPU array.
    pub(super) fn read(name: &'static str, map: &MapData, cpus: usize) -> Result<Self, DatapathError> {
        let all = batch::array::<Counter>(map, cpus).map_err(|source| DatapathError::Map {
            map: name,
            action: "read it",
            source,
        })?;
        let sum = |per_cpu: &[Counter]| {
            per_cpu.iter().fold(Counter::default(), |sum, one| Counter {
                packets: sum.packets.wrapping_add(one.packets),
                bytes: sum.bytes.wrapping_add(one.bytes),
            })
        };
        Ok(Self(all.chunks_exact(cpus).map(sum).collect()))
    }

    /// The counter of an index.
    pub fn at(&self, index: u32) -> Counter {
        self.0.get(index as usize).copied().unwrap_or_default()
    }
}

impl Counters {
    pub(super) fn new(
        [counters, backends, scratch, sessions, stateful, translations]: [Map; 6],
        cpus: usize,
    ) -> Result<Self, DatapathError> {
        let opened = |map| move |source| DatapathError::Map { map, action: "open it", source };
        Ok(Self {
            counters: counters.try_into().map_err(opened(COUNTERS))?,
            backends: backends.try_into().map_err(opened(BACKEND_COUNTERS))?,
            scratch: scratch.try_into().map_err(opened(SCRATCH))?,
            sessions: sessions.try_into().map_err(opened(SESSIONS))?,
            stateful: stateful.try_into().map_err(opened(STATEFUL))?,
            translations: translations.try_into().map_err(opened(TRANSLATIONS))?,
            cpus,
        })
    }

    /// Packets and bytes by service index and reason.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn services(&self) -> Result<Totals, DatapathError> {
        Totals::read(COUNTERS, self.counters.map(), self.cpus)
    }

    /// Packets and bytes by a backend's counter.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn backends(&self) -> Result<Totals, DatapathError> {
        Totals::read(BACKEND_COUNTERS, self.backends.map(), self.cpus)
    }

    /// HMAC verifications of all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn hmacs(&self) -> Result<u64, DatapathError> {
        let reading = |source| DatapathError::Map { map: SCRATCH, action: "read it", source };
        let per_cpu = self.scratch.get(&0, 0).map_err(reading)?;
        Ok(per_cpu.iter().map(|scratch| scratch.hmacs).sum())
    }

    /// Number of token cache entries and stateful entries. Reads all of them: milliseconds for hundreds of thousands.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn sessions(&self) -> Result<Sessions, DatapathError> {
        Ok(Sessions {
            stateless: entries::<TokenKey, Session>(SESSIONS, self.sessions.map())?,
            stateful: entries::<TokenKey, StatefulEntry>(STATEFUL, self.stateful.map())?,
        })
    }

    /// Calls `each` with the token cache entries. An entry that is being written may be torn.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn each_session(&self, each: impl FnMut(&TokenKey, &Session)) -> Result<(), DatapathError> {
        each_entry(SESSIONS, self.sessions.map(), each)
    }

    /// Calls `each` with the stateful entries; see [`Counters::each_session`].
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn each_stateful(&self, each: impl FnMut(&TokenKey, &StatefulEntry)) -> Result<(), DatapathError> {
        each_entry(STATEFUL, self.stateful.map(), each)
    }

    /// Number of translations, including those that have timed out. Reads all of them.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn translations(&self) -> Result<u64, DatapathError> {
        entries::<TranslationKey, Translation>(TRANSLATIONS, self.translations.map())
    }

    /// Sets the counters of a service index to zero, before another service gets the index.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn clear_service(&mut self, service_index: u32) -> Result<(), DatapathError> {
        let first = service_index * reason::CAPACITY as u32;
        for index in first..first + reason::CAPACITY as u32 {
            clear(&mut self.counters, COUNTERS, index, self.cpus)?;
        }
        Ok(())
    }

    /// Sets the counter of a backend to zero, before another backend gets it.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn clear_backend(&mut self, counter: u32) -> Result<(), DatapathError> {
        clear(&mut self.backends, BACKEND_COUNTERS, counter, self.cpus)
    }
}

fn entries<K: aya::Pod + Default, V: aya::Pod + Default>(
    name: &'static str,
    map: &MapData,
) -> Result<u64, DatapathError> {
    let mut count = 0;
    each_entry::<K, V>(name, map, |_, _| count += 1)?;
    Ok(count)
}

fn each_entry<K: aya::Pod + Default, V: aya::Pod + Default>(
    name: &'static str,
    map: &MapData,
    mut each: impl FnMut(&K, &V),
) -> Result<(), DatapathError> {
    batch::lookup_all::<K, V>(map, 1, 4096, |keys, values| {
        keys.iter().zip(values).for_each(|(key, value)| each(key, value));
    })
    .map_err(|source| DatapathError::Map { map: name, action: "read it", source })
}

fn clear(
    map: &mut PerCpuArray<MapData, Counter>,
    name: &'static str,
    index: u32,
    cpus: usize,
) -> Result<(), DatapathError> {
    let zeros = PerCpuValues::try_from(vec![Counter::default(); cpus])
        .map_err(aya::maps::MapError::IoError)
        .and_then(|zeros| map.set(index, zeros, 0));
    zeros.map_err(|source| DatapathError::Map { map: name, action: "write it", source })
}
