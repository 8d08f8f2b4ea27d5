//! Arrays that the daemon creates and pins itself; the program does not use them.

use aya::maps::{Array, Map, MapData, MapType};

use super::{DatapathError, Pins, error::chain};

/// The pinned array; created and pinned if it does not exist. Without pins, an array private to this process.
pub(super) fn open<V: aya::Pod>(
    pins: Option<&Pins>,
    name: &'static str,
    entries: u32,
) -> Result<Array<MapData, V>, DatapathError> {
    let Some(pins) = pins else { return typed(name, create::<V>(name, entries)?) };
    if let Some(found) = find(pins, name, entries)? {
        return Ok(found);
    }
    let map = create::<V>(name, entries)?;
    let path = pins.map(name);
    map.pin(&path).map_err(|error| DatapathError::Pin {
        path: pins.name(&path),
        action: "pin the map",
        source: std::io::Error::other(chain(&error)),
        hint: "run as root",
    })?;
    typed(name, map)
}

/// The pinned array; `None` if nothing is pinned by this name.
pub(super) fn find<V: aya::Pod>(
    pins: &Pins,
    name: &'static str,
    entries: u32,
) -> Result<Option<Array<MapData, V>>, DatapathError> {
    let failed = |action| move |source| DatapathError::Map { map: name, action, source };
    let path = pins.map(name);
    let there = path.try_exists().map_err(|source| DatapathError::Pin {
        path: pins.name(&path),
        action: "look for the pin",
        source,
        hint: "run as root",
    })?;
    if !there {
        return Ok(None);
    }
    let map = MapData::from_pin(&path).map_err(failed("open its pin"))?;
    let info = map.info().map_err(failed("look at it"))?;
    let found = (info.map_type().ok(), info.key_size(), info.value_size(), info.max_entries());
    let wanted = (Some(MapType::Array), 4, size_of::<V>() as u32, entries);
    if found != wanted {
        let [found, wanted] = [found, wanted].map(|layout| format!("{layout:?}"));
        return Err(DatapathError::Layout { path: pins.name(&path), found, wanted });
    }
    typed(name, map).map(Some)
}

fn create<V>(name: &'static str, entries: u32) -> Result<MapData, DatapathError> {
    let map = aya_obj::Map::new_from_params(MapType::Array as u32, 4, size_of::<V>() as u32, entries, 0);
    MapData::create(map, name, None).map_err(|source| DatapathError::Map {
        map: name,
        action: "make it",
        source,
    })
}

fn typed<V: aya::Pod>(name: &'static str, map: MapData) -> Result<Array<MapData, V>, DatapathError> {
    Map::Array(map).try_into().map_err(|source| DatapathError::Map { map: name, action: "open it", source })
}
