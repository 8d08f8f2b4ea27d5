//! The revocations in the kernel.

use std::{collections::BTreeMap, sync::Arc};

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use lb_common::{maps::REVOCATIONS, revocation::RevocationKey};

use super::{DatapathError, MappedControlPage, batch};

/// The map of revocations, each with its end as Unix time in nanoseconds.
pub struct Revocations {
    control_page: Arc<MappedControlPage>,
    map: HashMap<MapData, RevocationKey, u64>,
}

impl Revocations {
    pub(super) fn new(control_page: Arc<MappedControlPage>, map: Map) -> Result<Self, DatapathError> {
        let revocations = Self { control_page, map: map.try_into().map_err(failed("open it"))? };
        // An earlier daemon may have ended between adding and counting revocations, or the count was lost.
        if !revocations.all()?.is_empty() {
            revocations.control_page.bump_revocations();
        }
        Ok(revocations)
    }

    /// All revocations.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn all(&self) -> Result<BTreeMap<RevocationKey, u64>, DatapathError> {
        let mut all = BTreeMap::new();
        batch::lookup_all::<RevocationKey, u64>(self.map.map(), 1, 4096, |keys, ends| {
            all.extend(keys.iter().copied().zip(ends.iter().copied()));
        })
        .map_err(failed("read it"))?;
        Ok(all)
    }

    /// Adds revocations, or changes their ends. When it returns, even with an error, the next packet of each written
    /// revocation is refused, even if its token is cached.
    ///
    /// # Errors
    /// If the map cannot be written, for example because it is full.
    pub fn insert(
        &mut self,
        entries: impl IntoIterator<Item = (RevocationKey, u64)>,
    ) -> Result<(), DatapathError> {
        let inserted = entries.into_iter().try_for_each(|(key, until)| self.map.insert(key, until, 0));
        self.control_page.bump_revocations();
        inserted.map_err(failed("write it"))
    }

    /// Removes revocations.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn remove<'k>(
        &mut self,
        keys: impl IntoIterator<Item = &'k RevocationKey>,
    ) -> Result<(), DatapathError> {
        keys.into_iter().try_for_each(|key| match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(failed("write it")(source)),
        })
    }
}

fn failed(action: &'static str) -> impl FnOnce(MapError) -> DatapathError {
    move |source| DatapathError::Map { map: REVOCATIONS, action, source }
}
