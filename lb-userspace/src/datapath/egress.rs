//! The interfaces that the program may redirect frames to. The kernel removes an interface from the map when it is
//! removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use aya::maps::{
    Map, MapData, MapError,
    xdp::{DevMapHash, XdpMapError},
};
use lb_common::maps::{EGRESS, EGRESS_MAX};

use super::DatapathError;

/// The map of devices.
pub struct Egress {
    devices: DevMapHash<MapData>,
    grace: Duration,
    /// Interfaces in the map that are no longer wanted, and since when.
    unwanted: BTreeMap<u32, Instant>,
}

impl Egress {
    pub(super) fn new(map: Map, grace: Duration) -> Result<Self, DatapathError> {
        let devices =
            map.try_into().map_err(|source| DatapathError::Map { map: EGRESS, action: "open it", source })?;
        Ok(Self { devices, grace, unwanted: BTreeMap::new() })
    }

    /// Adds these interfaces, by index. Removes interfaces that have been unused for a while: until then, a packet may
    /// still be redirected to them. Returns the errors of interfaces that cannot be added.
    ///
    /// # Errors
    /// If the map cannot be read, or an interface cannot be removed.
    pub fn sync(&mut self, wanted: &BTreeSet<u32>) -> Result<Vec<DatapathError>, DatapathError> {
        let failed = |action, source| DatapathError::Map { map: EGRESS, action, source };
        let there: BTreeSet<u32> =
            self.devices.keys().collect::<Result<_, _>>().map_err(|source| failed("read it", source))?;
        let mut refused = Vec::new();
        for index in wanted.difference(&there) {
            match self.devices.insert(*index, *index, None, 0) {
                Ok(()) => {}
                Err(error) if is_full(&error) => {
                    let (wanted, capacity) = (wanted.len(), EGRESS_MAX as usize);
                    refused.push(DatapathError::Full { what: "interfaces to redirect to", wanted, capacity });
                    break;
                }
                Err(XdpMapError::MapError(source)) => refused.push(failed("add an interface", source)),
                Err(error) => {
                    let source = MapError::IoError(io::Error::other(error));
                    refused.push(failed("add an interface", source));
                }
            }
        }
        self.unwanted.retain(|index, _| there.contains(index) && !wanted.contains(index));
        for index in there.difference(wanted) {
            let since = *self.unwanted.entry(*index).or_insert_with(Instant::now);
            if since.elapsed() < self.grace {
                continue;
            }
            match self.devices.remove(*index) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("remove an interface", source)),
            }
        }
        Ok(refused)
    }
}

fn is_full(error: &XdpMapError) -> bool {
    let XdpMapError::MapError(MapError::SyscallError(error)) = error else { return false };
    error.io_error.raw_os_error() == Some(libc::E2BIG)
}
