//! The backends of all services, and what the network says of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Instant,
};

use super::{
    neighbours::Resolution,
    network::{Interface, Mac, Neighbour, Network, NetworkError, Route},
};
use crate::{
    balancer::BackendState,
    config::{Forward, Service},
    datapath::{BackendOwner, TableSet},
};

/// Interfaces by name.
pub type Interfaces = HashMap<String, Interface>;

/// All backends that packets could be sent to.
#[derive(Debug)]
pub struct Backends {
    all: BTreeMap<BackendOwner, Tracked>,
    /// The interfaces that the program is on.
    interfaces: Vec<String>,
}

#[derive(Debug)]
struct Tracked {
    address: IpAddr,
    route: Option<Route>,
    resolution: Resolution,
    state: BackendState,
    reached: Option<Reached>,
}

/// How a backend that is up is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The interface's name.
    pub interface: String,
    /// The interface's number.
    pub ifindex: u32,
    /// The backend's MAC address.
    pub mac: Mac,
    /// The interface's MAC address.
    pub source_mac: Mac,
}

/// A backend that is in another state than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The backend.
    pub backend: BackendOwner,
    /// What it is now.
    pub state: BackendState,
}

impl Backends {
    /// Those of the configuration, with the MAC addresses that the kernel's tables have for them.
    pub fn new(services: &[Service], interfaces: &[String], live: &TableSet) -> Self {
        let now = Instant::now();
        let ids: HashMap<u32, u32> =
            live.services().map(|(_, service)| (service.index, service.id)).collect();
        let remembered: HashMap<BackendOwner, Mac> = live
            .backends()
            .iter()
            .filter_map(|backend| {
                let service_id = *ids.get(&u32::from(backend.service_index))?;
                Some((BackendOwner { service_id, backend_id: backend.backend_id }, backend.destination_mac))
            })
            .collect();
        let mut all = BTreeMap::new();
        for service in services.iter().filter(|service| service.forward == Forward::L2) {
            for backend in &service.backends {
                let owner = BackendOwner { service_id: service.id, backend_id: backend.id };
                let resolution = match remembered.get(&owner) {
                    Some(mac) => Resolution::remembered(*mac, now),
                    None => Resolution::Resolving { since: now },
                };
                let tracked = Tracked {
                    address: backend.address,
                    route: None,
                    resolution,
                    state: BackendState::Resolving,
                    reached: None,
                };
                all.insert(owner, tracked);
            }
        }
        Self { all, interfaces: interfaces.to_vec() }
    }

    /// The addresses whose neighbour entries matter.
    pub fn addresses_of(services: &[Service]) -> BTreeSet<IpAddr> {
        services.iter().flat_map(|service| &service.backends).map(|backend| backend.address).collect()
    }

    /// All of them.
    pub fn owners(&self) -> impl Iterator<Item = BackendOwner> {
        self.all.keys().copied()
    }

    /// Those of a service that may be used.
    pub fn up(&self, service_id: u32) -> impl Iterator<Item = (BackendOwner, &Reached)> {
        let first = BackendOwner { service_id, backend_id: 0 };
        let last = BackendOwner { service_id, backend_id: u16::MAX };
        let of_service = self.all.range(first..=last);
        of_service.filter_map(|(owner, tracked)| Some((*owner, tracked.reached.as_ref()?)))
    }

    /// Looks at routes, where they may have changed, and neighbours; with `ask`, asks for those that the kernel is not
    /// sure of. Returns what changed.
    ///
    /// # Errors
    /// If the kernel cannot be asked. Then everything stays as it was.
    pub async fn refresh(
        &mut self,
        network: &Network,
        interfaces: &Interfaces,
        ask: bool,
    ) -> Result<Vec<Change>, NetworkError> {
        if self.all.is_empty() {
            return Ok(Vec::new());
        }
        if network.take_routes_changed() {
            for tracked in self.all.values_mut() {
                if let IpAddr::V4(address) = tracked.address {
                    tracked.route = network.route(address).await?;
                }
            }
        }
        let neighbours = network.neighbours().await?;
        let now = Instant::now();
        let names: HashMap<u32, &String> =
            interfaces.iter().map(|(name, interface)| (interface.index, name)).collect();
        let mut changes = Vec::new();
        for (owner, tracked) in &mut self.all {
            let (state, reached, to_ask) =
                look(tracked, &self.interfaces, interfaces, &names, &neighbours, now);
            if tracked.state != state {
                changes.push(Change { backend: *owner, state: state.clone() });
            }
            tracked.state = state;
            tracked.reached = reached;
            if let Some(ifindex) = to_ask.filter(|_| ask) {
                network.ask(ifindex, tracked.address).await?;
            }
        }
        Ok(changes)
    }

    /// Whether the first answer of one is still to come.
    pub fn any_resolving(&self) -> bool {
        self.all.values().any(|tracked| tracked.state == BackendState::Resolving)
    }

    /// What is known of a backend; `None` for one that is never sent to, of a local service.
    pub fn get(&self, owner: BackendOwner) -> Option<(&BackendState, Option<&Reached>)> {
        let tracked = self.all.get(&owner)?;
        Some((&tracked.state, tracked.reached.as_ref()))
    }
}

/// The state of a backend, and the interface to ask for it on.
fn look(
    tracked: &mut Tracked,
    attached: &[String],
    interfaces: &Interfaces,
    names: &HashMap<u32, &String>,
    neighbours: &HashMap<(u32, IpAddr), Neighbour>,
    now: Instant,
) -> (BackendState, Option<Reached>, Option<u32>) {
    let Some(route) = tracked.route.filter(|route| !route.local) else {
        return (BackendState::NoRoute, None, None);
    };
    if let Some(gateway) = route.gateway {
        return (BackendState::BehindRouter { gateway }, None, None);
    }
    let Some(name) = names.get(&route.index).copied() else {
        return (BackendState::NoRoute, None, None);
    };
    if !attached.contains(name) {
        return (BackendState::WrongInterface { interface: name.clone() }, None, None);
    }
    let neighbour = neighbours.get(&(route.index, tracked.address)).copied();
    tracked.resolution.observe(neighbour, now);
    let to_ask = match neighbour {
        Some(Neighbour::Known { fresh: true, .. }) => None,
        _ => Some(route.index),
    };
    let source_mac = interfaces.get(name).and_then(|interface| interface.mac);
    match (tracked.resolution, tracked.resolution.mac(), source_mac) {
        (_, Some(mac), Some(source_mac)) => {
            let reached = Reached { interface: name.clone(), ifindex: route.index, mac, source_mac };
            (BackendState::Up, Some(reached), to_ask)
        }
        (Resolution::Resolving { .. }, ..) => (BackendState::Resolving, None, to_ask),
        _ => (BackendState::NoNeighbour, None, to_ask),
    }
}
