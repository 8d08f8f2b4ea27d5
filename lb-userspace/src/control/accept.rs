//! Accepts a store that does not continue from the kernel state: copies everything that is revoked in the kernel into
//! it.

use std::collections::BTreeSet;

use lb_common::{
    control::SECOND_NS,
    keyslot::{KeyId, STATE_OFF, STATE_VERIFY},
    revocation::RevocationKey,
};
use tracing::warn;

use super::{StartError, clock::unix_now, lineage::Mismatch, stored::Stored};
use crate::{
    datapath::Datapath,
    revocation::{self, date},
};

/// Number of revocations that are logged one by one; the others are counted.
const LINES: usize = 100;

/// Revocations in the kernel state that the store lacks.
#[derive(Default)]
struct Revoked {
    /// Sessions and tokens, each until a unix second.
    named: Vec<(RevocationKey, u64)>,
    /// By service: tokens issued before this time are revoked.
    before: Vec<(u32, u32)>,
    /// Keys that are valid in the store but were stopped in the kernel.
    keys: Vec<KeyId>,
}

/// Adds the revocations of the kernel state to the store. Logs them, and the keys whose revocation is unknown. The
/// kernel state must be unchanged since the start. The commit has a higher revision than the recorded one, even if
/// nothing had to be added, so no [`Acceptance`](super::lineage::Acceptance) accepts twice.
pub(super) async fn accept(
    mismatch: &Mismatch,
    stored: &mut Stored,
    datapath: &Datapath,
) -> Result<(), StartError> {
    warn!("{}; it was accepted", mismatch.difference());
    let slots = datapath.key_slots.all()?;
    let in_state = |state| {
        let slots = slots.iter().zip(0..).filter(move |(slot, _)| slot.state == state);
        // Excludes the zeros of a slot that never had a key.
        let ids = slots.map(|(slot, number)| (KeyId(slot.key_id), number));
        ids.filter(|(id, number)| id.slot() == *number).map(|(id, _)| id).collect::<BTreeSet<_>>()
    };
    let (verified, stopped) = (in_state(STATE_VERIFY), in_state(STATE_OFF));
    let wanted: BTreeSet<KeyId> = stored.state().keyring.verifying().map(|key| key.id).collect();
    let revoked = revoked(stored, datapath, wanted.intersection(&stopped).copied().collect())?;
    revoked.log();

    let list =
        |ids: &mut dyn Iterator<Item = &KeyId>| ids.map(|id| id.0.to_string()).collect::<Vec<_>>().join(", ");
    let unknown = list(&mut wanted.difference(&verified).filter(|id| !stopped.contains(id)));
    if !unknown.is_empty() {
        warn!(
            "keys {unknown} verify by the store, but not in the kernel until now: if one was revoked, revoke it again \
             (`tollgate keys revoke`)"
        );
    }
    let ended = list(&mut verified.difference(&wanted));
    if !ended.is_empty() {
        warn!(
            "keys {ended} verified until now and are not in the store: tokens of these keys are refused from now on"
        );
    }

    let change = stored.change_above(mismatch.remembered().revision, |state| {
        state.revocations.keep(revoked.named.iter().copied(), unix_now())?;
        for (service_id, before) in &revoked.before {
            state.revocations.revoke_before(*service_id, (*before).into(), (*before).into())?;
        }
        for id in &revoked.keys {
            state.keyring.revoke(*id, unix_now()).map_err(super::keys::KeysError::from)?;
        }
        Ok::<_, StartError>(())
    });
    change.await
}

fn revoked(stored: &Stored, datapath: &Datapath, keys: Vec<KeyId>) -> Result<Revoked, StartError> {
    let (now, revocations) = (unix_now(), &stored.state().revocations);
    let named = datapath.revocations.all()?.into_iter().map(|(key, until)| (key, until / SECOND_NS));
    let is_longer = |(key, until): &(RevocationKey, u64)| {
        *until > now && revocations.until(key, now).is_none_or(|stored| stored < *until)
    };
    let services: BTreeSet<_> = datapath
        .tables
        .active()?
        .services()
        .map(|(_, service)| (service.id, service.revoked_before))
        .filter(|(id, before)| *before > revocations.before(*id))
        .collect();
    Ok(Revoked { named: named.filter(is_longer).collect(), before: services.into_iter().collect(), keys })
}

impl Revoked {
    fn log(&self) {
        for (key, until) in self.named.iter().take(LINES) {
            warn!(
                "{} {} of service {} stays revoked until {}: the kernel had it, the store had not",
                revocation::kind_name(key),
                revocation::name_of(key),
                key.service_id,
                date(*until)
            );
        }
        if let Some(more) = self.named.len().checked_sub(LINES).filter(|more| *more > 0) {
            warn!("{more} more sessions and tokens stay revoked: see `tollgate sessions list --revoked`");
        }
        for (service_id, before) in &self.before {
            warn!(
                "what service {service_id} issued before {} stays revoked: the kernel had it, the store had not",
                date((*before).into())
            );
        }
        for id in &self.keys {
            warn!("key {} is revoked: it was stopped in the kernel, the store had it as valid", id.0);
        }
    }
}
