//! Records the newest commit of the store that a daemon has read or written. The record is pinned next to the kernel
//! state that was made from this store.

use aya::maps::{Array, IterableMap as _, MapData, MapError};

use super::{DatapathError, Pins, own_map};
use crate::store::Commit;

/// An array of one [`Commit`]; zeros if none is recorded.
pub struct LastCommit(Array<MapData, [u8; Commit::LEN]>);

impl LastCommit {
    /// Name of the map and of its pin.
    pub const NAME: &str = "last_commit";

    /// Opens the pinned map, or creates and pins a new one. Without pins, creates a map that is private to this
    /// process.
    ///
    /// # Errors
    /// If it cannot be created, or another object is pinned by its name.
    pub fn open(pins: Option<&Pins>) -> Result<Self, DatapathError> {
        own_map::open(pins, Self::NAME, 1).map(Self)
    }

    /// The pinned map; `None` if there is none.
    ///
    /// # Errors
    /// If this process may not open it, or another object is pinned by its name.
    pub fn find(pins: &Pins) -> Result<Option<Self>, DatapathError> {
        Ok(own_map::find(pins, Self::NAME, 1)?.map(Self))
    }

    /// The recorded commit.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn read(&self) -> Result<Option<Commit>, DatapathError> {
        let commit = Commit::from_bytes(&self.0.get(&0, 0).map_err(failed("read it"))?);
        Ok(Some(commit).filter(|commit| *commit != Commit::default()))
    }

    /// Records a commit.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn write(&mut self, commit: &Commit) -> Result<(), DatapathError> {
        self.0.set(0, commit.to_bytes(), 0).map_err(failed("write it"))
    }

    pub(super) fn map(&self) -> &MapData {
        self.0.map()
    }
}

fn failed(action: &'static str) -> impl FnOnce(MapError) -> DatapathError {
    move |source| DatapathError::Map { map: LastCommit::NAME, action, source }
}
