//! Requests about the state of the node.

use lb_common::{
    maps::{ABI_VERSION, REVOCATIONS_MAX},
    revocation::REVOKED_SESSION,
};

use super::Answers;
use crate::{
    config::{Mode, Service},
    control::{Controller, RequestError, clock::unix_now},
    network::macs::{self, Accepted},
    protocol::{
        BackendStatus, GetStatus, InterfaceStatus, List, ListServices, RevocationCounts, ServiceStatus,
        Status,
    },
    version,
};

impl Answers<GetStatus> for Controller {
    async fn answer(&mut self, GetStatus {}: GetStatus) -> Result<Status, RequestError> {
        self.status()
    }
}

impl Answers<ListServices> for Controller {
    async fn answer(&mut self, ListServices {}: ListServices) -> Result<List<ServiceStatus>, RequestError> {
        Ok(self.service_statuses(&self.backend_list(None)?).into())
    }
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
            token_cache_entries: sessions.stateless,
            stateful_entries: sessions.stateful,
            token_cache_capacity: self.config.sessions,
            nat_translations: match self.config.ports_of_nat() {
                Some(_) => Some(self.datapath.counters.translations()?),
                None => None,
            },
            hmac_verifications: self.datapath.counters.hmacs()?,
        })
    }

    fn service_statuses(&self, backends: &[BackendStatus]) -> Vec<ServiceStatus> {
        self.config.services.iter().map(|service| self.service_status(service, backends)).collect()
    }

    fn revocation_counts(&self) -> RevocationCounts {
        let mut counts = RevocationCounts { sessions: 0, tokens: 0, capacity: REVOCATIONS_MAX };
        for (key, _) in self.stored.state().revocations.in_force(unix_now()) {
            let count = if key.kind == REVOKED_SESSION { &mut counts.sessions } else { &mut counts.tokens };
            *count += 1;
        }
        counts
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
            service_id: service.id,
            address: service.address.to_string(),
            port: service.port,
            mode: match service.mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            }
            .to_owned(),
            forward: service.forward.name().to_owned(),
            strip: service.strip,
            active_key_id: signer.filter(|key| self.keys.is_installed(key.id)).map(|key| key.id.0),
            backends_up: backends.iter().filter(of_service).filter(|backend| backend.up).count(),
            backends: service.backends.len(),
            revoked_before: self.stored.state().revocations.before(service.id),
        }
    }
}
