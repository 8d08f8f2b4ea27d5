//! Whether answers may still use a translation: its service, its backend and its session may have gone since it was made.
//!
//! What was found good remembers when, in publications of the tables and in additions to the revocations: until the next of
//! either, nothing is looked up.

use lb_common::{
    live::Tables,
    nat::{self, OWNER_SESSION},
    reason::Reason,
    service::{FORWARD_NAT, ServiceKey},
};

use crate::{
    admit, balance, clock,
    headers::same_address,
    maps::{LIVE, TRANSLATIONS},
    outline, revoke, service,
};

/// Checks the translation in the scratch against what counts now. `NotOurs` where its service is gone, `NoBackend` where its
/// backend is, `Revoked` where its session or its last token is.
#[inline(always)]
pub fn translation(tables: Tables) -> Result<(), Reason> {
    outline::result(
        check_translation(tables.to_word()),
        [Reason::NotOurs, Reason::NoBackend, Reason::Revoked],
    )
}

/// A global subprogram: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn check_translation(tables: u64) -> u32 {
    outline::code(checked(Tables::from_word(tables)))
}

#[inline(always)]
fn checked(tables: Tables) -> Result<(), Reason> {
    let scratch = admit::scratch()?;
    let live = LIVE.get(0).ok_or(Reason::Internal)?;
    let now = clock::now(live);
    // Before anything is looked up: what is added meanwhile is looked up at the next answer.
    let checked = nat::checked(tables, live);
    let (key, translation) = (&scratch.translation_key, &mut scratch.translation);
    let owner = translation.owner;
    let at = ServiceKey::v6(translation.service_be, translation.service_port_be);
    let service = service::find(tables, &at).ok_or(Reason::NotOurs)?;
    if service.id != owner.service_id || service.forward != FORWARD_NAT {
        return Err(Reason::NotOurs);
    }
    let backend = balance::pinned(tables, service, translation.backend_id)?;
    let is_at = key.backend_port_be == backend.port_be
        && same_address(&key.backend_be, &backend.address_be)
        && same_address(&translation.node_be, &backend.source_be);
    if !is_at {
        return Err(Reason::NoBackend);
    }
    // What `mode = "observe"` delivers gets its answers, too.
    if owner.kind == OWNER_SESSION && !service.observes() {
        let listed =
            revoke::is_listed(&mut scratch.revocation, now, owner.service_id, owner.of, translation.nonce);
        if listed || translation.issued_at < service.revoked_before {
            return Err(Reason::Revoked);
        }
    }
    if let Some(entry) = TRANSLATIONS.get_ptr_mut(key) {
        // SAFETY: an aligned word of the kernel's entry, which stays allocated. If that has become another client's since,
        // its answers are checked at the next change.
        unsafe { (&raw mut (*entry).checked).write_volatile(checked) };
    }
    Ok(())
}
