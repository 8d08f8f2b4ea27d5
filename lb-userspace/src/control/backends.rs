//! The backends of all services, and what the network says of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use tracing::debug;

use super::desired;
use crate::{
    config::{Config, Forward},
    datapath::{BackendOwner, TableSet},
    network::{
        BackendState, Interfaces, Mac, Network, NetworkError, Resolution, Route,
        resolve::{Seen, Target, View, Way},
    },
};

/// How often routes are asked for that have not been heard to change.
const ROUTES_EVERY: Duration = Duration::from_secs(10);

/// All backends that packets could be sent to.
#[derive(Debug)]
pub struct Backends {
    all: BTreeMap<BackendOwner, Tracked>,
    routes_at: Option<Instant>,
}

#[derive(Debug)]
struct Tracked {
    target: Target,
    resolution: Resolution,
    state: BackendState,
    way: Option<Way>,
}

impl Tracked {
    /// Takes another route, or the same again.
    fn lead(&mut self, route: Option<Route>) {
        let Self { target, resolution, .. } = self;
        target.route = route;
        let hop = target.next_hop();
        if hop.is_some() && target.last_hop.is_some_and(|last| Some(last) != hop) {
            // Another neighbour, whose MAC address is another.
            *resolution = Resolution::Resolving { since: Instant::now() };
        }
        target.last_hop = hop.or(target.last_hop);
    }

    /// Takes what was seen; returns whether the state is another. Until it is known whose MAC address a new route begins
    /// with, the way before it serves.
    fn follow(&mut self, Seen { state, way, .. }: Seen) -> bool {
        if state == BackendState::Resolving && self.way.is_some() {
            return false;
        }
        let changed = self.state != state;
        (self.state, self.way) = (state, way);
        changed
    }
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
    pub fn new(config: &Config, live: &TableSet) -> Self {
        let now = Instant::now();
        let ids: HashMap<u32, u32> =
            live.services().map(|(_, service)| (service.index, service.id)).collect();
        // By its address, too: of a backend that has moved, the old host's MAC address is not its own.
        let remembered: HashMap<(BackendOwner, [u32; 4]), Mac> = live
            .backends()
            .iter()
            .filter_map(|backend| {
                let service_id = *ids.get(&u32::from(backend.service_index))?;
                let owner = BackendOwner { service_id, backend_id: backend.backend_id };
                Some(((owner, backend.address_be), backend.destination_mac))
            })
            .collect();
        let mut all = BTreeMap::new();
        for service in config.services.iter().filter(|service| service.forward != Forward::Local) {
            for backend in &service.backends {
                let owner = BackendOwner { service_id: service.id, backend_id: backend.id };
                let resolution = match remembered.get(&(owner, desired::address_be(backend.address))) {
                    Some(mac) => Resolution::remembered(*mac, now),
                    None => Resolution::Resolving { since: now },
                };
                let target = Target {
                    address: backend.address,
                    forward: service.forward,
                    has_source: service.forward.encapsulates()
                        && config.tunnel_source(backend.address).is_some(),
                    route: None,
                    last_hop: None,
                };
                let tracked = Tracked { target, resolution, state: BackendState::Resolving, way: None };
                all.insert(owner, tracked);
            }
        }
        Self { all, routes_at: None }
    }

    /// All of them.
    pub fn owners(&self) -> impl Iterator<Item = BackendOwner> {
        self.all.keys().copied()
    }

    /// Those of a service that may be used.
    pub fn up(&self, service_id: u32) -> impl Iterator<Item = (BackendOwner, &Way)> {
        let first = BackendOwner { service_id, backend_id: 0 };
        let last = BackendOwner { service_id, backend_id: u16::MAX };
        let of_service = self.all.range(first..=last);
        of_service.filter_map(|(owner, tracked)| Some((*owner, tracked.way.as_ref()?)))
    }

