//! The only code that touches aya: the kernel before it is used, the program, its maps, its attachment.
//!
//! [`Datapath::load`] gives the program and its typed maps; pinned for the daemon, or private to whoever runs it on
//! packets of its own. `attach` puts a pinned one before interfaces, and `detach` takes it off again.
//! [`decap`] is the program of a backend's host, which stays no longer than its process.

pub mod attach;
mod batch;
mod counters;
pub mod decap;
mod egress;
mod error;
mod held;
mod key_slots;
mod last_commit;
mod layout;
mod live;
mod load;
mod options;
mod own_map;
mod owners;
mod pins;
pub mod preflight;
mod revocations;
mod tables;

pub use counters::{Counters, Totals};
pub use egress::Egress;
pub use error::DatapathError;
pub use held::{HeldLink, LinkTarget};
pub use key_slots::{KeySlots, SlotValues};
pub use last_commit::LastCommit;
pub use live::LiveWords;
pub use load::{Datapath, ProgramRuns, embedded_object};
pub use options::Options;
pub use owners::{BackendOwner, Owners};
pub use pins::{LinkPin, Lost, PinLock, Pins};
pub use revocations::Revocations;
pub use tables::{GRACE, Snapshot, TableSet, Tables};
