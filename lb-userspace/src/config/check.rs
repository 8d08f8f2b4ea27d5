//! Checks across fields: duplicates, overlaps, limits of the maps.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    forward::Families,
    maps::{BACKENDS_MAX, KEY_SLOTS_MAX, SERVICES_MAX},
};
use toml::Spanned;

use crate::keyring::slots_needed;

use super::{
    Forward, XdpMode,
    fields::{BackendDraft, ConfigDraft, ServiceDraft},
    read::{Report, Wrong},
};

/// Reports problems that involve more than one field.
pub(super) fn whole(report: &mut Report<'_>, config: &ConfigDraft) {
    services(report, &config.services);
    generic_mode(report, config);
    addresses_of_node(report, config);
}

fn services(report: &mut Report<'_>, services: &[ServiceDraft]) {
    if services.is_empty() {
        let wrong = Wrong {
            message: "no service is configured, so every packet passes".to_owned(),
            hint: "add a `[[service]]`".to_owned(),
        };
        report.warn("service", 0..0, wrong);
    }
    unique(report, "service.id", services.iter().filter_map(|service| service.id.as_ref()));
    unique(report, "service.name", services.iter().filter_map(|service| service.name.as_ref()));
    overlaps(report, services);
    limits(report, services);
    slots(report, services);
    for service in services {
        forwarding(report, service);
        backends(report, service);
    }
}

/// Generic mode can send no partial checksum: see `checksum.rs` of the XDP program.
fn generic_mode(report: &mut Report<'_>, config: &ConfigDraft) {
    let sends = |service: &ServiceDraft| {
        service.forward.as_ref().is_some_and(|forward| *forward.get_ref() != Forward::Local)
    };
    let mode = config.xdp_mode.given().filter(|mode| *mode.get_ref() == XdpMode::Generic);
    if let Some(mode) = mode.filter(|_| config.services.iter().any(sends)) {
        let wrong = Wrong {
            message:
                "generic mode drops datagrams whose UDP checksum was left to a network card, as on a veth, \
                      and counts them as `partial_checksum`; only forward = \"local\" delivers them"
                    .to_owned(),
            hint: "write \"native\", which a veth supports, or turn the sender's checksum offload off \
                   (`ethtool -K IFACE tx off`)"
                .to_owned(),
        };
        report.warn("xdp_mode", mode.span(), wrong);
    }
}

/// Reports duplicate values.
fn unique<'d, T: Ord + std::fmt::Debug + 'd>(
    report: &mut Report<'_>,
    field: &str,
    values: impl Iterator<Item = &'d Spanned<T>>,
) {
    let mut seen = BTreeMap::new();
    for value in values {
        let Some(first) = seen.get(value.get_ref()) else {
            seen.insert(value.get_ref(), value.span());
            continue;
        };
        let first: &std::ops::Range<usize> = first;
        let line = report.line(first.start);
        let wrong = Wrong {
            message: format!("`{field}` = {:?} is already on line {line}", value.get_ref()),
            hint: "change one of the two".to_owned(),
        };
        report.conflict(field, value.span(), (first.clone(), "first here"), wrong);
    }
}

fn overlaps(report: &mut Report<'_>, services: &[ServiceDraft]) {
    let mut seen = BTreeMap::new();
    for service in services {
        let (Some(address), Some(port)) = (service.address.as_ref(), service.port.as_ref()) else { continue };
        let place = (*address.get_ref(), *port.get_ref());
        let Some(first) = seen.get(&place) else {
            seen.insert(place, address.span());
            continue;
        };
        let first: &std::ops::Range<usize> = first;
        let line = report.line(first.start);
        let wrong = Wrong {
            message: format!("{} port {} is already used by the service on line {line}", place.0, place.1),
            hint:
                "a datagram can belong to one service only: change address or port, or merge the two services"
                    .to_owned(),
        };
        report.conflict("service.address", address.span(), (first.clone(), "first here"), wrong);
    }
}

