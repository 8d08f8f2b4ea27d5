//! Computes the desired content of the tables from the configuration and the next hops of backends.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    backend::Backend,
    control::SECOND_NS,
    rate::{CLASSES, Rate, RateTable},
    service::{
        ACCEPT_BEARER, ACCEPT_PROOF, BIND_OPTIONAL, BIND_REQUIRED, FLAG_OBSERVE, FLAG_RATED, FLAG_STRIP,
        Service, ServiceKey,
    },
};

use crate::{
    balancer::{self, Share},
    config::{self, Bind, Config, Forward, Mode},
    datapath::{Options, Snapshot},
    network::resolve::NextHop,
};

/// A service with its index, and its usable backends with their counters, by backend id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The service.
    pub service_id: u32,
    /// Its index on this node.
    pub index: u32,
    /// Its tokens issued before this unix second are revoked.
    pub revoked_before: u32,
    /// Index of the counter, and next hop, of each usable backend.
    pub backends: BTreeMap<u16, (u32, NextHop)>,
}

/// The options to load the program with; `pins` is left to the caller.
pub fn options(config: &Config) -> Options {
    let services = &config.services;
    Options {
        sessions: config.sessions,
        stateless: services.iter().any(|service| service.accept.bearer && !service.has_limits()),
        stateful: services.iter().any(|service| service.accept.proof || service.has_limits()),
        nat_ports: config.ports_of_nat(),
        nat_ports_per_session: config.nat_ports_per_session,
        hmac_cost_ns: SECOND_NS / u64::from(config.hmac_budget).max(1),
        ..Options::default()
    }
}

/// The desired content of the tables. Backends are ordered by service, then by id.
pub fn snapshot(config: &Config, allocated: &[Allocated]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for Allocated { service_id, index, revoked_before, backends } in allocated {
        let service = config.services.iter().find(|service| service.id == *service_id);
        let Some(service) = service else { continue };
        snapshot.services.push((key(service), value(service, *index, *revoked_before)));
        if !service.rates.is_empty() {
            snapshot.rates.insert(*index, rates(service));
        }
        let mut shares = Vec::new();
        for (backend_id, (counter, next_hop)) in backends {
            let Some(backend) = service.backends.iter().find(|backend| backend.id == *backend_id) else {
                continue;
            };
            snapshot.backends.push(Backend {
                service_index: *index as u16,
                counter: *counter,
                ..reached(config, service.forward, backend, next_hop)
            });
            // An entry of a Maglev table is the index of the backend plus one.
            let entry = snapshot.backends.len() as u16;
            shares.push(Share { backend_id: *backend_id, weight: backend.weight, entry });
        }
        if !shares.is_empty() {
            snapshot.maglev.insert(*index, balancer::table(service.id, &shares));
        }
    }
    snapshot
}

/// A backend and its next hop in the form that the XDP program reads.
fn reached(config: &Config, forward: Forward, backend: &config::Backend, next_hop: &NextHop) -> Backend {
    let (tag_count, tags) = next_hop.tags.value();
    let prefix = config.tunnel_source(backend.address).filter(|_| forward.encapsulates());
    let source = prefix.map(config::Prefix::address).or(next_hop.source);
    Backend {
        backend_id: backend.id,
        ifindex: next_hop.ifindex,
        destination_mac: next_hop.destination_mac,
        source_mac: next_hop.source_mac,
        tags,
        tag_count,
        v6: backend.address.is_ipv6().into(),
        mtu: next_hop.mtu,
        port_be: backend.port.to_be(),
        address_be: address_be(backend.address),
        source_be: source.map(address_be).unwrap_or_default(),
        spread_be: prefix.map_or(0, |prefix| prefix.last_host_bits().to_be()),
        ..Backend::default()
    }
}

/// Address and port of the service.
fn key(service: &config::Service) -> ServiceKey {
    ServiceKey { address_be: address_be(service.address), port_be: service.port.to_be().into() }
}

/// The wire bytes of an address as they are in memory; an IPv4 address is v4-mapped.
pub fn address_be(address: IpAddr) -> [u32; 4] {
    let bytes = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
    .octets();
    std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * word + byte])))
}

/// The rates of a service by class; zeros where a class has none.
fn rates(service: &config::Service) -> Box<RateTable> {
    let mut table = Box::new([Rate::default(); CLASSES]);
    for (class, rate) in &service.rates {
        table[usize::from(*class)] = Rate::new(rate.per_second, rate.burst);
    }
    table
}

/// A service in the form that the XDP program reads.
pub fn value(service: &config::Service, index: u32, revoked_before: u32) -> Service {
    let flag = |on, bit| if on { bit } else { 0 };
    Service {
        id: service.id,
        index,
        max_ttl: u32::try_from(service.max_ttl.as_secs()).unwrap_or(u32::MAX),
        revoked_before,
        accept: flag(service.accept.bearer, ACCEPT_BEARER) | flag(service.accept.proof, ACCEPT_PROOF),
        bind: match service.bind {
            Bind::Optional => BIND_OPTIONAL,
            Bind::Required => BIND_REQUIRED,
        },
        forward: service.forward.code(),
        flags: flag(service.strip, FLAG_STRIP)
            | flag(service.mode == Mode::Observe, FLAG_OBSERVE)
            | flag(!service.rates.is_empty(), FLAG_RATED),
        max_sources: service.max_sources.unwrap_or(0),
        ..Service::default()
    }
}

