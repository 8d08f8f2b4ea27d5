//! Requests about backends.

use super::Answers;
use crate::{
    control::{Controller, RequestError},
    datapath::BackendOwner,
    network::{BackendState, macs, resolve::Tags},
    protocol::{BackendStatus, List, ListBackends},
};

impl Answers<ListBackends> for Controller {
    async fn answer(&mut self, request: ListBackends) -> Result<List<BackendStatus>, RequestError> {
        Ok(self.backend_list(request.service.as_deref())?.into())
    }
}

impl Controller {
    pub(super) fn backend_list(&self, service: Option<&str>) -> Result<Vec<BackendStatus>, RequestError> {
        let totals = self.datapath.counters.backends()?;
        let mut list = Vec::new();
        for service in self.selected(service)? {
            for backend in &service.backends {
                let owner = BackendOwner { service_id: service.id, backend_id: backend.id };
                let (state, next_hop) = self.backends.get(owner).unzip();
                let next_hop = next_hop.flatten();
                let prefix = self.config.tunnel_source(backend.address);
                let prefix = prefix.filter(|_| service.forward.encapsulates()).map(ToString::to_string);
                let own =
                    || next_hop.filter(|_| service.forward.has_own_source())?.source.map(|ip| ip.to_string());
                let source = prefix.or_else(own);
                let counter = self.indices.of_backend(owner).map(|counter| totals.at(counter));
                let counter = counter.unwrap_or_default();
                list.push(BackendStatus {
                    service: service.name.clone(),
                    service_id: service.id,
                    backend_id: backend.id,
                    name: backend.name.clone(),
                    address: backend.address.to_string(),
                    port: backend.port,
                    weight: backend.weight,
                    state: state.map_or("unused", |state| state.name()).to_owned(),
                    detail: state.map_or_else(
                        || "forward = \"local\" delivers to this host only".to_owned(),
                        ToString::to_string,
                    ),
                    up: state.is_some_and(BackendState::is_up),
                    mac: next_hop.map(|next_hop| macs::shown(next_hop.destination_mac)),
                    interface: next_hop.map(|next_hop| next_hop.interface.clone()),
                    gateway: next_hop.and_then(|next_hop| Some(next_hop.gateway?.to_string())),
                    vlan_tags: next_hop.map_or_else(Vec::new, |next_hop| tags(&next_hop.tags)),
                    mtu: next_hop.map(|next_hop| next_hop.mtu),
                    source,
                    packets: counter.packets,
                    bytes: counter.bytes,
                });
            }
        }
        Ok(list)
    }
}

/// VLAN tags as `ip` shows them, outermost first.
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