    /// Looks at routes, where they may have changed, and neighbours; with `ask`, asks for those that the kernel is not
    /// sure of. `filtered` names the interfaces that the program is on. Returns what changed, and what could not be asked: then the rest is up to date all the same.
    ///
    /// # Errors
    /// If the neighbours cannot be read. Then all states stay as they were.
    pub async fn refresh(
        &mut self,
        network: &Network,
        interfaces: &Interfaces,
        filtered: &[String],
        ask: bool,
    ) -> Result<(Vec<Change>, Vec<NetworkError>), NetworkError> {
        if self.all.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let now = Instant::now();
        let due = self.routes_at.is_none_or(|at| now.duration_since(at) >= ROUTES_EVERY);
        let mut errors = Vec::new();
        // A way that has changed may lead to a neighbour that nobody has asked for yet.
        let changed = network.take_routes_changed();
        let ask = ask || changed;
        if changed || due {
            errors = self.refresh_routes(network).await;
            if errors.is_empty() {
                self.routes_at = Some(now);
            } else {
                network.set_routes_changed();
            }
        }
        let view = View::new(filtered, interfaces, network.neighbours().await?, now);
        let mut changes = Vec::new();
        let mut asked = BTreeSet::new();
        for (owner, tracked) in &mut self.all {
            let seen = view.look(&tracked.target, &mut tracked.resolution);
            let to_ask = seen.to_ask;
            if tracked.follow(seen) {
                changes.push(Change { backend: *owner, state: tracked.state.clone() });
            }
            // Services often share backends, and backends a router.
            if let Some((ifindex, address)) = to_ask.filter(|hop| ask && asked.insert(*hop))
                && let Err(error) = network.ask(ifindex, address).await
            {
                // As while an interface is down. The backend's state says what comes of it.
                debug!("{address}: {error}");
            }
        }
        Ok((changes, errors))
    }

    /// Asks for the routes of all backends, and has the neighbours watched that they lead to. A route that cannot be
    /// asked for stays as it was; returns why, once for each.
    async fn refresh_routes(&mut self, network: &Network) -> Vec<NetworkError> {
        let mut routes = HashMap::new();
        let mut errors = Vec::new();
        for address in self.all.values().map(|tracked| tracked.target.address).collect::<BTreeSet<_>>() {
            match network.route(address).await {
                Ok(route) => {
                    routes.insert(address, route);
                }
                Err(error) => errors.push(error),
            }
        }
        for tracked in self.all.values_mut() {
            if let Some(route) = routes.get(&tracked.target.address) {
                tracked.lead(*route);
            }
        }
        let hops = self.all.values().filter_map(|tracked| tracked.target.next_hop());
        network.watch(hops.map(|(_, address)| address).collect());
        errors
    }

    /// Whether the first answer of one is still to come.
    pub fn any_resolving(&self) -> bool {
        self.all.values().any(|tracked| tracked.state == BackendState::Resolving)
    }

    /// What is known of a backend; `None` for one that is never sent to, of a local service.
    pub fn get(&self, owner: BackendOwner) -> Option<(&BackendState, Option<&Way>)> {
        let tracked = self.all.get(&owner)?;
        Some((&tracked.state, tracked.way.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Interface, Neighbour, Neighbours};

    #[test]
    fn the_way_before_serves_until_the_next_hop_is_known() {
        let card = Interface {
            index: 2,
            mac: Some([2; 6]),
            mtu: 1500,
            up: true,
            sends_frames: true,
            ..Interface::default()
        };
        let interfaces = Interfaces::from([("eth0".to_owned(), card)]);
        let start = Instant::now();
        let by = |last: u8| {
            Some(Route {
                index: 2,
                gateway: Some([10, 0, 0, last].into()),
                source: Some([10, 0, 0, 1].into()),
                mtu: None,
                local: false,
            })
        };
        let known =
            |last: u8| ((2, [10, 0, 0, last].into()), Neighbour::Known { mac: [last; 6], fresh: true });
        let target = Target {
            address: [10, 1, 0, 11].into(),
            forward: Forward::Ipip,
            has_source: false,
            route: None,
            last_hop: None,
        };
        let mut backend = Tracked {
            target,
            resolution: Resolution::Resolving { since: start },
            state: BackendState::Resolving,
            way: None,
        };
        let failed = |last: u8| ((2, [10, 0, 0, last].into()), Neighbour::Failed);
        for (route, neighbours, mac, state) in [
            (by(1), vec![], None, "resolving"),
            (by(1), vec![known(1)], Some(1), "up"),
            (by(2), vec![known(1)], Some(1), "up"),
            (by(2), vec![known(1), known(2)], Some(2), "up"),
            (by(3), vec![known(2), failed(3)], None, "no-neighbour"),
            (by(2), vec![known(2), failed(3)], Some(2), "up"),
            (None, vec![known(2)], None, "no-route"),
        ] {
            backend.lead(route);
            let neighbours: Neighbours = neighbours.into_iter().collect();
            let view = View::new(&[], &interfaces, neighbours, start);
            let seen = view.look(&backend.target, &mut backend.resolution);
            backend.follow(seen);
            let found = backend.way.as_ref().map(|way| way.destination_mac[0]);
            assert_eq!((found, backend.state.name()), (mac, state), "{route:?}");
        }
        // Not for ever.
        backend.lead(by(4));
        backend.follow(BackendState::Up.into());
        let later = Instant::now() + Duration::from_secs(3);
        let view = View::new(&[], &interfaces, Neighbours::new(), later);
        let seen = view.look(&backend.target, &mut backend.resolution);
        assert!(backend.follow(seen) && backend.state.name() == "no-neighbour");
    }
}
