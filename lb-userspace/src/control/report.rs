//! What the loop knows, for people and for Prometheus.

use std::collections::BTreeMap;

use lb_common::{maps::ABI_VERSION, reason::Reason};

use super::{Controller, RequestError, clock::unix_now, way::Tags};
use crate::{
    api::messages::{
        BackendStatus, Count, CounterReport, InterfaceStatus, KeyStatus, ReasonCount, ServiceCounters,
        ServiceStatus, Status,
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
        let not_ready = self.ready.borrow().clone().err().unwrap_or_default();
        let backends = self.backend_list(None)?;
        Ok(Status {
            node: self.config.node.clone(),
            version: version::VERSION.to_owned(),
            commit: version::COMMIT.to_owned(),
            abi: ABI_VERSION,
            ready: not_ready.is_empty(),
            not_ready,
            pid: std::process::id(),
            uptime_seconds: self.started_at.elapsed().as_secs(),
            interfaces: self.config.interfaces.iter().map(|name| self.interface(name)).collect(),
            services: self
                .config
                .services
                .iter()
                .map(|service| self.service_status(service, &backends))
                .collect(),
            keys: self.key_list(),
            backends,
            differences: self.outcome.differences.clone(),
            errors: self.outcome.errors.clone(),
            store_revision: self.keys.revision(),
            store_connected: self.store_connected,
            sessions: self.datapath.counters.sessions()?,
            sessions_max: self.config.sessions,
            nat_translations: match self.config.ports_of_nat() {
                Some(_) => Some(self.datapath.counters.translations()?),
                None => None,
            },
            hmacs: self.datapath.counters.hmacs()?,
        })
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
            let reasons = Reason::ALL.iter().filter(|reason| **reason != Reason::NotOurs);
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
            services: selected.into_iter().map(of_service).collect(),
        })
    }

    pub(super) fn key_list(&self) -> Vec<KeyStatus> {
        let names: BTreeMap<u32, &str> =
            self.config.services.iter().map(|service| (service.id, service.name.as_str())).collect();
        let keys = self.keys.keyring().keys();
        keys.map(|key| KeyStatus {
            service: names
                .get(&key.service_id)
                .map_or_else(|| key.service_id.to_string(), |name| (*name).to_owned()),
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
                    mac: way.map(|way| mac(way.destination_mac)),
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

    fn interface(&self, name: &str) -> InterfaceStatus {
        let mode = self.attachments.mode_on(name, &self.interfaces);
        InterfaceStatus {
            name: name.to_owned(),
            attached: mode.is_some(),
            mode: mode.map(|mode| mode.name().to_owned()),
            program_id: mode.and(self.attachments.program_id()),
        }
    }

    fn service_status(&self, service: &Service, backends: &[BackendStatus]) -> ServiceStatus {
        let signer = self.keys.keyring().signer(service.id);
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
        }
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
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
