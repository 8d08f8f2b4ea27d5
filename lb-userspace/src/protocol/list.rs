//! The one shape of all lists.

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::big;

/// The answer of a request for a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema), schemars(rename = "List_for_{T}"))]
pub struct List<T> {
    /// Number of entries that match the request; larger than the number of items if the request has a limit.
    #[serde(with = "big")]
    #[cfg_attr(test, schemars(with = "big::Schema"))]
    pub total: u64,
    /// The entries.
    pub items: Vec<T>,
}

impl<T> List<T> {
    /// The first items of a longer list.
    pub const fn part(total: u64, items: Vec<T>) -> Self {
        Self { total, items }
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self { total: items.len() as u64, items }
    }
}
