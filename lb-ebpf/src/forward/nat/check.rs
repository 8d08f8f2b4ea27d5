//! Whether answers may still use a translation: its service and its backend can have been removed, and its session
//! revoked, since it was created.
//!
//! A translation holds the number of publications of the tables and of additions to the revocations at its last check.
//! Until one of the two numbers changes, no lookup is needed.

use lb_common::{
    control::Tables,
    nat::{self, OWNER_SESSION},
    reason::{Reason, ReasonCode},
    scratch::{Scratch, TranslationOfPacket},
    service::{FORWARD_NAT, ServiceKey},
};

use super::translation::Progress;
use crate::{
    balance, clock,
    headers::same_address,
    maps::{CONTROL, TRANSLATIONS},
    packet::Frame,
    revoke,
    run::Run,
    scratch::Mailboxes,
    service,
    shared::{Shared, field},
    subprogram::subprogram,
};

/// Sends a packet to a client by `send`, which leaves the translation in the scratch. If the translation must be
/// checked first, checks it and calls `send` again.
#[inline(always)]
pub fn checked(
    run: &mut Run,
    send: impl Fn(&Frame, &mut Mailboxes, Tables) -> Result<Progress, ReasonCode>,
) -> Result<Progress, ReasonCode> {
    match send(&run.frame, &mut run.mailboxes, run.tables)? {
        Progress::NeedsCheck => {
            check_translation(&run.frame, &mut run.mailboxes, run.tables)?;
            send(&run.frame, &mut run.mailboxes, run.tables)
        }
        progress => Ok(progress),
    }
}

subprogram! {
    /// Checks the translation in the scratch against the tables and revocations that apply now. Fails with `NotOurs` if
    /// its service no longer exists, with `NoBackend` if its backend is not usable, and with `Revoked` if its session
    /// or its last token is revoked.
    fn check_translation(tables: Tables) -> () = check;
}

#[inline(always)]
fn check(_: &Frame, mailboxes: &mut Mailboxes, tables: Tables) -> Result<(), ReasonCode> {
    let Scratch { translation: TranslationOfPacket { key, value, .. }, revocation, .. } = mailboxes.open()?;
    let control = Shared::value(&CONTROL).ok_or(Reason::Internal)?;
    let now = clock::now(control);
    // Read before all lookups: if a revocation is added after this read, the next answer is checked again.
    let checked = nat::checked(tables, field!(control, revocations).read());
    let owner = value.owner;
    let at = ServiceKey::v6(value.service_be, value.service_port_be);
    let service = service::find(tables, &at).ok_or(Reason::NotOurs)?;
    if service.id != owner.service_id || service.forward != FORWARD_NAT {
        return Err(Reason::NotOurs.into());
    }
    let backend = balance::pinned(tables, service, value.backend_id)?;
    let is_at = key.backend_port_be == backend.port_be
        && same_address(&key.backend_be, &backend.address_be)
        && same_address(&value.node_be, &backend.source_be);
    if !is_at {
        return Err(Reason::NoBackend.into());
    }
    // `mode = "observe"` also delivers the answers to packets that it delivers.
    if owner.kind == OWNER_SESSION && !service.observes() {
        let listed = revoke::is_listed(revocation, now, owner.service_id, owner.of, value.nonce);
        if listed || value.issued_at < service.revoked_before {
            return Err(Reason::Revoked.into());
        }
    }
    if let Some(entry) = Shared::entry(&TRANSLATIONS, key) {
        // If the entry now belongs to another client, the answers to that client are not checked before the next
        // change.
        field!(entry, checked).write(checked);
    }
    Ok(())
}
