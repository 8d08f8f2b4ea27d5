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
    let mut holds = |kind, of| {
        scratch.revocation = RevocationKey { service_id: scratch.arrival.service_id, kind, of };
        // SAFETY: a word, copied out here and now.
        unsafe { REVOCATIONS.get(&scratch.revocation) }.is_some_and(|until| now.unix_ns < *until)
    };
    if holds(REVOKED_SESSION, session_id) || holds(REVOKED_TOKEN, nonce) {
        return Err(Reason::Revoked);
    }
    // SAFETY: an aligned word of the entry. If that has become another token's, it does not hold what was read, or its own
    // token was looked up as lately.
    unsafe { atomic::exchange_u32(&raw mut (*entry).checked, checked, additions) };
    Ok(())
}
