//! Services, MAC addresses, Maglev tables and backends: what they should be, against what counts in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::mac::MacEntry;
use tracing::debug;

use super::{
    Controller, Outcome,
    desired::{self, Placed},
};
use crate::{
    datapath::{BackendOwner, DatapathError, Snapshot, TableSet},
    network::macs,
};

/// The tables, and what they were built from.
pub struct Built {
    placed: Vec<Placed>,
    macs: BTreeSet<MacEntry>,
    set: TableSet,
}

impl Controller {
    pub(super) fn sync_tables(&mut self, outcome: &mut Outcome) {
        if let Err(error) = self.publish_tables(outcome) {
            outcome.failed(vec!["the tables of services and backends".to_owned()], &error);
        }
    }

    /// Publishes the tables if others count.
    ///
    /// # Errors
    /// If they do not fit or cannot be written. Then those from before count.
    pub(super) fn publish_tables(&mut self, outcome: &mut Outcome) -> Result<(), DatapathError> {
        let live = self.datapath.tables.live()?;
        let placed = self.place(&live, outcome)?;
        // A Maglev table takes a millisecond: not every second for each.
        let filtered = self.attachments.filtered(&self.links);
        let macs =
            macs::entries(&filtered, &self.interfaces, &self.config.virtual_macs, self.config.xdp_mode);
        let built = match self.built.take().filter(|built| built.placed == placed && built.macs == macs) {
            Some(built) => built,
            None => {
                let snapshot = Snapshot { macs: macs.clone(), ..desired::snapshot(&self.config, &placed) };
                Built { placed, macs, set: TableSet::new(&snapshot)? }
            }
        };
        let built = self.built.insert(built);
        // Before a packet can be sent there; those of the tables that count stay for as long as they do.
        let names = self.attachments.names();
        let attached = names.iter().filter_map(|name| self.interfaces.get(name));
        let backends = built.set.backends().iter().chain(live.backends());
        let egress = attached.map(|interface| interface.index).chain(backends.map(|backend| backend.ifindex));
        let refused = self.datapath.egress.sync(&egress.collect())?;
        outcome.errors.extend(refused.iter().map(ToString::to_string));
        let differences = built.set.differences(&live);
        if differences.is_empty() {
            return Ok(());
        }
        debug!("publishing: {}", differences.join(", "));
        self.datapath.tables.publish(&built.set)
    }

    /// Gives every service its index and every usable backend its counter. One that cannot have one yet, because all
    /// are in use by what is about to go, gets it in the next round.
    fn place(&mut self, live: &TableSet, outcome: &mut Outcome) -> Result<Vec<Placed>, DatapathError> {
        let services: BTreeSet<u32> = self.config.services.iter().map(|service| service.id).collect();
        let backends: BTreeSet<BackendOwner> = self.backends.owners().collect();
        let mut placed = Vec::new();
        for service in &self.config.services {
            let index = self.indices.service(service.id, &services, live, &mut self.datapath)?;
            let Some(index) = index else {
                outcome.differences.push(format!("service {} waits for an index", service.name));
                continue;
            };
            let mut placed_backends = BTreeMap::new();
            for (owner, way) in self.backends.up(service.id) {
                let counter = self.indices.backend(owner, &backends, live, &mut self.datapath)?;
                let Some(counter) = counter else {
                    let name = &service.name;
                    outcome
                        .differences
                        .push(format!("backend {} of {name} waits for a counter", owner.backend_id));
                    continue;
                };
                placed_backends.insert(owner.backend_id, (counter, way.clone()));
            }
            placed.push(Placed {
                service_id: service.id,
                index,
                revoked_before: self.stored.state().revocations.before(service.id),
                backends: placed_backends,
            });
        }
        Ok(placed)
    }
}
