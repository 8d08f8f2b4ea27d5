//! The owners of counters, in maps pinned beside the counters, so that both last equally long. The program does not
//! use these maps.

use aya::maps::{Array, IterableMap as _, MapData};
use lb_common::maps::{BACKENDS_MAX, SERVICES_MAX};

use super::{DatapathError, Pins, batch, own_map};

const SERVICE_OWNERS: &str = "service_owners";
const BACKEND_OWNERS: &str = "backend_owners";

/// The service of each index, and the backend of each counter; 0 if the index or counter was never used.
pub struct Owners {
    services: Array<MapData, u32>,
    backends: Array<MapData, u64>,
}

/// A backend of a service, as a word of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendOwner {
    /// The service.
    pub service_id: u32,
    /// The backend.
    pub backend_id: u16,
}

impl BackendOwner {
    const fn to_word(self) -> u64 {
        (self.service_id as u64) << 16 | self.backend_id as u64
    }

    const fn from_word(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self { service_id: (word >> 16) as u32, backend_id: word as u16 })
    }
}

impl Owners {
    /// The maps that hold the owners.
    pub(super) fn maps(&self) -> [(&'static str, &MapData); 2] {
        [(SERVICE_OWNERS, self.services.map()), (BACKEND_OWNERS, self.backends.map())]
    }

    pub(super) fn open(pins: Option<&Pins>) -> Result<Self, DatapathError> {
        let services = own_map::open::<u32>(pins, SERVICE_OWNERS, SERVICES_MAX)?;
        let backends = own_map::open::<u64>(pins, BACKEND_OWNERS, BACKENDS_MAX)?;
        Ok(Self { services, backends })
    }

    /// Id of the service of each index, or 0.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn services(&self) -> Result<Vec<u32>, DatapathError> {
        batch::array(self.services.map(), 1).map_err(|source| DatapathError::Map {
            map: SERVICE_OWNERS,
            action: "read it",
            source,
        })
    }

    /// The backend of each counter.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn backends(&self) -> Result<Vec<Option<BackendOwner>>, DatapathError> {
        let words: Vec<u64> = batch::array(self.backends.map(), 1).map_err(|source| DatapathError::Map {
            map: BACKEND_OWNERS,
            action: "read it",
            source,
        })?;
        Ok(words.into_iter().map(BackendOwner::from_word).collect())
    }

    /// Assigns an index to a service; clear its counters first.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn set_service(&mut self, index: u32, service_id: u32) -> Result<(), DatapathError> {
        self.services.set(index, service_id, 0).map_err(|source| DatapathError::Map {
            map: SERVICE_OWNERS,
            action: "write it",
            source,
        })
    }

    /// Assigns a counter to a backend; clear the counter first.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn set_backend(&mut self, counter: u32, owner: BackendOwner) -> Result<(), DatapathError> {
        self.backends.set(counter, owner.to_word(), 0).map_err(|source| DatapathError::Map {
            map: BACKEND_OWNERS,
            action: "write it",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_a_backend() {
        for owner in [
            BackendOwner { service_id: 1, backend_id: 1 },
            BackendOwner { service_id: u32::MAX, backend_id: u16::MAX },
        ] {
            assert_eq!(BackendOwner::from_word(owner.to_word()), Some(owner));
        }
        assert_eq!(BackendOwner::from_word(0), None);
    }
}
