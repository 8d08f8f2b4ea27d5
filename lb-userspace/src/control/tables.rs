//! Services, MAC addresses, Maglev tables and backends: publishes the desired tables if the active ones in the kernel
//! differ.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::mac::MacEntry;
use tracing::debug;

use super::{
    Controller, Outcome,
    desired::{self, Allocated},
};
use crate::{
    datapath::{BackendOwner, DatapathError, Snapshot, TableSet},
    network::macs,
};

/// The desired tables, and the input that they were built from.
pub struct Built {
    allocated: Vec<Allocated>,
    macs: BTreeSet<MacEntry>,
    set: TableSet,
}

impl Controller {
    pub(super) fn sync_tables(&mut self, outcome: &mut Outcome) {
        if let Err(error) = self.publish_tables(outcome) {
            outcome.failed(vec!["the tables of services and backends".to_owned()], &error);
        }
    }

    /// Publishes the desired tables if the active ones differ.
    ///
    /// # Errors
    /// If they do not fit or cannot be written; then the tables before stay active.
    pub(super) fn publish_tables(&mut self, outcome: &mut Outcome) -> Result<(), DatapathError> {
        let active = self.datapath.tables.active()?;
        let allocated = self.allocate(&active, outcome)?;
        // A Maglev table takes a millisecond to build: rebuild only if the input has changed.
        let filtered = self.attachments.filtered(&self.links);
        let macs =
            macs::entries(&filtered, &self.interfaces, &self.config.virtual_macs, self.config.xdp_mode);
        let built = match self.built.take().filter(|built| built.allocated == allocated && built.macs == macs)
        {
            Some(built) => built,
            None => {
                let snapshot = Snapshot { macs: macs.clone(), ..desired::snapshot(&self.config, &allocated) };
                Built { allocated, macs, set: TableSet::new(&snapshot)? }
            }
        };
        let built = self.built.insert(built);
        // Devices must be in `egress` before a packet can be redirected to them; those of the active tables stay.
        let names = self.attachments.names();
        let attached = names.iter().filter_map(|name| self.interfaces.get(name));
        let backends = built.set.backends().iter().chain(active.backends());
        let egress = attached.map(|interface| interface.index).chain(backends.map(|backend| backend.ifindex));
        let refused = self.datapath.egress.sync(&egress.collect())?;
        outcome.errors.extend(refused.iter().map(ToString::to_string));
        let differences = built.set.differences(&active);
        if differences.is_empty() {
            return Ok(());
        }
        debug!("publishing: {}", differences.join(", "));
        self.datapath.tables.publish(&built.set)
    }

    /// Allocates an index for every service and a counter for every usable backend. Where all are in use by entries
    /// that are about to be removed, the allocation is tried again in the next round.
    fn allocate(
        &mut self,
        active: &TableSet,
        outcome: &mut Outcome,
    ) -> Result<Vec<Allocated>, DatapathError> {
        let services: BTreeSet<u32> = self.config.services.iter().map(|service| service.id).collect();
        let backends: BTreeSet<BackendOwner> = self.backends.owners().collect();
        let mut allocated = Vec::new();
        for service in &self.config.services {
            let index = self.indices.service(service.id, &services, active, &mut self.datapath)?;
            let Some(index) = index else {
                outcome.differences.push(format!("service {} waits for an index", service.name));
                continue;
            };
            let mut usable = BTreeMap::new();
            for (owner, next_hop) in self.backends.up(service.id) {
                let counter = self.indices.backend(owner, &backends, active, &mut self.datapath)?;
                let Some(counter) = counter else {
                    let name = &service.name;
                    outcome
                        .differences
                        .push(format!("backend {} of {name} waits for a counter", owner.backend_id));
                    continue;
                };
                usable.insert(owner.backend_id, (counter, next_hop.clone()));
            }
            allocated.push(Allocated {
                service_id: service.id,
                index,
                revoked_before: self.stored.state().revocations.before(service.id),
                backends: usable,
            });
        }
        Ok(allocated)
    }
}
