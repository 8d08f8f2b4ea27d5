//! Compares pinned maps with those of the object: aya reuses a pin without checks, and a wrong value size corrupts
//! memory.

use aya::maps::{MapData, MapError, MapInfo, MapType};
use aya_obj::generated::BPF_F_RDONLY_PROG;
use lb_common::maps;

use super::{DatapathError, Options, Pins, error::chain, options::LEAST_ENTRIES};

/// Properties that must be equal for a pinned map to be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl Layout {
    /// The layout of each map of the object, by name, for a load with these options.
    pub(super) fn of_object(
        object: &[u8],
        options: &Options,
    ) -> Result<Vec<(&'static str, Self)>, DatapathError> {
        let parsed =
            aya_obj::Object::parse(object).map_err(|error| DatapathError::Object(Box::new(error)))?;
        maps::ALL
            .into_iter()
            .map(|name| {
                let map = parsed.maps.get(name).ok_or(DatapathError::Missing { what: "map", name })?;
                let entries = options.entries(name).unwrap_or(map.max_entries());
                let layout = Self {
                    kind: map.map_type(),
                    key: map.key_size(),
                    value: map.value_size(),
                    entries,
                    flags: map.map_flags(),
                };
                Ok((name, layout))
            })
            .collect()
    }

    fn of_pin(info: &MapInfo) -> Result<Self, MapError> {
        let kind = info.map_type()?;
        // The kernel adds this flag to every device map.
        let added = match kind {
            MapType::DevMap | MapType::DevMapHash => BPF_F_RDONLY_PROG,
            _ => 0,
        };
        Ok(Self {
            kind: kind as u32,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags() & !added,
        })
    }
}

/// Compares each pinned map with the object. A token cache, flows or translations of another size are unpinned, so
/// that loading creates them again: each token costs one more HMAC verification, and the next datagrams of clients
/// create flows and translations again. Returns the maps that start empty although other pinned maps do not.
///
/// Without the pin of `control`, which counts revocations, the token caches are created again, too.
///
/// # Errors
/// For any other difference, before anything has changed.
pub(super) fn reconcile(
    pins: &Pins,
    wanted: &[(&'static str, Layout)],
) -> Result<Vec<&'static str>, DatapathError> {
    let (mut anew, mut missing, mut unused) = (Vec::new(), Vec::new(), Vec::new());
    for (name, wanted) in wanted {
        let path = pins.map(name);
        if !path.exists() {
            missing.push(*name);
            continue;
        }
        let found = MapData::from_pin(&path)
            .and_then(|map| map.info())
            .and_then(|info| Layout::of_pin(&info))
            .map_err(|error| DatapathError::Refused {
                cause: format!("{}: {}", pins.name(&path).display(), chain(&error)),
                hint: "is this a pinned map? `tollgate detach` removes all pins",
            })?;
        let counts_anew =
            [maps::SESSIONS, maps::STATEFUL].contains(name) && !pins.map(maps::CONTROL).exists();
        if found == *wanted && !counts_anew {
            continue;
        }
        let cache = [maps::SESSIONS, maps::STATEFUL, maps::FLOWS, maps::TRANSLATIONS].contains(name);
        if cache && (Layout { entries: wanted.entries, ..found }) == *wanted {
            if found.entries == LEAST_ENTRIES {
                unused.push(*name);
            } else {
                anew.push(*name);
            }
            continue;
        }
        return Err(DatapathError::Layout {
            path: pins.name(&path),
            found: found.beside(wanted),
            wanted: wanted.beside(&found),
        });
    }
    for name in anew.iter().chain(&unused) {
        pins.remove(&pins.map(name))?;
    }
    if missing.len() < wanted.len() {
        anew.extend(missing);
    }
    Ok(anew)
}

impl Layout {
    /// The fields that differ from those of `other`.
    fn beside(&self, other: &Self) -> String {
        let fields = [
            ("type", self.kind, other.kind),
            ("key bytes", self.key, other.key),
            ("value bytes", self.value, other.value),
            ("entries", self.entries, other.entries),
            ("flags", self.flags, other.flags),
        ];
        let differing = fields.iter().filter(|(_, mine, theirs)| mine != theirs);
        differing.map(|(name, mine, _)| format!("{name} {mine}")).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named() {
        let one = Layout { kind: 2, key: 4, value: 24, entries: 10, flags: 0 };
        let other = Layout { value: 32, flags: 1024, ..one };
        assert_eq!(one.beside(&other), "value bytes 24, flags 0");
        assert_eq!(other.beside(&one), "value bytes 32, flags 1024");
    }
}
