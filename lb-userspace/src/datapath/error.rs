//! Errors of the XDP program and its maps.

use std::{io, path::PathBuf, time::Duration};

use aya::maps::MapError;

/// Why the XDP program or its maps cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Built without a BPF object.
    #[error("this tollgate was built without its XDP program; build it with `cargo xtask build`")]
    NoObject,
    /// aya cannot parse the object.
    #[error("the XDP program cannot be read: {0}; build it anew with `cargo xtask build`")]
    Object(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The object lacks a map or program.
    #[error("the XDP program has no {what} `{name}`; build it anew with `cargo xtask build`")]
    Missing {
        /// Map or program.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The kernel refuses maps or program.
    #[error("the kernel refuses the XDP program: {cause}; {hint}")]
    Refused {
        /// The messages of aya and the kernel.
        cause: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A pinned map has another layout.
    #[error(
        "the pinned map {} has {found}, and this tollgate needs {wanted}: it belongs to another version; \
         `tollgate detach` removes it (packets are not filtered until the next start)", path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// The differing properties of the pinned map.
        found: String,
        /// The required values of these properties.
        wanted: String,
    },
    /// A pin or directory on bpffs cannot be created, read or removed.
    #[error("{}: cannot {action}: {source}; {hint}", path.display())]
    Pin {
        /// The pin or directory.
        path: PathBuf,
        /// The action that failed.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The directory is on another file system.
    #[error(
        "{} is not on a BPF file system, which program and maps need to outlive the daemon; \
         `mount -t bpf bpf /sys/fs/bpf`, or set `bpffs` to a directory below one", path.display()
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// Another daemon uses these pins.
    #[error(
        "{} is in use by a running tollgate; stop that one first, or give this one a `bpffs` of its own",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A map call failed.
    #[error("map `{map}`: cannot {action}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// The action that failed.
        action: &'static str,
        /// The error of aya or the kernel.
        source: MapError,
    },
    /// A packet may still use the inactive bank.
    #[error("the tables were changed less than {GRACE_MS} ms ago; retry in {0:?}", GRACE_MS = super::GRACE.as_millis())]
    Grace(Duration),
    /// A live key slot is never overwritten.
    #[error("key slot {slot} is in use by key {held}, so key {wanted} cannot be written")]
    SlotInUse {
        /// The slot.
        slot: u32,
        /// The key in it.
        held: u32,
        /// The key to install.
        wanted: u32,
    },
    /// The maps are too small.
    #[error("{wanted} {what} do not fit, the capacity is {capacity}")]
    Full {
        /// Kind of the entries.
        what: &'static str,
        /// Number of entries.
        wanted: usize,
        /// Capacity of the map.
        capacity: usize,
    },
    /// A test run of the program failed.
    #[error("the program `{program}` cannot be run: {cause}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        cause: String,
    },
    /// The program cannot be attached, or is attached in another mode.
    #[error("interface `{interface}`: {cause}; {hint}")]
    Attach {
        /// The interface.
        interface: String,
        /// Why.
        cause: String,
        /// What to do about it.
        hint: String,
    },
}

/// An error and all its sources in one line: messages of aya do not include their sources.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
