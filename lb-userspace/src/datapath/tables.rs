//! Services, MAC addresses, rates, Maglev tables and backends. All of them are written into the inactive bank; one
//! store then makes this bank active. Reads use the active bank.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, IterableMap as _, MapData, MapError};
use lb_common::{
    backend::{Backend, PinnedKey},
    balance::{MaglevTable, TABLE_ROOM},
    control::Tables as TablesWord,
    mac::{MAC_BUCKET_LEN, MAC_BUCKETS, MACS_MAX, MacBucket, MacEntry},
    maps::{BACKENDS, BACKENDS_MAX, BANKS, MACS, MAGLEV, PINNED, RATES, SERVICES, SERVICES_MAX},
    rate::{CLASSES, Rate, RateTable},
    service::{BUCKET_LEN, BUCKETS, FLAG_RATED, Service, ServiceBucket, ServiceEntry, ServiceKey},
};

use super::{DatapathError, MappedControlPage, batch};

/// How long a packet may use entries that it looked up before a change: far longer than any packet takes.
pub const GRACE: Duration = Duration::from_millis(50);

/// Number of seeds to try for a service table. One of the first few works for any number of services.
const SEEDS: u32 = 1 << 16;

/// The desired content of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Each service by its address and port. The address entries are added to them.
    pub services: Vec<(ServiceKey, Service)>,
    /// The MAC addresses that are filtered on each interface, and what happens to frames to others.
    pub macs: BTreeSet<MacEntry>,
    /// Rates by service index, for services with `FLAG_RATED`; without a table, nothing is limited.
    pub rates: BTreeMap<u32, Box<RateTable>>,
    /// Maglev tables by service index, for services with usable backends.
    pub maglev: BTreeMap<u32, Box<MaglevTable>>,
    /// The usable backends; an entry of a Maglev table is an index into this list plus one.
    pub backends: Vec<Backend>,
}

/// A [`Snapshot`] in the layout of the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSet {
    seed: u32,
    buckets: Vec<ServiceBucket>,
    macs: Vec<MacBucket>,
    /// Rates of each rated service.
    rates: BTreeMap<u32, Box<RateTable>>,
    maglev: BTreeMap<u32, Box<MaglevTable>>,
    backends: Vec<Backend>,
    /// Service index and backend id → index of the backend.
    pinned: BTreeMap<(u16, u16), u32>,
}

/// The maps of the tables.
pub struct Tables {
    control_page: Arc<MappedControlPage>,
    services: Array<MapData, ServiceBucket>,
    macs: Array<MapData, MacBucket>,
    rates: Array<MapData, RateTable>,
    maglev: Array<MapData, MaglevTable>,
    backends: Array<MapData, Backend>,
    pinned: HashMap<MapData, PinnedKey, u32>,
    grace: Duration,
    flipped_at: Instant,
}