fn limits(report: &mut Report<'_>, services: &[ServiceDraft]) {
    // Index 0 counts packets to no service.
    let most = SERVICES_MAX as usize - 1;
    if let Some(beyond) = services.get(most) {
        let wrong = Wrong {
            message: format!("there are {} services", services.len()),
            hint: format!("a node has at most {most}: spread them over more nodes"),
        };
        report.problem("service", beyond.span.clone(), wrong);
    }
    let most = BACKENDS_MAX as usize;
    let mut all = services.iter().flat_map(|service| &service.backends);
    if let Some(beyond) = all.nth(most) {
        let count = most + 1 + all.count();
        let wrong = Wrong {
            message: format!("there are {count} backends"),
            hint: format!("a node has at most {most}, of all services: spread them over more nodes"),
        };
        report.problem("service.backend", beyond.span.clone(), wrong);
    }
}

/// Refuses rotations that need more key slots than exist.
fn slots(report: &mut Report<'_>, services: &[ServiceDraft]) {
    let durations = |service: &ServiceDraft| {
        Some((*service.max_ttl.as_ref()?.get_ref(), *service.key_rotation.as_ref()?.get_ref()))
    };
    let keys = |service: &ServiceDraft| {
        durations(service).map_or(0, |(max_ttl, rotation)| slots_needed(max_ttl, rotation))
    };
    let most = u64::from(KEY_SLOTS_MAX);
    let needed: u64 = services.iter().map(keys).sum();
    let shown = |duration: Duration| humantime::format_duration(duration).to_string();
    let worst = services.iter().max_by_key(|service| keys(service)).filter(|_| needed > most);
    if let Some((worst, (max_ttl, rotation))) = worst.and_then(|worst| Some((worst, durations(worst)?))) {
        let (max_ttl, rotation) = (shown(max_ttl), rotation.map_or_else(|| "off".to_owned(), shown));
        let wrong = Wrong {
            message: format!("the services need up to {needed} key slots at a time, and there are {most}"),
            hint: format!("rotate less often than every {rotation}, or reduce max_ttl below {max_ttl}"),
        };
        report.problem("service.key_rotation", worst.span.clone(), wrong);
        return;
    }
    for service in services {
        let Some((max_ttl, Some(rotation))) = durations(service) else { continue };
        if rotation < max_ttl {
            let wrong = Wrong {
                message: format!("the rotation needs {} key slots", keys(service)),
                hint: format!(
                    "a key_rotation of {} is shorter than the max_ttl of {}",
                    shown(rotation),
                    shown(max_ttl)
                ),
            };
            report.warn("service.key_rotation", service.span.clone(), wrong);
        }
    }
}

fn forwarding(report: &mut Report<'_>, service: &ServiceDraft) {
    let Some(forward) = service.forward.as_ref() else { return };
    if *forward.get_ref() == Forward::Local {
        if let Some(backend) = service.backends.first() {
            let wrong = Wrong {
                message: "the backends of a local service are not used".to_owned(),
                hint: "remove them, or use another forwarding mode, such as forward = \"l2\"".to_owned(),
            };
            report.warn("service.backend", backend.span.clone(), wrong);
        }
        return;
    }
    if service.backends.is_empty() {
        let wrong = Wrong {
            message: "the service has no backend: all its packets are dropped as `no_backend`".to_owned(),
            hint: "add a `[[service.backend]]`".to_owned(),
        };
        report.warn("service.backend", forward.span(), wrong);
    }
    if let Some(address) = service.address.as_ref().filter(|address| address.get_ref().is_loopback()) {
        let wrong = Wrong {
            message: format!("{} is a loopback address: no other host can be behind it", address.get_ref()),
            hint: "write the address clients send to, or forward = \"local\"".to_owned(),
        };
        report.problem("service.address", address.span(), wrong);
    }
}

fn backends(report: &mut Report<'_>, service: &ServiceDraft) {
    let all = &service.backends;
    let translates = service.forward.as_ref().is_some_and(|forward| *forward.get_ref() == Forward::Nat);
    unique(report, "service.backend.id", all.iter().filter_map(|backend| backend.id.as_ref()));
    // A derived name may equal a given name. If derived names are equal, the addresses are reported below.
    let derived = all.iter().filter(|backend| backend.name.given().is_none());
    let derived: BTreeMap<_, _> =
        derived.filter_map(|backend| backend.name.as_ref()).map(|name| (name.get_ref(), name)).collect();
    let given = all.iter().filter_map(|backend| backend.name.given());
    unique(report, "service.backend.name", given.chain(derived.into_values()));
    if translates {
        // Several backends may be on one host.
        let places: Vec<_> = all.iter().filter_map(place).collect();
        unique(report, "service.backend.address", places.iter());
    } else {
        let addresses = all.iter().filter_map(|backend| backend.address.as_ref());
        unique(report, "service.backend.address", addresses);
        all.iter().for_each(|backend| same_port(report, backend, service));
    }
    let service_address = service.address.as_ref().map(|address| *address.get_ref());
    for BackendDraft { address, .. } in all {
        let Some(address) = address.as_ref() else { continue };
        let found = match address.get_ref() {
            ip if ip.is_loopback() => "is a loopback address: this host",
            ip if Some(*ip) == service_address => "is the service's address: this host",
            _ => {
                same_family(report, address, service);
                continue;
            }
        };
        let wrong = Wrong {
            message: format!("`service.backend.address`: {} {found}", address.get_ref()),
            hint: "write the backend's own address, or forward = \"local\" and no backend".to_owned(),
        };
        report.problem("service.backend.address", address.span(), wrong);
    }
}

