//! What the loop knows, for people and for Prometheus.

use std::time::Duration;

use lb_common::{
    maps::{ABI_VERSION, REVOCATIONS_MAX},
    reason::Reason,
    revocation::REVOKED_SESSION,
};

use super::{
    Controller, RequestError,
    clock::unix_now,
    macs::{self, Accepted},
    way::Tags,
};
use crate::{
    api::messages::{
        BackendStatus, ClockStatus, Count, CounterReport, InterfaceStatus, KeyStatus, ReasonCount,
        RevocationCounts, ServiceCounters, ServiceStatus, Status,
    },
    config::{Mode, Service},
    datapath::{BackendOwner, ProgramRuns},
    version,
};

/// What `/metrics` shows.
#[derive(Clone, Debug)]
pub struct MetricsReport {
    /// As `tollgate status` shows it.
    pub status: Status,
    /// As `tollgate counters` shows them.
    pub counters: CounterReport,
    /// Runs of the program, where the kernel counts them.
    pub program_runs: Option<ProgramRuns>,
    /// Unix seconds.
    pub now: u64,
}

impl Controller {
    pub(super) fn status(&self) -> Result<Status, RequestError> {
        let not_ready = self.ready.borrow().reasons();
        let backends = self.backend_list(None)?;
        let sessions = self.datapath.counters.sessions()?;
        Ok(Status {
            node: self.config.node.clone(),
            version: version::VERSION.to_owned(),
            commit: version::COMMIT.to_owned(),
            abi: ABI_VERSION,
            ready: not_ready.is_empty(),
            not_ready,
            pid: std::process::id(),
            uptime_seconds: self.started_at.elapsed().as_secs(),
            interfaces: self.interface_statuses(),
            services: self.service_statuses(&backends),
            keys: self.key_list(),
            backends,
            clock: self.clock_status(),
            revocations: self.revocation_counts(),
            differences: self.outcome.differences.clone(),
            errors: self.outcome.errors.clone(),
            store_revision: self.stored.revision(),
            store_connected: self.store_connected,
            sessions: sessions.untracked + sessions.tracked,
            sessions_tracked: sessions.tracked,
            sessions_max: self.config.sessions,
            nat_translations: match self.config.ports_of_nat() {
                Some(_) => Some(self.datapath.counters.translations()?),
                None => None,
            },
            hmacs: self.datapath.counters.hmacs()?,
        })
    }

    pub(super) fn service_list(&self) -> Result<Vec<ServiceStatus>, RequestError> {
        Ok(self.service_statuses(&self.backend_list(None)?))
    }

    fn service_statuses(&self, backends: &[BackendStatus]) -> Vec<ServiceStatus> {
        self.config.services.iter().map(|service| self.service_status(service, backends)).collect()
    }

    /// A service's name, or its number where the configuration has none of it.
    pub(super) fn service_name(&self, id: u32) -> String {
        let service = self.config.services.iter().find(|service| service.id == id);
        service.map_or_else(|| id.to_string(), |service| service.name.clone())
    }

    fn revocation_counts(&self) -> RevocationCounts {
        let mut counts = RevocationCounts { sessions: 0, tokens: 0, room: REVOCATIONS_MAX };
        for (key, _) in self.stored.state().revocations.in_force(unix_now()) {
            let count = if key.kind == REVOKED_SESSION { &mut counts.sessions } else { &mut counts.tokens };
            *count += 1;
        }
        counts
    }

    pub(super) fn clock_status(&self) -> ClockStatus {
        let jumps = self.clock.jumps();
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
        let last = self.clock.last();
        ClockStatus {
            wall: last.map_or(0.0, |last| seconds(last.wall_ns())),
            program: last.map_or(0.0, |last| seconds(last.program_ns())),
            difference_seconds: last.map_or(0.0, |last| last.difference_ns() as f64 / 1e9),
            held: self.clock.is_held(),
            confirmed_age_seconds: last.map_or(0.0, |last| seconds(last.confirmed_age_ns())),
            stale: last.is_some_and(|last| last.is_stale()),
            jumps_forward: jumps.forward,
            jumps_backward: jumps.backward,
        }
    }

    pub(super) fn metrics(&self) -> Result<MetricsReport, RequestError> {
        Ok(MetricsReport {
            status: self.status()?,
            counters: self.counters(None)?,
            program_runs: self.datapath.program_runs()?,
            now: unix_now(),
        })
    }

    pub(super) fn counters(&self, service: Option<&str>) -> Result<CounterReport, RequestError> {
        let selected = self.selected(service)?;
        let totals = self.datapath.counters.services()?;
        let count = |index, reason| {
            let counter = totals.of(index, reason);
            Count { packets: counter.packets, bytes: counter.bytes }
        };
        let of_service = |service: &Service| {
            let index = self.indices.of_service(service.id);
            let of_none = [Reason::NotOurs, Reason::TablesChanged];
            let reasons = Reason::ALL.iter().filter(|reason| !of_none.contains(reason));
            let reasons = reasons.map(|reason| ReasonCount {
                reason: reason.name().to_owned(),
                count: index.map_or_else(Count::default, |index| count(index, *reason)),
            });
            ServiceCounters {
                service: service.name.clone(),
                service_id: service.id,
                reasons: reasons.collect(),
            }
        };
        Ok(CounterReport {
            not_ours: count(0, Reason::NotOurs),
            buried: count(0, Reason::Unsupported),
            tables_changed: count(0, Reason::TablesChanged),
            services: selected.into_iter().map(of_service).collect(),
        })
    }

