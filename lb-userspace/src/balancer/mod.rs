//! Maglev tables, which assign sessions to backends.

mod maglev;

pub use maglev::{Share, table};
