//! Requests about backends.

use super::Answers;
use crate::{
    control::{Controller, RequestError},
    datapath::BackendOwner,
    network::{BackendState, macs, resolve::Tags},
    protocol::{BackendStatus, ListBackends},
};

impl Answers<ListBackends> for Controller {
    async fn answer(&mut self, request: ListBackends) -> Result<Vec<BackendStatus>, RequestError> {
        self.backend_list(request.service.as_deref())
    }
}

impl Controller {
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
                    up: state.is_some_and(BackendState::is_up),
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
