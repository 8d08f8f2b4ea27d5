//! The backends of all services, and the next hop of each.

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
        resolve::{NextHop, Resolved, Target, View},
    },
};

/// How often routes are read again although the kernel has reported no change.
const ROUTES_EVERY: Duration = Duration::from_secs(10);

/// The backends of all services but those with `forward = "local"`.
#[derive(Debug)]
pub struct Backends {
    all: BTreeMap<BackendOwner, Entry>,
    routes_at: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    target: Target,
    resolution: Resolution,
    state: BackendState,
    next_hop: Option<NextHop>,
}

impl Entry {
    /// Sets the route, which may be the same as before.
    fn set_route(&mut self, route: Option<Route>) {
        let Self { target, resolution, .. } = self;
        target.route = route;
        let hop = target.neighbour();
        if hop.is_some() && target.last_neighbour.is_some_and(|last| Some(last) != hop) {
            // Another neighbour has another MAC address.
            *resolution = Resolution::Resolving { since: Instant::now() };
        }
        target.last_neighbour = hop.or(target.last_neighbour);
    }

    /// Applies a resolution; returns whether the state has changed. While the neighbour of a new route is being
    /// resolved, the next hop before it stays in use.
    fn apply(&mut self, Resolved { state, next_hop, .. }: Resolved) -> bool {
        if state == BackendState::Resolving && self.next_hop.is_some() {
            return false;
        }
        let changed = self.state != state;
        (self.state, self.next_hop) = (state, next_hop);
        changed
    }
}

/// A backend whose state has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The backend.
    pub backend: BackendOwner,
    /// The new state.
    pub state: BackendState,
}

impl Backends {
    /// The backends of the configuration, with the MAC addresses that the tables in the kernel have for them.
    pub fn new(config: &Config, active: &TableSet) -> Self {
        let now = Instant::now();
        let ids: HashMap<u32, u32> =
            active.services().map(|(_, service)| (service.index, service.id)).collect();
        // Matched by address, too: if a backend has moved to another address, its MAC address is unknown.
        let remembered: HashMap<(BackendOwner, [u32; 4]), Mac> = active
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
                    last_neighbour: None,
                };
                let entry = Entry { target, resolution, state: BackendState::Resolving, next_hop: None };
                all.insert(owner, entry);
            }
        }
        Self { all, routes_at: None }
    }

    /// All backends.
    pub fn owners(&self) -> impl Iterator<Item = BackendOwner> {
        self.all.keys().copied()
    }

    /// The backends of a service that can be used.
    pub fn up(&self, service_id: u32) -> impl Iterator<Item = (BackendOwner, &NextHop)> {
        let first = BackendOwner { service_id, backend_id: 0 };
        let last = BackendOwner { service_id, backend_id: u16::MAX };
        let of_service = self.all.range(first..=last);
        of_service.filter_map(|(owner, entry)| Some((*owner, entry.next_hop.as_ref()?)))
    }

    /// Reads the neighbours, and the routes that may have changed. With `ask`, makes the kernel probe neighbours whose
    /// state is uncertain. `filtered` are the names of the interfaces that the program is attached to. Returns the
    /// changes, and the errors of routes that could not be read; everything else is up to date.
    ///
    /// # Errors
    /// If the neighbours cannot be read; then all states stay as they were.
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
        // A route that has changed may have a neighbour that was never probed.
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
        for (owner, entry) in &mut self.all {
            let resolved = view.resolve(&entry.target, &mut entry.resolution);
            let probe = resolved.probe;
            if entry.apply(resolved) {
                changes.push(Change { backend: *owner, state: entry.state.clone() });
            }
            // Services often share backends, and backends share a router.
            if let Some((ifindex, address)) = probe.filter(|hop| ask && asked.insert(*hop))
                && let Err(error) = network.ask(ifindex, address).await
            {
                // For example while an interface is down; the state of the backend reports the consequence.
                debug!("{address}: {error}");
            }
        }
        Ok((changes, errors))
    }

    /// Reads the routes of all backends and watches their neighbours. A route that cannot be read stays as it was; the
    /// errors are returned.
    async fn refresh_routes(&mut self, network: &Network) -> Vec<NetworkError> {
        let mut routes = HashMap::new();
        let mut errors = Vec::new();
        for address in self.all.values().map(|entry| entry.target.address).collect::<BTreeSet<_>>() {
            match network.route(address).await {
                Ok(route) => {
                    routes.insert(address, route);
                }
                Err(error) => errors.push(error),
            }
        }
        for entry in self.all.values_mut() {
            if let Some(route) = routes.get(&entry.target.address) {
                entry.set_route(*route);
            }
        }
        let hops = self.all.values().filter_map(|entry| entry.target.neighbour());
        network.watch(hops.map(|(_, address)| address).collect());
        errors
    }

    /// Whether a backend waits for its first resolution.
    pub fn any_resolving(&self) -> bool {
        self.all.values().any(|entry| entry.state == BackendState::Resolving)
    }

    /// State and next hop of a backend; `None` for a backend of a `local` service.
    pub fn get(&self, owner: BackendOwner) -> Option<(&BackendState, Option<&NextHop>)> {
        let entry = self.all.get(&owner)?;
        Some((&entry.state, entry.next_hop.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Interface, Neighbour, Neighbours};

    #[test]
    fn the_next_hop_before_serves_until_the_new_one_is_resolved() {
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
            last_neighbour: None,
        };
        let mut backend = Entry {
            target,
            resolution: Resolution::Resolving { since: start },
            state: BackendState::Resolving,
            next_hop: None,
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
            backend.set_route(route);
            let neighbours: Neighbours = neighbours.into_iter().collect();
            let view = View::new(&[], &interfaces, neighbours, start);
            let resolved = view.resolve(&backend.target, &mut backend.resolution);
            backend.apply(resolved);
            let found = backend.next_hop.as_ref().map(|next_hop| next_hop.destination_mac[0]);
            assert_eq!((found, backend.state.name()), (mac, state), "{route:?}");
        }
        // The last address expires.
        backend.set_route(by(4));
        backend.apply(BackendState::Up.into());
        let later = Instant::now() + Duration::from_secs(3);
        let view = View::new(&[], &interfaces, Neighbours::new(), later);
        let resolved = view.resolve(&backend.target, &mut backend.resolution);
        assert!(backend.apply(resolved) && backend.state.name() == "no-neighbour");
    }
}
