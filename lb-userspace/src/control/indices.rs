//! Allocates the index of each service and the counter of each backend. An allocation lasts as long as the counters.

use std::collections::{BTreeMap, BTreeSet};

use crate::datapath::{BackendOwner, Datapath, DatapathError, TableSet};

/// The owners of all indices and counters.
#[derive(Clone, Debug, Default)]
pub struct Indices {
    services: Assignment<u32>,
    backends: Assignment<BackendOwner>,
}

impl Indices {
    /// Reads the allocations from the kernel.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn read(datapath: &Datapath) -> Result<Self, DatapathError> {
        let services = datapath.owners.services()?;
        let services = services.into_iter().map(|owner| Some(owner).filter(|id| *id != 0));
        let backends = datapath.owners.backends()?;
        Ok(Self { services: Assignment::new(services, 1), backends: Assignment::new(backends, 0) })
    }

    /// The index of a service. A service without one gets an index that was never used, or one whose service is neither
    /// `wanted` nor in the active tables any more; `None` if there is none at the moment.
    ///
    /// # Errors
    /// If a map cannot be written. Then nothing has changed.
    pub fn service(
        &mut self,
        id: u32,
        wanted: &BTreeSet<u32>,
        active: &TableSet,
        datapath: &mut Datapath,
    ) -> Result<Option<u32>, DatapathError> {
        if let Some(index) = self.services.of(&id) {
            return Ok(Some(index));
        }
        let in_use: BTreeSet<u32> = active.services().map(|(_, service)| service.index).collect();
        let Some(index) =
            self.services.free(|owner, index| !wanted.contains(owner) && !in_use.contains(&index))
        else {
            return Ok(None);
        };
        datapath.counters.clear_service(index)?;
        datapath.owners.set_service(index, id)?;
        self.services.give(index, id);
        Ok(Some(index))
    }

    /// The counter of a backend; see [`Indices::service`].
    ///
    /// # Errors
    /// If a map cannot be written. Then nothing has changed.
    pub fn backend(
        &mut self,
        owner: BackendOwner,
        wanted: &BTreeSet<BackendOwner>,
        active: &TableSet,
        datapath: &mut Datapath,
    ) -> Result<Option<u32>, DatapathError> {
        if let Some(counter) = self.backends.of(&owner) {
            return Ok(Some(counter));
        }
        let in_use: BTreeSet<u32> = active.backends().iter().map(|backend| backend.counter).collect();
        let Some(counter) =
            self.backends.free(|owner, counter| !wanted.contains(owner) && !in_use.contains(&counter))
        else {
            return Ok(None);
        };
        datapath.counters.clear_backend(counter)?;
        datapath.owners.set_backend(counter, owner)?;
        self.backends.give(counter, owner);
        Ok(Some(counter))
    }

    /// The index of a service, if it has one.
    pub fn of_service(&self, id: u32) -> Option<u32> {
        self.services.of(&id)
    }

    /// The counter of a backend, if it has one.
    pub fn of_backend(&self, owner: BackendOwner) -> Option<u32> {
        self.backends.of(&owner)
    }
}

#[derive(Clone, Debug)]
struct Assignment<O> {
    owners: Vec<Option<O>>,
    indices: BTreeMap<O, u32>,
    first: u32,
}

impl<O> Default for Assignment<O> {
    fn default() -> Self {
        Self { owners: Vec::new(), indices: BTreeMap::new(), first: 0 }
    }
}

impl<O: Copy + Ord> Assignment<O> {
    /// `first` is the first index that may be allocated.
    fn new(owners: impl IntoIterator<Item = Option<O>>, first: u32) -> Self {
        let owners: Vec<_> = owners.into_iter().collect();
        let indices = (0..).zip(&owners).filter_map(|(index, owner)| Some(((*owner)?, index))).collect();
        Self { owners, indices, first }
    }

    fn of(&self, owner: &O) -> Option<u32> {
        self.indices.get(owner).copied()
    }

    fn free(&self, may_be_taken: impl Fn(&O, u32) -> bool) -> Option<u32> {
        let candidates = || (0..).zip(&self.owners).skip(self.first as usize);
        let unused = candidates().find(|(_, owner)| owner.is_none());
        let taken = || {
            candidates()
                .find(|(index, owner)| owner.as_ref().is_some_and(|owner| may_be_taken(owner, *index)))
        };
        unused.or_else(taken).map(|(index, _)| index)
    }

    fn give(&mut self, index: u32, owner: O) {
        if let Some(before) = self.owners[index as usize].replace(owner) {
            self.indices.remove(&before);
        }
        self.indices.insert(owner, index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_stays_its_owners_and_goes_on_only_when_none_is_left() {
        let mut assignment = Assignment::new([None, Some(7u32), None, Some(9)], 1);
        assert_eq!(assignment.of(&7), Some(1));
        assert_eq!(assignment.free(|_, _| true), Some(2), "an unused index is first, and 0 is never given");
        assignment.give(2, 8);
        assert_eq!(assignment.free(|_, _| false), None);
        assert_eq!(assignment.free(|owner, _| *owner == 9), Some(3));
        assert_eq!(assignment.free(|_, index| index != 1 && index != 3), Some(2));
        assignment.give(3, 10);
        assert_eq!((assignment.of(&9), assignment.of(&10)), (None, Some(3)));
    }
}