    pub(super) fn key_list(&self) -> Vec<KeyStatus> {
        let keys = self.stored.state().keyring.keys();
        keys.map(|key| KeyStatus {
            service: self.service_name(key.service_id),
            service_id: key.service_id,
            key_id: key.id.0,
            state: key.state,
            installed: self.keys.is_installed(key.id),
            created_at: key.created_at,
            activated_at: key.activated_at,
            not_after: key.not_after,
            imported: key.imported,
        })
        .collect()
    }

    pub(super) fn backend_list(&self, service: Option<&str>) -> Result<Vec<BackendStatus>, RequestError> {
        let totals = self.datapath.counters.backends()?;
        let mut list = Vec::new();
        for service in self.selected(service)? {
            for backend in &service.backends {
                let owner = BackendOwner { service_id: service.id, backend_id: backend.id };
                let (state, way) = self.backends.get(owner).unzip();
                let way = way.flatten();
                let prefix = self.config.tunnel_source(backend.address);
                let prefix = prefix.filter(|_| service.forward.encapsulates()).map(ToString::to_string);
                let own =
                    || way.filter(|_| service.forward.has_own_source())?.source.map(|ip| ip.to_string());
                let source = prefix.or_else(own);
                let counter = self.indices.of_backend(owner).map(|counter| totals.at(counter));
                let counter = counter.unwrap_or_default();
                list.push(BackendStatus {
                    service: service.name.clone(),
                    service_id: service.id,
                    id: backend.id,
                    name: backend.name.clone(),
                    address: backend.address.to_string(),
                    port: backend.port,
                    weight: backend.weight,
                    state: state.map_or("unused", |state| state.name()).to_owned(),
                    detail: state.map_or_else(
                        || "forward = \"local\" sends to this host alone".to_owned(),
                        ToString::to_string,
                    ),
                    up: state.is_some_and(crate::balancer::BackendState::is_up),
                    mac: way.map(|way| macs::shown(way.destination_mac)),
                    interface: way.map(|way| way.interface.clone()),
                    gateway: way.and_then(|way| Some(way.gateway?.to_string())),
                    tags: way.map_or_else(Vec::new, |way| tags(&way.tags)),
                    mtu: way.map(|way| way.mtu),
                    source,
                    packets: counter.packets,
                    bytes: counter.bytes,
                });
            }
        }
        Ok(list)
    }

    fn interface_statuses(&self) -> Vec<InterfaceStatus> {
        let names: Vec<_> = self.attachments.shown().collect();
        let accepted = macs::accepted(&names, &self.interfaces, &self.config.virtual_macs);
        names.iter().map(|name| self.interface(name, accepted.get(name))).collect()
    }

    fn interface(&self, name: &str, accepted: Option<&Accepted>) -> InterfaceStatus {
        let mode = self.attachments.mode_on(name, &self.interfaces);
        InterfaceStatus {
            name: name.to_owned(),
            attached: mode.is_some(),
            mode: mode.map(|mode| mode.name().to_owned()),
            program_id: mode.and(self.attachments.program_id()),
            macs: accepted.map_or_else(Vec::new, Accepted::shown),
            switched: accepted.is_some_and(|accepted| accepted.switched),
        }
    }

    fn service_status(&self, service: &Service, backends: &[BackendStatus]) -> ServiceStatus {
        let signer = self.stored.state().keyring.signer(service.id);
        let of_service = |backend: &&BackendStatus| backend.service_id == service.id;
        ServiceStatus {
            name: service.name.clone(),
            id: service.id,
            address: service.address.to_string(),
            port: service.port,
            mode: match service.mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            }
            .to_owned(),
            forward: service.forward.name().to_owned(),
            strip: service.strip,
            active_key: signer.filter(|key| self.keys.is_installed(key.id)).map(|key| key.id.0),
            backends_up: backends.iter().filter(of_service).filter(|backend| backend.up).count(),
            backends: service.backends.len(),
            revoked_before: self.stored.state().revocations.before(service.id),
        }
    }
}

/// As `ip` writes VLANs, the outermost first.
fn tags(tags: &Tags) -> Vec<String> {
    let Tags::Set(tags) = tags else { return Vec::new() };
    let shown = |tag: &lb_common::backend::Tag| {
        let protocol = match u16::from_be(tag.identifier_be) {
            0x88a8 => "802.1ad",
            _ => "802.1Q",
        };
        format!("{protocol} {}", u16::from_be(tag.control_be) & 0xfff)
    };
    tags.iter().map(shown).collect()
}
