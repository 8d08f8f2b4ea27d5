//! What is revoked, as the program looks it up.

use std::{collections::BTreeMap, sync::Arc};

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use lb_common::{maps::REVOCATIONS, revocation::RevocationKey};

use super::{DatapathError, LiveWords, batch};

/// The map of revocations: until when each counts, unix nanoseconds.
pub struct Revocations {
    live: Arc<LiveWords>,
    map: HashMap<MapData, RevocationKey, u64>,
}

impl Revocations {
    pub(super) fn new(live: Arc<LiveWords>, map: Map) -> Result<Self, DatapathError> {
        let revocations = Self { live, map: map.try_into().map_err(failed("open it"))? };
        // Whoever added these may have ended before that was counted, or the count has been lost since.
        if !revocations.all()?.is_empty() {
            revocations.live.bump_revocations();
        }
        Ok(revocations)
    }

    /// All of them.
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

    /// Adds to them, or changes their ends. When it returns, the next packet of each is refused, whatever is cached: also
    /// where it fails, for those that went in before.
    ///
    /// # Errors
    /// If the map cannot be written, as where it is full.
    pub fn insert(
        &mut self,
        entries: impl IntoIterator<Item = (RevocationKey, u64)>,
    ) -> Result<(), DatapathError> {
        let inserted = entries.into_iter().try_for_each(|(key, until)| self.map.insert(key, until, 0));
        self.live.bump_revocations();
        inserted.map_err(failed("write it"))
    }

    /// Takes some off.
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
