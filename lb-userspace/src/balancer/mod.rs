//! Maglev tables: which backend a session goes to.

mod maglev;

pub use maglev::{Share, table};
