//! Step 9: the limits of one session. Nothing is consumed before every check has passed.

use lb_common::{
    control::Tables,
    maps::SERVICES_MAX,
    rate::{GcraState, Rate},
    reason::{Reason, ReasonCode},
    scratch::PacketMetadata,
    service::FLAG_RATED,
    session::{SOURCES_MAX, StatefulEntry, source},
};

use crate::{
    clock::Now,
    maps::RATES,
    shared::{Shared, field},
};

/// The maximum number of attempts to change the state of a rate. A packet that fails this often competes with many
/// others.
const TRIES: u32 = 8;

/// Counts a packet against the rate of its session, and adds its source address to the session's sources.
#[inline(always)]
pub fn check(packet: &PacketMetadata, now: Now, entry: Shared<StatefulEntry>) -> Result<(), ReasonCode> {
    let rate = rate(packet, entry)?;
    let state = field!(entry, rate.0);
    if rate.cost_ns != 0 {
        GcraState(state.read()).after(now.kernel_ns, rate).ok_or(Reason::RateLimited)?;
    }
    if packet.max_sources != 0 {
        is_from_allowed_source(packet, entry)?;
    }
    if rate.cost_ns != 0 { take(state, now, rate) } else { Ok(()) }
}

#[inline(always)]
fn rate(packet: &PacketMetadata, entry: Shared<StatefulEntry>) -> Result<Rate, ReasonCode> {
    if packet.flags & FLAG_RATED == 0 {
        return Ok(Rate::default());
    }
    let tables = Tables::from_word(packet.tables);
    let of_service = RATES.get(tables.bank * SERVICES_MAX + packet.service_index).ok_or(Reason::Internal)?;
    let class = field!(entry, session.admission.class).read();
    Ok(of_service[usize::from(class)])
}

#[inline(always)]
fn take(state: Shared<u64>, now: Now, rate: Rate) -> Result<(), ReasonCode> {
    for _ in 0..TRIES {
        let found = state.read();
        let next = GcraState(found).after(now.kernel_ns, rate).ok_or(Reason::RateLimited)?;
        if state.replace(found, next.0) {
            return Ok(());
        }
    }
    Err(Reason::RateLimited.into())
}

#[inline(always)]
fn is_from_allowed_source(packet: &PacketMetadata, entry: Shared<StatefulEntry>) -> Result<(), ReasonCode> {
    let wanted = source(packet.source_address);
    for index in 0..SOURCES_MAX {
        if index >= usize::from(packet.max_sources) {
            break;
        }
        let slot = field!(entry, sources[index]);
        let found = match slot.read() {
            0 => slot.exchange(0, wanted),
            other => other,
        };
        if found == 0 || found == wanted {
            return Ok(());
        }
    }
    Err(Reason::TooManySources.into())
}