impl TableSet {
    /// Computes the layout. The same snapshot always gives the same set.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn new(snapshot: &Snapshot) -> Result<Self, DatapathError> {
        let full =
            |what, wanted, capacity: u32| DatapathError::Full { what, wanted, capacity: capacity as usize };
        let (services, backends) = (&snapshot.services, &snapshot.backends);
        if services.len() >= SERVICES_MAX as usize {
            return Err(full("services", services.len(), SERVICES_MAX - 1));
        }
        if backends.len() > BACKENDS_MAX as usize {
            return Err(full("backends", backends.len(), BACKENDS_MAX));
        }
        if snapshot.macs.len() > MACS_MAX {
            return Err(full("MAC addresses of interfaces", snapshot.macs.len(), MACS_MAX as u32));
        }
        let entries = with_address_entries(services);
        let (seed, buckets, macs) = (0..SEEDS)
            .find_map(|seed| Some((seed, fill(&entries, seed)?, fill_macs(&snapshot.macs, seed)?)))
            .ok_or_else(|| {
                let both = entries.len() + snapshot.macs.len();
                full("service entries and MAC addresses of interfaces in one table", both, BUCKETS)
            })?;
        let pinned = backends
            .iter()
            .zip(0..)
            .map(|(backend, place)| ((backend.service_index, backend.backend_id), place))
            .collect();
        let rates = rated(&buckets)
            .map(|index| (index, snapshot.rates.get(&index).cloned().unwrap_or_else(unlimited)))
            .collect();
        let (maglev, backends) = (snapshot.maglev.clone(), backends.clone());
        Ok(Self { seed, buckets, macs, rates, maglev, backends, pinned })
    }

    /// The services, without the address entries.
    pub fn services(&self) -> impl Iterator<Item = (ServiceKey, Service)> {
        let entries = self.buckets.iter().flatten();
        entries
            .filter(|entry| entry.service.index != 0 && entry.key.port_be != 0)
            .map(|entry| (entry.key, entry.service))
    }

    /// The backends.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The differences from another set, one per line.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if (self.seed, &self.buckets) != (other.seed, &other.buckets) {
            found.push("the service table".to_owned());
        }
        if self.macs != other.macs {
            found.push("the MAC addresses of the interfaces".to_owned());
        }
        let differing = differing(&self.rates, &other.rates);
        found.extend(differing.map(|index| format!("the rates of service index {index}")));
        let differing = self::differing(&self.maglev, &other.maglev);
        found.extend(differing.map(|index| format!("the Maglev table of service index {index}")));
        if self.backends != other.backends {
            found.push("the backends".to_owned());
        }
        if self.pinned != other.pinned {
            found.push("the index of backends by id".to_owned());
        }
        found
    }
}

/// The indices whose tables differ.
fn differing<'t, T: PartialEq>(
    tables: &'t BTreeMap<u32, T>,
    others: &'t BTreeMap<u32, T>,
) -> impl Iterator<Item = &'t u32> {
    let all = tables.keys().chain(others.keys().filter(|index| !tables.contains_key(index)));
    all.filter(|index| tables.get(index) != others.get(index))
}

/// The indices of services with rates.
fn rated(buckets: &[ServiceBucket]) -> impl Iterator<Item = u32> {
    let services = buckets.iter().flatten().map(|entry| entry.service);
    services.filter(|service| service.flags & FLAG_RATED != 0).map(|service| service.index)
}

fn unlimited() -> Box<RateTable> {
    Box::new([Rate::default(); CLASSES])
}

/// An address entry for each address of services: a copy of the service with the lowest id.
fn with_address_entries(services: &[(ServiceKey, Service)]) -> Vec<ServiceEntry> {
    let mut lowest = BTreeMap::<[u32; 4], Service>::new();
    for (key, service) in services {
        let entry = lowest.entry(key.address_be).or_insert(*service);
        if service.id < entry.id {
            *entry = *service;
        }
    }
    let own = services.iter().map(|(key, service)| ServiceEntry { key: *key, service: *service });
    let address = lowest
        .into_iter()
        .map(|(address_be, service)| ServiceEntry { key: ServiceKey { address_be, port_be: 0 }, service });
    let mut entries: Vec<_> = own.chain(address).collect();
    entries.sort_by_key(|entry| (entry.key.address_be, entry.key.port_be));
    entries
}

/// `None` if a bucket overflows.
fn fill(entries: &[ServiceEntry], seed: u32) -> Option<Vec<ServiceBucket>> {
    let mut buckets = vec![[ServiceEntry::default(); BUCKET_LEN]; BUCKETS as usize];
    for entry in entries {
        let bucket = &mut buckets[entry.key.bucket(seed) as usize];
        *bucket.iter_mut().find(|place| place.service.index == 0)? = *entry;
    }
    Some(buckets)
}

/// `None` if a bucket overflows.
fn fill_macs(entries: &BTreeSet<MacEntry>, seed: u32) -> Option<Vec<MacBucket>> {
    let mut buckets = vec![[MacEntry::default(); MAC_BUCKET_LEN]; MAC_BUCKETS as usize];
    for entry in entries {
        let bucket = &mut buckets[entry.mac.bucket(entry.ifindex, seed) as usize];
        *bucket.iter_mut().find(|place| place.ifindex == 0)? = *entry;
    }
    Some(buckets)
}

