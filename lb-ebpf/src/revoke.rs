//! Step 7: whether the session or its token is revoked.
//!
//! A cache entry holds the number of additions to the revocations at its last lookup. Until the next addition, no
//! lookup is needed.

use lb_common::{
    control::ControlPage,
    reason::{Reason, ReasonCode},
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    session::Session,
};

use crate::{
    clock::Now,
    maps::REVOCATIONS,
    shared::{Shared, field},
};

/// Refuses a session or a token that is revoked now. `key` is memory for lookups.
#[inline(always)]
pub fn check(
    key: &mut RevocationKey,
    control: Shared<ControlPage>,
    now: Now,
    (service_id, nonce): (u32, u64),
    entry: Shared<Session>,
) -> Result<(), ReasonCode> {
    let additions = field!(control, revocations).read() as u32;
    let at = field!(entry, checked);
    let checked = at.read();
    if checked == additions {
        return Ok(());
    }
    let session_id = field!(entry, admission.session_id).read();
    if is_listed(key, now, service_id, session_id, nonce) {
        return Err(Reason::Revoked.into());
    }
    // If the entry now belongs to another token, either its value differs and stays, or that token was looked up as
    // recently.
    at.exchange(checked, additions);
    Ok(())
}

/// Whether a session of a service, or one token of it, is on the list. `key` is memory for lookups.
#[inline(always)]
pub fn is_listed(key: &mut RevocationKey, now: Now, service_id: u32, session_id: u64, nonce: u64) -> bool {
    let mut holds = |kind, of| {
        *key = RevocationKey { service_id, kind, of };
        // SAFETY: one word, which is copied immediately.
        unsafe { REVOCATIONS.get(&*key) }.is_some_and(|until| now.unix_ns < *until)
    };
    holds(REVOKED_SESSION, session_id) || holds(REVOKED_TOKEN, nonce)
}
