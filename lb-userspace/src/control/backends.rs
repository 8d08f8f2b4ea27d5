//! The backends of all services, and what the network says of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Instant,
};

use tracing::debug;

use super::{
    neighbours::Resolution,
    network::{Interface, Mac, Neighbour, Network, NetworkError, Route},
};
use crate::{
    balancer::BackendState,
    config::{Forward, Service},
    datapath::{BackendOwner, TableSet},
};

/// As many as the program reads through.
const VLAN_TAGS_MAX: usize = 2;

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
    /// The name of the interface that leads to it.
    pub interface: String,
    /// The number of the interface that its packets come in on, and go out of again.
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
        if network.take_routes_changed()
            && let Err(error) = self.refresh_routes(network).await
        {
            network.set_routes_changed();
            return Err(error);
        }
        let view = View::new(&self.interfaces, interfaces, network.neighbours().await?, Instant::now());
        let mut changes = Vec::new();
        let mut asked = BTreeSet::new();
        for (owner, tracked) in &mut self.all {
            let Seen { state, reached, to_ask } = view.look(tracked);
            if tracked.state != state {
                changes.push(Change { backend: *owner, state: state.clone() });
            }
            tracked.state = state;
            tracked.reached = reached;
            // Services often share backends.
            if let Some(ifindex) = to_ask.filter(|ifindex| ask && asked.insert((*ifindex, tracked.address)))
                && let Err(error) = network.ask(ifindex, tracked.address).await
            {
                // As while an interface is down. The backend's state says what comes of it.
                debug!("{}: {error}", tracked.address);
            }
        }
        Ok(changes)
    }

    async fn refresh_routes(&mut self, network: &Network) -> Result<(), NetworkError> {
        let mut routes = HashMap::new();
        for address in self.all.values().map(|tracked| tracked.address).collect::<BTreeSet<_>>() {
            if let IpAddr::V4(v4) = address {
                routes.insert(address, network.route(v4).await?);
            }
        }
        for tracked in self.all.values_mut() {
            tracked.route = routes.get(&tracked.address).copied().flatten();
        }
        Ok(())
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

/// The network at one moment.
struct View<'a> {
    /// The interfaces that the program is on.
    filtered: &'a [String],
    interfaces: HashMap<u32, (&'a str, &'a Interface)>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
    now: Instant,
}

/// What a [`View`] shows of a backend.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    state: BackendState,
    reached: Option<Reached>,
    /// The interface on which the kernel is to be asked for it.
    to_ask: Option<u32>,
}

impl<'a> View<'a> {
    fn new(
        filtered: &'a [String],
        interfaces: &'a Interfaces,
        neighbours: HashMap<(u32, IpAddr), Neighbour>,
        now: Instant,
    ) -> Self {
        let by_index =
            |(name, interface): (&'a String, &'a Interface)| (interface.index, (name.as_str(), interface));
        Self { filtered, interfaces: interfaces.iter().map(by_index).collect(), neighbours, now }
    }

    fn look(&self, tracked: &mut Tracked) -> Seen {
        let unused = |state| Seen { state, reached: None, to_ask: None };
        let Some(route) = tracked.route.filter(|route| !route.local) else {
            return unused(BackendState::NoRoute);
        };
        if let Some(gateway) = route.gateway {
            return unused(BackendState::BehindRouter { gateway });
        }
        let Some((name, interface)) = self.interfaces.get(&route.index) else {
            return unused(BackendState::NoRoute);
        };
        let Some(ifindex) = self.arrives_on(route.index) else {
            return unused(BackendState::WrongInterface { interface: (*name).to_owned() });
        };
        let neighbour = self.neighbours.get(&(route.index, tracked.address)).copied();
        tracked.resolution.observe(neighbour, self.now);
        let sure = matches!(neighbour, Some(Neighbour::Known { fresh: true, .. }));
        let to_ask = (!sure).then_some(route.index);
        match (tracked.resolution.mac(), interface.mac) {
            (Some(mac), Some(source_mac)) => {
                let reached = Reached { interface: (*name).to_owned(), ifindex, mac, source_mac };
                Seen { state: BackendState::Up, reached: Some(reached), to_ask }
            }
            _ => {
                let resolving = matches!(tracked.resolution, Resolution::Resolving { .. });
                let state = if resolving { BackendState::Resolving } else { BackendState::NoNeighbour };
                Seen { state, reached: None, to_ask }
            }
        }
    }