/// Address and port of a backend.
fn place(backend: &BackendDraft) -> Option<Spanned<SocketAddr>> {
    let address = backend.address.as_ref()?;
    let port = backend.port.as_ref()?;
    Some(Spanned::new(address.span(), SocketAddr::new(*address.get_ref(), *port.get_ref())))
}

fn same_port(report: &mut Report<'_>, backend: &BackendDraft, service: &ServiceDraft) {
    let (Some(port), Some(services)) = (backend.port.given(), service.port.as_ref()) else { return };
    if port.get_ref() != services.get_ref() {
        let wrong = Wrong {
            message: format!("`service.backend.port` = {} is not the service's", port.get_ref()),
            hint: "remove the line: only forward = \"nat\" changes ports".to_owned(),
        };
        report.problem("service.backend.port", port.span(), wrong);
    }
}

fn same_family(report: &mut Report<'_>, backend: &Spanned<IpAddr>, service: &ServiceDraft) {
    let (Some(address), Some(forward)) = (service.address.as_ref(), service.forward.as_ref()) else { return };
    let (address, forward) = (address.get_ref(), forward.get_ref());
    if forward.reaches(*address, *backend.get_ref()) {
        return;
    }
    let family = |ip: &IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let (is, wanted) = (family(backend.get_ref()), family(address));
    let wrong = Wrong {
        message: format!(
            "`service.backend.address`: {} is {is}, and the service's address {address} is {wanted}",
            backend.get_ref()
        ),
        hint: match (forward.families(), wanted) {
            (Families::Same, "IPv4") => {
                let names = |mode: Forward| format!("\"{}\"", mode.name());
                let across =
                    Forward::ALL.into_iter().filter(|mode| mode.families() == Families::SameOrIpv4InIpv6);
                let across = across.map(names).collect::<Vec<_>>().join(" and ");
                format!("write its IPv4 address; only {across} reach IPv6 backends of an IPv4 service")
            }
            _ => format!(
                "write its IPv6 address: forward = \"{}\" does not send IPv6 to an IPv4 address",
                forward.name()
            ),
        },
    };
    report.problem("service.backend.address", backend.span(), wrong);
}

/// Checks ports and addresses of the node against the services.
fn addresses_of_node(report: &mut Report<'_>, config: &ConfigDraft) {
    let services = &config.services;
    let forwards = || services.iter().filter_map(|service| service.forward.as_ref());
    let translates = forwards().any(|forward| *forward.get_ref() == Forward::Nat);
    if let Some(nat_ports) = config.nat_ports.as_ref().filter(|_| translates) {
        let ports = services.iter().filter_map(|service| service.port.as_ref());
        for port in ports.filter(|port| nat_ports.get_ref().contain(*port.get_ref())) {
            let wrong = Wrong {
                message: format!("`service.port` = {} is one of `nat_ports`", port.get_ref()),
                hint: "backends' answers would go to the service: set `nat_ports` to others".to_owned(),
            };
            report.problem("service.port", port.span(), wrong);
        }
    }
    let sources = config.tunnel_sources.given();
    if let Some(sources) = sources.filter(|_| !forwards().any(|forward| forward.get_ref().encapsulates())) {
        let wrong = Wrong {
            message: "`tunnel_sources` is not used".to_owned(),
            hint: "only forward = \"ipip\" and \"gue\" have an outer packet".to_owned(),
        };
        report.warn("tunnel_sources", sources.span(), wrong);
    }
}
