//! What takes more than one field to see: duplicates, overlaps, limits of the maps.

use std::{collections::BTreeMap, time::Duration};

use lb_common::maps::{BACKENDS_MAX, KEY_SLOTS_MAX, SERVICES_MAX};
use toml::Spanned;

use super::{
    Forward,
    fields::{BackendDraft, ServiceDraft},
    read::{Report, Wrong},
};

pub(super) fn services(report: &mut Report<'_>, services: &[ServiceDraft]) {
    if services.is_empty() {
        let wrong = Wrong {
            message: "there is no service: every packet passes".to_owned(),
            mend: "add a `[[service]]`".to_owned(),
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
        if let Some(accept) = service.accept.as_ref().filter(|accept| accept.get_ref().proof) {
            let wrong = Wrong {
                message: "proof tokens are not yet in this version".to_owned(),
                mend: "their packets are counted as `policy`; bearer tokens work".to_owned(),
            };
            report.warn("service.accept", accept.span(), wrong);
        }
    }
}

/// Reports every value that was there before.
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
            message: format!("`{field}` = {:?} is on line {line} already", value.get_ref()),
            mend: "give one of the two another".to_owned(),
        };
        report.conflict(field, value.span(), (first.clone(), "first here"), wrong);
    }
}

fn overlaps(report: &mut Report<'_>, services: &[ServiceDraft]) {
    let mut seen = BTreeMap::new();
    for service in services {
        let (Some(address), Some(port)) = (&service.address, &service.port) else { continue };
        let place = (*address.get_ref(), *port.get_ref());
        let Some(first) = seen.get(&place) else {
            seen.insert(place, address.span());
            continue;
        };
        let first: &std::ops::Range<usize> = first;
        let line = report.line(first.start);
        let wrong = Wrong {
            message: format!("{} port {} is taken by the service of line {line}", place.0, place.1),
            mend: "a datagram can belong to one service only: change address or port, or merge the two"
                .to_owned(),
        };
        report.conflict("service.address", address.span(), (first.clone(), "first here"), wrong);
    }
}

fn limits(report: &mut Report<'_>, services: &[ServiceDraft]) {
    // Index 0 counts what is for no service.
    let most = SERVICES_MAX as usize - 1;
    if let Some(beyond) = services.get(most) {
        let wrong = Wrong {
            message: format!("there are {} services", services.len()),
            mend: format!("a node has at most {most}: spread them over more nodes"),
        };
        report.problem("service", beyond.span.clone(), wrong);
    }
    let most = BACKENDS_MAX as usize;
    let mut all = services.iter().flat_map(|service| &service.backends);
    if let Some(beyond) = all.nth(most) {
        let count = most + 1 + all.count();
        let wrong = Wrong {
            message: format!("there are {count} backends"),
            mend: format!("a node has at most {most}, of all services: spread them over more nodes"),
        };
        report.problem("service.backend", beyond.span.clone(), wrong);
    }
}

/// Refuses rotations that would need more key slots than there are. A key verifies for two rotations and the life
/// of a token, or less.
fn slots(report: &mut Report<'_>, services: &[ServiceDraft]) {
    let keys = |service: &ServiceDraft| {
        service.key_rotation.map_or(3, |rotation| 3 + service.max_ttl.as_secs() / rotation.as_secs().max(1))
    };
    let most = u64::from(KEY_SLOTS_MAX);
    let needed: u64 = services.iter().map(keys).sum();
    let Some(worst) = services.iter().max_by_key(|service| keys(service)) else { return };
    let shown =
        |duration: Option<Duration>| humantime::format_duration(duration.unwrap_or_default()).to_string();
    let (rotation, max_ttl) = (shown(worst.key_rotation), shown(Some(worst.max_ttl)));
    if needed > most {
        let wrong = Wrong {
            message: format!(
                "the services need up to {needed} keys at a time, and there are {most} key slots"
            ),
            mend: format!(
                "rotate less often than every {rotation}, or let tokens live shorter than {max_ttl}"
            ),
        };
        report.problem("service.key_rotation", worst.span.clone(), wrong);
        return;
    }
    for service in services {
        if let Some(rotation) = service.key_rotation.filter(|rotation| *rotation < service.max_ttl) {
            let wrong = Wrong {
                message: format!("up to {} keys verify at a time", keys(service)),
                mend: format!(
                    "a key_rotation of {} is shorter than the max_ttl of {}",
                    shown(Some(rotation)),
                    shown(Some(service.max_ttl))
                ),
            };
            report.warn("service.key_rotation", service.span.clone(), wrong);
        }
    }
}

fn forwarding(report: &mut Report<'_>, service: &ServiceDraft) {
    let Some(forward) = &service.forward else { return };
    match (forward.get_ref(), service.backends.first()) {
        (Forward::Local, Some(backend)) => {
            let wrong = Wrong {
                message: "the backends of a local service are not used".to_owned(),
                mend: "remove them, or write forward = \"l2\"".to_owned(),
            };
            report.warn("service.backend", backend.span.clone(), wrong);
        }
        (Forward::L2, None) => {
            let wrong = Wrong {
                message: "the service has no backend: all its packets are dropped as `no_backend`".to_owned(),
                mend: "add a `[[service.backend]]`".to_owned(),
            };
            report.warn("service.backend", forward.span(), wrong);
        }
        _ => {}
    }
    if let Some(address) = service.address.as_ref().filter(|address| address.get_ref().is_loopback())
        && *forward.get_ref() == Forward::L2
    {
        let wrong = Wrong {
            message: format!("{} is a loopback address: no other host can be behind it", address.get_ref()),
            mend: "write the address clients send to, or forward = \"local\"".to_owned(),
        };
        report.problem("service.address", address.span(), wrong);
    }
}

fn backends(report: &mut Report<'_>, service: &ServiceDraft) {
    let all = &service.backends;
    unique(report, "service.backend.id", all.iter().filter_map(|backend| backend.id.as_ref()));
    unique(report, "service.backend.name", all.iter().filter_map(|backend| backend.name.as_ref()));
    unique(report, "service.backend.address", all.iter().filter_map(|backend| backend.address.as_ref()));
    let service_address = service.address.as_ref().map(|address| *address.get_ref());
    for BackendDraft { address, .. } in all {
        let Some(address) = address else { continue };
        let found = match address.get_ref() {
            ip if ip.is_loopback() => "is a loopback address: this host",
            ip if Some(*ip) == service_address => "is the service's address: this host",
            _ => continue,
        };
        let wrong = Wrong {
            message: format!("`service.backend.address`: {} {found}", address.get_ref()),
            mend: "write the backend's own address, or forward = \"local\" and no backend".to_owned(),
        };
        report.problem("service.backend.address", address.span(), wrong);
    }
}
