//! Revocations: of sessions and tokens, each until the last token has expired, and of all tokens of a service issued
//! before a time. A pure state machine: time is an argument, Unix time in seconds.

mod stored;

use std::collections::BTreeMap;

use lb_common::{
    control::{SECOND_NS, SKEW_NS},
    maps::REVOCATIONS_MAX,
    revocation::{REVOKED_SESSION, RevocationKey},
};
use serde::{Deserialize, Serialize};

/// Maximum difference between the clocks of issuers and balancers, seconds.
pub const SKEW: u64 = SKEW_NS / SECOND_NS;

/// The revocations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "stored::Stored", into = "stored::Stored")]
pub struct Revocations {
    /// The end of each revocation. Revocations that have ended are removed when capacity is needed.
    named: BTreeMap<RevocationKey, u64>,
    /// Per service: its tokens issued before this time are revoked.
    before: BTreeMap<u32, u32>,
}

/// Why a change was refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// The list is full.
    #[error(
        "NOT revoked: the capacity is {REVOCATIONS_MAX}, {held} are in force, and {wanted} more do not fit. The first \
         ends at {}; until then `tollgate services revoke-before` revokes all that a service has issued, and \
         `tollgate keys revoke` a key with all its tokens", date(*first_ends)
    )]
    Full {
        /// Revocations in force.
        held: usize,
        /// Revocations to add.
        wanted: usize,
        /// Unix second at which the first revocation ends.
        first_ends: u64,
    },
    /// The time is in the future: new tokens would be refused, too.
    #[error(
        "{} is in the future: tokens issued until then would be refused; use a time before {}",
        date(*at), date(*now)
    )]
    Future {
        /// Requested time, unix second.
        at: u64,
        /// Current time, unix second.
        now: u64,
    },
    /// There is no such revocation.
    #[error(
        "{} {} is not revoked by name, and nothing was changed; see `tollgate sessions list --revoked`. \
         `services revoke-before` and `keys revoke` cannot be undone",
        kind_name(.0), name_of(.0)
    )]
    NotRevoked(RevocationKey),
    /// The revocation would end immediately.
    #[error("a revocation must last a second or longer")]
    NoTime,
}

impl Revocations {
    /// The revocations in force at `now`, with their ends.
    pub fn in_force(&self, now: u64) -> impl Iterator<Item = (RevocationKey, u64)> {
        self.named.iter().filter(move |(_, until)| **until > now).map(|(key, until)| (*key, *until))
    }

    /// The end of the revocation of a session or token, if it is revoked at `now`.
    pub fn until(&self, key: &RevocationKey, now: u64) -> Option<u64> {
        self.named.get(key).copied().filter(|until| *until > now)
    }

    /// Tokens of a service issued before this time are revoked; 0 if no time is set.
    pub fn before(&self, service_id: u32) -> u32 {
        self.before.get(&service_id).copied().unwrap_or(0)
    }

    /// Revokes sessions or tokens until a time; either all or none. A longer existing revocation is kept. Returns the
    /// end of each.
    ///
    /// # Errors
    /// `Full` if they do not all fit, `NoTime` if the time has passed.
    pub fn revoke(
        &mut self,
        keys: &[RevocationKey],
        until: u64,
        now: u64,
    ) -> Result<Vec<(RevocationKey, u64)>, RevocationError> {
        // Tokens have 32-bit times.
        let until = until.min(u32::MAX.into());
        if until <= now {
            return Err(RevocationError::NoTime);
        }
        self.keep(keys.iter().map(|key| (*key, until)), now)?;
        Ok(keys.iter().map(|key| (*key, self.named[key])).collect())
    }

    /// Revokes sessions or tokens, each until its own time; either all or none. A longer existing revocation is kept.
    ///
    /// # Errors
    /// `Full` if they do not all fit.
    pub fn keep(
        &mut self,
        revoked: impl IntoIterator<Item = (RevocationKey, u64)>,
        now: u64,
    ) -> Result<(), RevocationError> {
        let mut named = self.named.clone();
        named.retain(|_, until| *until > now);
        let held = named.len();
        for (key, until) in revoked {
            let entry = named.entry(key).or_default();
            *entry = until.max(*entry);
        }
        if named.len() > REVOCATIONS_MAX as usize {
            let wanted = named.len() - held;
            let ends = self.in_force(now).map(|(_, until)| until).min();
            let first_ends = ends.or_else(|| named.values().copied().min()).unwrap_or(now);
            return Err(RevocationError::Full { held, wanted, first_ends });
        }
        self.named = named;
        Ok(())
    }

    /// Removes revocations, either all or none. Returns the end of each.
    ///
    /// # Errors
    /// `NotRevoked` if one of them does not exist.
    pub fn unrevoke(
        &mut self,
        keys: &[RevocationKey],
        now: u64,
    ) -> Result<Vec<(RevocationKey, u64)>, RevocationError> {
        let until = |key: &RevocationKey| self.until(key, now).ok_or(RevocationError::NotRevoked(*key));
        let lifted = keys.iter().map(|key| Ok((*key, until(key)?))).collect::<Result<_, _>>()?;
        for key in keys {
            self.named.remove(key);
        }
        Ok(lifted)
    }

    /// Revokes all tokens of a service issued before a time. A later time that was set before is kept. Returns the time
    /// in force.
    ///
    /// # Errors
    /// `Future` if the time is later than the clocks of issuers can be.
    pub fn revoke_before(&mut self, service_id: u32, at: u64, now: u64) -> Result<u32, RevocationError> {
        let Some(second) = u32::try_from(at).ok().filter(|_| at <= now.saturating_add(SKEW)) else {
            return Err(RevocationError::Future { at, now });
        };
        let before = self.before.entry(service_id).or_default();
        *before = second.max(*before);
        Ok(*before)
    }
}

/// How long a session must be revoked until its last token has expired, seconds.
pub const fn lifetime(max_ttl: u64) -> u64 {
    max_ttl.saturating_add(2 * SKEW)
}

/// The kind of a revocation, in metrics and messages.
pub const fn kind_name(key: &RevocationKey) -> &'static str {
    if key.kind == REVOKED_SESSION { "session" } else { "token" }
}

/// The id of a revocation as in commands: a session id, or the nonce of a token.
pub fn name_of(key: &RevocationKey) -> String {
    if key.kind == REVOKED_SESSION { key.of.to_string() } else { hex::encode(key.of.to_le_bytes()) }
}

/// A Unix time, for messages.
pub fn date(at: u64) -> humantime::Rfc3339Timestamp {
    let seconds = std::time::Duration::from_secs(at.min(u32::MAX.into()));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + seconds)
}

#[cfg(test)]
mod tests;
