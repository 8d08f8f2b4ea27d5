//! What is revoked before its time: sessions and tokens by name, each until its last token has expired, and all of a
//! service's tokens of a certain age. A pure state: time is an argument, in unix seconds.

mod stored;

use std::collections::BTreeMap;

use lb_common::{
    control::{SECOND_NS, SKEW_NS},
    maps::REVOCATIONS_MAX,
    revocation::{REVOKED_SESSION, RevocationKey},
};
use serde::{Deserialize, Serialize};

/// By how much the clocks of issuers and balancers may differ, seconds.
pub const SKEW: u64 = SKEW_NS / SECOND_NS;

/// What is revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "stored::Stored", into = "stored::Stored")]
pub struct Revocations {
    /// Until when each counts. Those that have ended stay until room is asked for.
    named: BTreeMap<RevocationKey, u64>,
    /// By service: its tokens issued before this second.
    before: BTreeMap<u32, u32>,
}

/// Why something was not revoked. What was, still is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// The list is full of what still counts.
    #[error(
        "NOT revoked: the list has room for {REVOCATIONS_MAX}, {held} are in force, and {wanted} more do not fit. The first \
         ends at {}; until then `tollgate services revoke-before` revokes all that a service has issued, and `tollgate keys \
         revoke` a key with all its tokens", date(*first_ends)
    )]
    Full {
        /// In force.
        held: usize,
        /// How many were to go in.
        wanted: usize,
        /// Unix second.
        first_ends: u64,
    },
    /// New tokens would be refused too.
    #[error(
        "{} is in the future: tokens that are yet to be issued would be refused until then; name a moment before {}",
        date(*at), date(*now)
    )]
    Future {
        /// As asked for, unix second.
        at: u64,
        /// Unix second.
        now: u64,
    },
    /// There is nothing to lift.
    #[error(
        "{} {} is not revoked by name, and nothing was changed: see `tollgate sessions list --revoked`. What \
         `services revoke-before` or `keys revoke` has ended is ended for good",
        kind_name(.0), name_of(.0)
    )]
    NotRevoked(RevocationKey),
    /// It would be over at once.
    #[error("a revocation for no time revokes nothing; name a time of a second or more")]
    NoTime,
}

impl Revocations {
    /// All that is in force at `now`, and until when.
    pub fn in_force(&self, now: u64) -> impl Iterator<Item = (RevocationKey, u64)> {
        self.named.iter().filter(move |(_, until)| **until > now).map(|(key, until)| (*key, *until))
    }

    /// Until when a session or token is revoked, if it is at `now`.
    pub fn until(&self, key: &RevocationKey, now: u64) -> Option<u64> {
        self.named.get(key).copied().filter(|until| *until > now)
    }

    /// Tokens of a service that were issued before this second are revoked; 0 for none.
    pub fn before(&self, service_id: u32) -> u32 {
        self.before.get(&service_id).copied().unwrap_or(0)
    }

    /// Revokes sessions or tokens until a moment, all or none. What is revoked for longer stays so. Returns until when
    /// each is.
    ///
    /// # Errors
    /// `Full` if they do not all fit, `NoTime` if the moment is over.
    pub fn revoke(
        &mut self,
        keys: &[RevocationKey],
        until: u64,
        now: u64,
    ) -> Result<Vec<(RevocationKey, u64)>, RevocationError> {
        // What a token's 32 bits cannot say is never.
        let until = until.min(u32::MAX.into());
        if until <= now {
            return Err(RevocationError::NoTime);
        }
        self.keep(keys.iter().map(|key| (*key, until)), now)?;
        Ok(keys.iter().map(|key| (*key, self.named[key])).collect())
    }

    /// Revokes sessions or tokens, each until a moment of its own, all or none. What is revoked for longer stays so.
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

    /// Lifts revocations, all or none. Returns until when each would have been in force.
    ///
    /// # Errors
    /// `NotRevoked` if one of them is not.
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

    /// Revokes all of a service's tokens that were issued before a moment. Never takes back what was revoked before.
    /// Returns the moment that counts now.
    ///
    /// # Errors
    /// `Future` if the moment is later than issuers' clocks may be.
    pub fn revoke_before(&mut self, service_id: u32, at: u64, now: u64) -> Result<u32, RevocationError> {
        let Some(second) = u32::try_from(at).ok().filter(|_| at <= now.saturating_add(SKEW)) else {
            return Err(RevocationError::Future { at, now });
        };
        let before = self.before.entry(service_id).or_default();
        *before = second.max(*before);
        Ok(*before)
    }
}

/// How long a session is revoked so that no token of it from before comes back: as long as the last of them may live.
pub const fn lifetime(max_ttl: u64) -> u64 {
    max_ttl.saturating_add(2 * SKEW)
}

/// How a revocation is counted.
pub const fn kind_name(key: &RevocationKey) -> &'static str {
    if key.kind == REVOKED_SESSION { "session" } else { "token" }
}

/// What is revoked, as commands name it: a session's number, a token's nonce.
pub fn name_of(key: &RevocationKey) -> String {
    if key.kind == REVOKED_SESSION { key.of.to_string() } else { hex::encode(key.of.to_le_bytes()) }
}

/// A unix second, for messages.
pub fn date(at: u64) -> humantime::Rfc3339Timestamp {
    let seconds = std::time::Duration::from_secs(at.min(u32::MAX.into()));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + seconds)
}

#[cfg(test)]
mod tests;