    /// The filtered interface that frames of this one come in on: itself, or the one below a VLAN. A frame goes back
    /// with the tags it came with.
    fn arrives_on(&self, mut index: u32) -> Option<u32> {
        for _ in 0..=VLAN_TAGS_MAX {
            let (name, interface) = self.interfaces.get(&index)?;
            if self.filtered.iter().any(|filtered| filtered == name) {
                return Some(index);
            }
            index = interface.below?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11));
    const MAC: Mac = [2, 0, 0, 0, 0, 11];
    const OURS: Mac = [2, 0, 0, 0, 0, 1];

    fn interfaces() -> Interfaces {
        let interface = |index, below| Interface { index, mac: Some(OURS), below, xdp: None };
        let named = |(name, interface): (&str, Interface)| (name.to_owned(), interface);
        [
            ("eth0", interface(2, None)),
            ("eth1", interface(3, None)),
            ("eth0.10", interface(4, Some(2))),
            ("eth0.10.20", interface(5, Some(4))),
            ("eth1.10", interface(6, Some(3))),
        ]
        .map(named)
        .into()
    }

    fn seen(route: Option<Route>, neighbour: Option<Neighbour>) -> Seen {
        let now = Instant::now();
        let neighbours = route.zip(neighbour).map(|(route, neighbour)| ((route.index, BACKEND), neighbour));
        let interfaces = interfaces();
        let filtered = ["eth0".to_owned()];
        let view = View::new(&filtered, &interfaces, neighbours.into_iter().collect(), now);
        view.look(&mut Tracked {
            address: BACKEND,
            route,
            resolution: Resolution::Resolving { since: now },
            state: BackendState::Resolving,
            reached: None,
        })
    }

    #[test]
    fn a_backend_is_up_or_says_why_not() {
        let on = |index| Some(Route { index, gateway: None, local: false });
        let known = Some(Neighbour::Known { mac: MAC, fresh: false });
        let gateway = IpAddr::from([10, 0, 0, 1]);
        let wrong = |name: &str| BackendState::WrongInterface { interface: name.to_owned() };
        for (route, neighbour, state, to_ask) in [
            (None, None, BackendState::NoRoute, None),
            (Some(Route { index: 2, gateway: None, local: true }), known, BackendState::NoRoute, None),
            (
                Some(Route { index: 2, gateway: Some(gateway), local: false }),
                known,
                BackendState::BehindRouter { gateway },
                None,
            ),
            (on(3), known, wrong("eth1"), None),
            (on(6), known, wrong("eth1.10"), None),
            (on(9), known, BackendState::NoRoute, None),
            (on(2), None, BackendState::Resolving, Some(2)),
            (on(2), Some(Neighbour::Failed), BackendState::NoNeighbour, Some(2)),
            (on(2), known, BackendState::Up, Some(2)),
            (on(2), Some(Neighbour::Known { mac: MAC, fresh: true }), BackendState::Up, None),
        ] {
            let seen = seen(route, neighbour);
            assert_eq!((&seen.state, seen.to_ask), (&state, to_ask), "{route:?} {neighbour:?}");
            assert_eq!(seen.reached.is_some(), state.is_up());
        }
    }

    #[test]
    fn frames_of_a_vlan_go_back_where_they_came_in() {
        for index in [4, 5] {
            let route = Route { index, gateway: None, local: false };
            let seen = seen(Some(route), Some(Neighbour::Known { mac: MAC, fresh: true }));
            assert_eq!(seen.reached.map(|reached| reached.ifindex), Some(2), "through {index}");
        }
    }
}