impl Tables {
    pub(super) fn new(
        control_page: Arc<MappedControlPage>,
        [services, macs, rates, maglev, backends, pinned]: [aya::maps::Map; 6],
        grace: Duration,
    ) -> Result<Self, DatapathError> {
        let opened = |map| move |source| DatapathError::Map { map, action: "open it", source };
        Ok(Self {
            control_page,
            services: services.try_into().map_err(opened(SERVICES))?,
            macs: macs.try_into().map_err(opened(MACS))?,
            rates: rates.try_into().map_err(opened(RATES))?,
            maglev: maglev.try_into().map_err(opened(MAGLEV))?,
            backends: backends.try_into().map_err(opened(BACKENDS))?,
            pinned: pinned.try_into().map_err(opened(PINNED))?,
            grace,
            // Another process may have changed the active bank a moment ago.
            flipped_at: Instant::now(),
        })
    }

    /// The active tables.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn active(&self) -> Result<TableSet, DatapathError> {
        let TablesWord { bank, seed, .. } = self.control_page.tables();
        self.read(bank, seed)
    }

    /// Time until [`Tables::publish`] may write.
    pub fn grace_left(&self) -> Duration {
        self.grace.saturating_sub(self.flipped_at.elapsed())
    }

    /// Writes the inactive bank, then makes it active. If a write fails, the active bank is unchanged.
    ///
    /// # Errors
    /// `Grace` if called too early; also if a map cannot be written.
    pub fn publish(&mut self, set: &TableSet) -> Result<(), DatapathError> {
        let left = self.grace_left();
        if !left.is_zero() {
            return Err(DatapathError::Grace(left));
        }
        let TablesWord { bank, generation, .. } = self.control_page.tables();
        let (bank, generation) = ((bank + 1) % BANKS, generation.wrapping_add(1));
        self.control_page.set_begun(generation);
        self.write(bank, set)?;
        self.control_page.set_tables(TablesWord { bank, seed: set.seed, generation });
        self.flipped_at = Instant::now();
        Ok(())
    }

    fn read(&self, bank: u32, seed: u32) -> Result<TableSet, DatapathError> {
        let reading = |map| move |source| DatapathError::Map { map, action: "read it", source };
        let all = batch::array(self.services.map(), 1).map_err(reading(SERVICES))?;
        let buckets: Vec<ServiceBucket> =
            all.into_iter().skip((bank * BUCKETS) as usize).take(BUCKETS as usize).collect();
        let all = batch::array(self.macs.map(), 1).map_err(reading(MACS))?;
        let macs: Vec<MacBucket> =
            all.into_iter().skip((bank * MAC_BUCKETS) as usize).take(MAC_BUCKETS as usize).collect();
        let mut rates = BTreeMap::new();
        for index in rated(&buckets) {
            let table = self.rates.get(&(bank * SERVICES_MAX + index), 0).map_err(reading(RATES))?;
            rates.insert(index, Box::new(table));
        }
        let mut maglev = BTreeMap::new();
        let mut has_backends = [false; SERVICES_MAX as usize];
        let all = batch::array::<Backend>(self.backends.map(), 1).map_err(reading(BACKENDS))?;
        let backends: Vec<Backend> = all
            .into_iter()
            .skip((bank * BACKENDS_MAX) as usize)
            .take(BACKENDS_MAX as usize)
            .take_while(|backend| backend.backend_id != 0)
            .collect();
        for backend in &backends {
            if let Some(has) = has_backends.get_mut(usize::from(backend.service_index)) {
                *has = true;
            }
        }
        for (index, _) in (0..SERVICES_MAX).zip(has_backends).filter(|(_, has)| *has) {
            let table = self.maglev.get(&(bank * SERVICES_MAX + index), 0).map_err(reading(MAGLEV))?;
            maglev.insert(index, Box::new(table));
        }
        let mut pinned = BTreeMap::new();
        batch::lookup_all::<PinnedKey, u32>(self.pinned.map(), 1, 1024, |keys, places| {
            let of_bank = keys.iter().zip(places).filter(|(key, _)| key.bank == bank);
            pinned.extend(of_bank.map(|(key, place)| ((key.service_index, key.backend_id), *place)));
        })
        .map_err(reading(PINNED))?;
        Ok(TableSet { seed, buckets, macs, rates, maglev, backends, pinned })
    }

    fn write(&mut self, bank: u32, set: &TableSet) -> Result<(), DatapathError> {
        let writing = |map| move |source| DatapathError::Map { map, action: "write it", source };
        let there = self.read(bank, set.seed)?;
        for ((index, old), new) in (bank * BUCKETS..).zip(&there.buckets).zip(&set.buckets) {
            if old != new {
                self.services.set(index, new, 0).map_err(writing(SERVICES))?;
            }
        }
        for ((index, old), new) in (bank * MAC_BUCKETS..).zip(&there.macs).zip(&set.macs) {
            if old != new {
                self.macs.set(index, new, 0).map_err(writing(MACS))?;
            }
        }
        for (index, table) in &set.rates {
            let table: &RateTable = table;
            self.rates.set(bank * SERVICES_MAX + index, table, 0).map_err(writing(RATES))?;
        }
        // A service without backends has an empty table, not that of the service that had its index before.
        let indices = set.services().map(|(_, service)| service.index);
        let empty = Box::new([0; TABLE_ROOM]);
        for index in indices {
            let table: &MaglevTable = set.maglev.get(&index).unwrap_or(&empty);
            self.maglev.set(bank * SERVICES_MAX + index, table, 0).map_err(writing(MAGLEV))?;
        }
        // An empty entry marks the end.
        let terminated = set.backends.iter().copied().chain([Backend::default()]);
        for (index, backend) in (bank * BACKENDS_MAX..).zip(terminated.take(BACKENDS_MAX as usize)) {
            self.backends.set(index, backend, 0).map_err(writing(BACKENDS))?;
        }
        for (service_index, backend_id) in there.pinned.keys().filter(|key| !set.pinned.contains_key(key)) {
            let key = PinnedKey { bank, service_index: *service_index, backend_id: *backend_id };
            match self.pinned.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(writing(PINNED)(source)),
            }
        }
        for ((service_index, backend_id), place) in &set.pinned {
            let key = PinnedKey { bank, service_index: *service_index, backend_id: *backend_id };
            self.pinned.insert(key, place, 0).map_err(writing(PINNED))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::mac::Mac;

    use super::*;

    fn service(id: u32, index: u32, port: u16) -> (ServiceKey, Service) {
        let key = ServiceKey::v4(u32::from_ne_bytes([192, 0, 2, 1]), port.to_be());
        (key, Service { id, index, ..Service::default() })
    }

    #[test]
    fn an_address_has_one_entry_of_its_lowest_service() {
        let set = TableSet::new(&Snapshot {
            services: vec![service(9, 1, 1000), service(3, 2, 2000), service(5, 3, 3000)],
            ..Snapshot::default()
        });
        let set = set.expect("three services fit");
        let address_entries: Vec<_> = set
            .buckets
            .iter()
            .flatten()
            .filter(|entry| entry.service.index != 0 && entry.key.port_be == 0)
            .collect();
        assert_eq!(address_entries.len(), 1);
        assert_eq!(address_entries[0].service.id, 3);
        assert_eq!(set.services().count(), 3);
    }

    #[test]
    fn as_many_services_as_a_node_can_have_fit() {
        for same_address in [true, false] {
            let services = (1..SERVICES_MAX)
                .map(|i| {
                    let (mut key, service) = service(i, i, 7000 + if same_address { i as u16 } else { 0 });
                    key.address_be[3] =
                        u32::from_ne_bytes([10, 0, 0, if same_address { 1 } else { i as u8 }]);
                    (key, service)
                })
                .collect();
            let set = TableSet::new(&Snapshot { services, ..Snapshot::default() }).expect("they fit");
            assert_eq!(set.services().count(), SERVICES_MAX as usize - 1);
        }
    }

    #[test]
    fn as_many_mac_addresses_as_there_may_be_fit() {
        for ifindex in [1, 70_000, u32::MAX / 2] {
            let entry = |i: u32| {
                let [.., high, low] = i.to_be_bytes();
                let mac = Mac::new([2, 0, 0, 0, high, low]);
                MacEntry { mac, ifindex: ifindex + i % 4, passes: 0, generic: 0 }
            };
            let macs: BTreeSet<_> = (0..MACS_MAX as u32).map(entry).collect();
            let set =
                TableSet::new(&Snapshot { macs: macs.clone(), ..Snapshot::default() }).expect("they fit");
            assert_eq!(set.macs.as_flattened().iter().filter(|entry| entry.ifindex != 0).count(), MACS_MAX);
            let one_more = MacEntry { mac: Mac::OTHERS, ifindex: 1, passes: 0, generic: 0 };
            let macs = macs.into_iter().chain([one_more]).collect();
            let refused = TableSet::new(&Snapshot { macs, ..Snapshot::default() });
            assert!(matches!(refused, Err(DatapathError::Full { .. })));
        }
    }

    /// MAC addresses that containers and virtual machines choose for their devices, at random or so that their hashes
    /// collide.
    #[test]
    fn mac_addresses_that_nobody_chose_for_this_table_fit() {
        let set_of = |macs: BTreeSet<MacEntry>| TableSet::new(&Snapshot { macs, ..Snapshot::default() });
        let entry = |octets| MacEntry { mac: Mac::new(octets), ifindex: 2, passes: 0, generic: 0 };
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..40 {
            let octets = |_| [2, 0, random.u8(..), random.u8(..), random.u8(..), random.u8(..)];
            let macs: BTreeSet<_> = (0..MACS_MAX).map(octets).map(entry).collect();
            assert!(set_of(macs).is_ok());
        }
        // With a seed that is added before the multiplication, all five share a bucket for every seed.
        let alike = [
            [0x69, 0x1c, 0x15, 0xab],
            [0x3b, 0x9e, 0xda, 0xb4],
            [0x14, 0xe7, 0xeb, 0x51],
            [0x4f, 0xdc, 0x0d, 0x9e],
            [0x3a, 0x29, 0xcd, 0xc8],
        ];
        assert!(set_of(alike.map(|[a, b, c, d]| entry([2, 0, a, b, c, d])).into()).is_ok());
    }

    #[test]
    fn too_many_are_refused() {
        let services = (1..=SERVICES_MAX).map(|i| service(i, i, i as u16)).collect();
        let refused = TableSet::new(&Snapshot { services, ..Snapshot::default() });
        assert!(matches!(refused, Err(DatapathError::Full { .. })));
    }

    #[test]
    fn differences_are_named() {
        let (key, service) = service(1, 1, 1);
        let rated = (key, Service { flags: FLAG_RATED, ..service });
        let one = TableSet::new(&Snapshot { services: vec![rated], ..Snapshot::default() }).unwrap();
        let other = TableSet::new(&Snapshot {
            services: vec![rated],
            macs: [MacEntry { mac: Mac::new([2, 0, 0, 0, 0, 1]), ifindex: 2, passes: 0, generic: 0 }].into(),
            // The index of a service without rates.
            rates: [(1, Box::new([Rate::new(1, 1); CLASSES])), (2, unlimited())].into(),
            backends: vec![Backend { service_index: 1, backend_id: 4, ..Backend::default() }],
            maglev: [(1, Box::new([1; TABLE_ROOM]))].into(),
        })
        .unwrap();
        assert_eq!(one.differences(&one), Vec::<String>::new());
        assert_eq!(
            one.differences(&other).len(),
            5,
            "MAC addresses, rates, table, backends, places: {:?}",
            one.differences(&other)
        );
    }
}
