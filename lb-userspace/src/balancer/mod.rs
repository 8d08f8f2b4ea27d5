//! Which backend a session goes to: Maglev tables, and whether a backend may be used at all.

mod maglev;
mod state;

pub use maglev::{Share, table};
pub use state::BackendState;
