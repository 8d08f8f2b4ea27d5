//! The stored form of revocations. It is checked when it is read.

use std::collections::BTreeMap;

use lb_common::{
    maps::REVOCATIONS_MAX,
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
};
use serde::{Deserialize, Serialize};

use super::Revocations;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    named: Vec<Named>,
    before: BTreeMap<u32, u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    service_id: u32,
    kind: Kind,
    of: u64,
    until: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Session,
    Token,
}

/// Why the stored form is invalid.
#[derive(Debug, thiserror::Error)]
pub(super) enum Contradiction {
    #[error("there are {0} revocations, more than the capacity")]
    TooMany(usize),
    #[error("a revocation of service {0} occurs twice")]
    Twice(u32),
}

impl From<Revocations> for Stored {
    fn from(revocations: Revocations) -> Self {
        let named = revocations.named.into_iter().map(|(key, until)| Named {
            service_id: key.service_id,
            kind: if key.kind == REVOKED_SESSION { Kind::Session } else { Kind::Token },
            of: key.of,
            until,
        });
        Self { named: named.collect(), before: revocations.before }
    }
}

impl TryFrom<Stored> for Revocations {
    type Error = Contradiction;

    fn try_from(stored: Stored) -> Result<Self, Contradiction> {
        if stored.named.len() > REVOCATIONS_MAX as usize {
            return Err(Contradiction::TooMany(stored.named.len()));
        }
        let mut named = BTreeMap::new();
        for Named { service_id, kind, of, until } in stored.named {
            let kind = match kind {
                Kind::Session => REVOKED_SESSION,
                Kind::Token => REVOKED_TOKEN,
            };
            if named.insert(RevocationKey { service_id, kind, of }, until).is_some() {
                return Err(Contradiction::Twice(service_id));
            }
        }
        Ok(Self { named, before: stored.before })
    }
}