#[cfg(test)]
mod tests {
    use lb_common::backend::{TAGS_KEPT, Tag};

    use super::*;
    use crate::network::resolve::Tags;

    const FILE: &str = r#"
        interfaces = ["eth0"]
        tunnel_sources = ["10.9.0.0/24"]
        [[service]]
        id = 42
        name = "game"
        address = "203.0.113.10"
        port = 7777
        forward = "FORWARD"
        [[service.backend]]
        id = 1
        address = "ADDRESS"
    "#;

    fn backend(forward: &str, address: &str, tags: Tags) -> Backend {
        let text = FILE.replace("FORWARD", forward).replace("ADDRESS", address);
        let config = Config::parse(std::path::Path::new("tollgate.toml"), &text).unwrap();
        let source: IpAddr = if address.contains(':') { "fd00::1" } else { "10.0.0.1" }.parse().unwrap();
        let next_hop = NextHop {
            interface: "eth1".to_owned(),
            ifindex: 3,
            gateway: None,
            destination_mac: [2, 0, 0, 0, 0, 11],
            source_mac: [2, 0, 0, 0, 0, 1],
            tags,
            mtu: 1400,
            source: Some(source),
        };
        let allocated =
            Allocated { service_id: 42, index: 7, revoked_before: 5, backends: [(1, (5, next_hop))].into() };
        let snapshot = snapshot(&config, &[allocated]);
        assert_eq!(
            snapshot.services[0].0,
            ServiceKey::v4(u32::from_ne_bytes([203, 0, 113, 10]), 7777u16.to_be())
        );
        snapshot.backends[0]
    }

    #[test]
    fn a_cache_is_as_large_as_configured_where_tokens_can_need_it() {
        let caches = |lines: &str| {
            let text = FILE.replace("FORWARD", "l2").replace("ADDRESS", "10.0.0.11");
            let text = text.replace("port = 7777", &format!("port = 7777\n{lines}"));
            let config = Config::parse(std::path::Path::new("tollgate.toml"), &text).unwrap();
            let Options { stateless, stateful, .. } = options(&config);
            (stateless, stateful)
        };
        assert_eq!(caches(r#"accept = ["bearer"]"#), (true, false));
        assert_eq!(caches(r#"accept = ["proof"]"#), (false, true));
        assert_eq!(caches(r#"accept = ["bearer", "proof"]"#), (true, true));
        let limited = r#"accept = ["bearer"]"#.to_owned() + "\n";
        assert_eq!(caches(&(limited.clone() + "max_sources = 2")), (false, true));
        assert_eq!(caches(&(limited + r#"rate = { "0" = "1000/s" }"#)), (false, true));
    }

    const fn mapped(address: [u8; 4]) -> [u32; 4] {
        [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(address)]
    }

    #[test]
    fn a_way_is_all_that_the_program_needs() {
        let found = backend("nat", "10.0.0.11", Tags::Kept);
        let whole = Backend {
            service_index: 7,
            backend_id: 1,
            counter: 5,
            ifindex: 3,
            destination_mac: [2, 0, 0, 0, 0, 11],
            source_mac: [2, 0, 0, 0, 0, 1],
            tag_count: TAGS_KEPT,
            mtu: 1400,
            port_be: 7777u16.to_be(),
            address_be: mapped([10, 0, 0, 11]),
            source_be: mapped([10, 0, 0, 1]),
            ..Backend::default()
        };
        assert_eq!(found, whole);
        let tag = Tag { identifier_be: 0x8100u16.to_be(), control_be: 10u16.to_be() };
        let found = backend("nat", "10.0.0.11", Tags::Set(vec![tag]));
        assert_eq!(found, Backend { tag_count: 1, tags: [tag, Tag::default()], ..whole });
    }

    #[test]
    fn limits_are_the_services_own() {
        let limited = "rate = { \"3\" = \"200/s burst 400\" }\nmax_sources = 4\naccept = [\"proof\"]\n";
        let text = FILE.replace("FORWARD", "l2").replace("ADDRESS", "10.0.0.11");
        let text = text.replace("[[service.backend]]", &format!("{limited}[[service.backend]]"));
        let config = Config::parse(std::path::Path::new("tollgate.toml"), &text).unwrap();
        let allocated = Allocated { service_id: 42, index: 7, revoked_before: 5, backends: BTreeMap::new() };
        let snapshot = snapshot(&config, &[allocated]);
        let service = snapshot.services[0].1;
        assert_eq!((service.max_sources, service.revoked_before, service.accept), (4, 5, ACCEPT_PROOF));
        assert_eq!(service.flags & FLAG_RATED, FLAG_RATED);
        let mut table = [Rate::default(); CLASSES];
        table[3] = Rate::new(200, 400);
        assert_eq!(snapshot.rates, [(7, Box::new(table))].into());
    }

    #[test]
    fn outer_packets_are_spread_where_there_is_a_prefix() {
        let found = backend("gue", "10.0.0.11", Tags::Kept);
        assert_eq!((found.source_be, found.spread_be), (mapped([10, 9, 0, 0]), 0xff_u32.to_be()));
        let found = backend("gue", "fd00::11", Tags::Kept);
        let v6 = |last: u32| [0xfd00_0000_u32.to_be(), 0, 0, last.to_be()];
        assert_eq!((found.v6, found.address_be), (1, v6(0x11)));
        assert_eq!((found.source_be, found.spread_be), (v6(1), 0));
    }
}
