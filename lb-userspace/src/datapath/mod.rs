//! The only code that uses aya: checks of the kernel, the XDP program, its maps, and its attachment.
//!
//! Start at [`Datapath::load`], which loads the program and opens its typed maps: pinned for the daemon, private for
//! tests. `attach` attaches a pinned program to interfaces. [`decap`] is the program for the host of a backend, which
//! is detached when its process ends.

pub mod attach;
mod batch;
mod control_page;
mod counters;
pub mod decap;
mod egress;
mod error;
mod held;
mod key_slots;
mod last_commit;
mod layout;
mod load;
mod options;
mod own_map;
mod owners;
mod pins;
pub mod preflight;
mod revocations;
mod tables;

pub use control_page::MappedControlPage;
pub use counters::{Counters, Totals};
pub use egress::Egress;
pub use error::DatapathError;
pub use held::{HeldLink, LinkTarget};
pub use key_slots::{KeySlots, SlotValues};
pub use last_commit::LastCommit;
pub use load::{Datapath, ProgramRuns, embedded_object};
pub use options::Options;
pub use owners::{BackendOwner, Owners};
pub use pins::{LinkPin, Lost, PinLock, Pins};
pub use revocations::Revocations;
pub use tables::{GRACE, Snapshot, TableSet, Tables};
