//! The translation of a packet that goes to a client.

use lb_common::{
    control::Tables,
    nat::{self, TIMEOUT_NS, Translation, TranslationKey},
    reason::{Reason, ReasonCode},
};

use crate::{
    clock,
    forward::head::L2Header,
    headers::{Address, same_address},
    maps::{CONTROL, TRANSLATIONS},
    outcome::{Delivery, Outcome},
    packet::Frame,
    run::Run,
    shared::{Shared, field},
    subprogram::Value,
};

/// The result of a subprogram that sends a packet to a client. If it has not sent the packet, the frame is unchanged:
/// the caller does the missing step, and calls the subprogram again. The subprogram does not call that step itself,
/// because nested calls would exceed the stack limit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It has sent the packet.
    Sent,
    /// The translation must be checked: tables or revocations have changed since its last check.
    NeedsCheck,
    /// The checksum must be computed: the sender left it to a network card.
    NeedsChecksum,
}

impl Value for Progress {
    #[inline(always)]
    fn into_number(self) -> u64 {
        self as u64
    }

    #[inline(always)]
    fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Sent,
            1 => Self::NeedsCheck,
            _ => Self::NeedsChecksum,
        }
    }
}

/// Copies the translation for a frame with the L2 header `from`. It must not have timed out, it must use this address
/// of the node, and the frame must come from the interface and the VLAN of its backend: a host elsewhere can spoof the
/// backend's address.
///
/// # Errors
/// `NotOurs`, if there is none.
#[inline(always)]
pub fn read(
    frame: &Frame,
    from: &L2Header,
    key: &TranslationKey,
    node_be: &Address,
    into: &mut Translation,
) -> Result<(), ReasonCode> {
    Shared::entry(&TRANSLATIONS, key).ok_or(Reason::NotOurs)?.copy_to(into);
    let from_backend =
        into.backend_ifindex == frame.ingress() && from.is_in(&into.backend_tags, into.backend_tag_count);
    let own = same_address(&into.node_be, node_be);
    if own && from_backend && !is_over(into.used_at_ns, now_ns()?) {
        Ok(())
    } else {
        Err(Reason::NotOurs.into())
    }
}

/// Whether a translation was checked against the tables and revocations that apply now.
#[inline(always)]
pub fn is_checked(translation: &Translation, tables: Tables) -> Result<bool, ReasonCode> {
    let control = Shared::value(&CONTROL).ok_or(Reason::Internal)?;
    Ok(translation.checked == nat::checked(tables, field!(control, revocations).read()))
}

/// The L2 header of frames to the client of a translation.
#[inline(always)]
pub fn l2_to_client(translation: &Translation) -> L2Header {
    L2Header::new(translation.addresses_be, &translation.tags, translation.tag_count.into())
}

/// Whether a translation that was last used at `used_at_ns` has timed out at `now_ns`.
#[inline(always)]
pub const fn is_over(used_at_ns: u64, now_ns: u64) -> bool {
    now_ns.wrapping_sub(used_at_ns) >= TIMEOUT_NS && now_ns >= used_at_ns
}

/// The current time of the kernel's clock, nanoseconds.
#[inline(always)]
pub fn now_ns() -> Result<u64, ReasonCode> {
    Ok(clock::now(Shared::value(&CONTROL).ok_or(Reason::Internal)?).kernel_ns)
}

/// The outcome of a packet for the client of the translation in the scratch, which is counted under a reason if it was
/// sent.
#[inline(always)]
pub fn outcome(run: &mut Run, sent: Result<Progress, ReasonCode>, reason: Reason) -> Outcome {
    let Ok(scratch) = run.mailboxes.open() else { return Outcome::NotOurs };
    let translation = &scratch.translation.value;
    let (service, service_id) = (translation.service_index.into(), translation.owner.service_id);
    match sent {
        Ok(Progress::Sent) => Outcome::Delivered {
            service,
            reason: reason.into(),
            delivery: Delivery::Back { ifindex: translation.ifindex },
        },
        // The caller has done the missing step, but the state has changed again.
        Ok(_) => Outcome::NotOurs,
        Err(reason) => Outcome::refused(&run.frame, service, service_id, reason),
    }
}
