//! From configuration and the state of backends to what the tables are to say.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use lb_common::{
    backend::{Backend, TAGS_KEPT},
    service::{
        ACCEPT_BEARER, BIND_OPTIONAL, BIND_REQUIRED, FLAG_OBSERVE, FLAG_STRIP, FORWARD_L2, FORWARD_LOCAL,
        Service, ServiceKey,
    },
};

use super::network::Mac;
use crate::{
    balancer::{self, Share},
    config::{self, Bind, Forward, Mode},
    datapath::Snapshot,
};

/// A backend that may be used, and the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where its counters stand.
    pub counter: u32,
    /// The interface.
    pub ifindex: u32,
    /// Its MAC address.
    pub destination_mac: Mac,
    /// This host's on that interface.
    pub source_mac: Mac,
}

/// A service's index, and the ways to those of its backends that may be used, by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The service.
    pub service_id: u32,
    /// Its index on this node.
    pub index: u32,
    /// The ways.
    pub ways: BTreeMap<u16, Way>,
}

/// What the tables are to say. Backends are placed service by service, by their id.
pub fn snapshot(services: &[config::Service], placed: &[Placed]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for Placed { service_id, index, ways } in placed {
        let Some(service) = services.iter().find(|service| service.id == *service_id) else { continue };
        let Some(key) = key(service) else { continue };
        snapshot.services.push((key, value(service, *index)));
        let mut shares = Vec::new();
        for (backend_id, way) in ways {
            let Some(backend) = service.backends.iter().find(|backend| backend.id == *backend_id) else {
                continue;
            };
            snapshot.backends.push(Backend {
                service_index: *index as u16,
                backend_id: *backend_id,
                counter: way.counter,
                ifindex: way.ifindex,
                destination_mac: way.destination_mac,
                source_mac: way.source_mac,
                tag_count: TAGS_KEPT,
                ..Backend::default()
            });
            // A table names a backend by its place, and one more.
            let entry = snapshot.backends.len() as u16;
            shares.push(Share { backend_id: *backend_id, weight: backend.weight, entry });
        }
        if !shares.is_empty() {
            snapshot.maglev.insert(*index, balancer::table(service.id, &shares));
        }
    }
    snapshot
}

/// Where the service is reached; `None` for an IPv6 service, which no configuration has yet.
fn key(service: &config::Service) -> Option<ServiceKey> {
    match service.address {
        IpAddr::V4(address) => Some(ServiceKey::v4(in_memory(address), service.port.to_be())),
        IpAddr::V6(_) => None,
    }
}

/// The wire bytes of an address as they lie in memory.
const fn in_memory(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// A configured service as the program sees it.
pub fn value(service: &config::Service, index: u32) -> Service {
    let flag = |on, bit| if on { bit } else { 0 };
    Service {
        id: service.id,
        index,
        max_ttl: u32::try_from(service.max_ttl.as_secs()).unwrap_or(u32::MAX),
        revoked_before: 0,
        // Not ACCEPT_PROOF: the program cannot check proofs yet, and refuses them as `policy`.
        accept: flag(service.accept.bearer, ACCEPT_BEARER),
        bind: match service.bind {
            Bind::Optional => BIND_OPTIONAL,
            Bind::Required => BIND_REQUIRED,
        },
        forward: match service.forward {
            Forward::Local => FORWARD_LOCAL,
            Forward::L2 => FORWARD_L2,
        },
        flags: flag(service.strip, FLAG_STRIP) | flag(service.mode == Mode::Observe, FLAG_OBSERVE),
    }
}
