//! Step 7: whether the session, or its token, is revoked.
//!
//! A session that was found not to be remembers when, in additions to the list: until the next one, nothing is looked up.

use lb_common::{
    live::Live,
    reason::Reason,
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    scratch::Scratch,
    session::Session,
};

use crate::{atomic, clock::Now, maps::REVOCATIONS};

/// Refuses what is revoked now.
#[inline(always)]
pub fn check(
    scratch: &mut Scratch,
    live: &Live,
    now: Now,
    nonce: u64,
    entry: *mut Session,
) -> Result<(), Reason> {
    let additions = live.revocations as u32;
    // SAFETY: as in `tracked::settled`.
    let checked = unsafe { (&raw const (*entry).checked).read_volatile() };
    if checked == additions {
        return Ok(());
    }
    // SAFETY: as above.
    let session_id = unsafe { (&raw const (*entry).admission.session_id).read_volatile() };
    if is_listed(&mut scratch.revocation, now, scratch.arrival.service_id, session_id, nonce) {
        return Err(Reason::Revoked);
    }
    // SAFETY: an aligned word of the entry. If that has become another token's, it does not hold what was read, or its own
    // token was looked up as lately.
    unsafe { atomic::exchange_u32(&raw mut (*entry).checked, checked, additions) };
    Ok(())
}

/// Whether a session of a service or one token of it is on the list. `key` is room for what is looked for.
#[inline(always)]
pub fn is_listed(key: &mut RevocationKey, now: Now, service_id: u32, session_id: u64, nonce: u64) -> bool {
    let mut holds = |kind, of| {
        *key = RevocationKey { service_id, kind, of };
        // SAFETY: a word, copied out here and now.
        unsafe { REVOCATIONS.get(&*key) }.is_some_and(|until| now.unix_ns < *until)
    };
    holds(REVOKED_SESSION, session_id) || holds(REVOKED_TOKEN, nonce)
}
