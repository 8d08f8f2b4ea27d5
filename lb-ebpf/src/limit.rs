//! Step 9: how much one session may do. Nothing is taken before everything has passed.

use lb_common::{
    live::Tables,
    maps::SERVICES_MAX,
    rate::{GcraState, Rate},
    reason::Reason,
    scratch::Arrival,
    service::FLAG_RATED,
    session::{SOURCES_MAX, TrackedSession, source},
};

use crate::{atomic, clock::Now, maps::RATES};

/// How often the state of a rate is tried to be changed: who fails so often is one of many packets at once.
const TRIES: u32 = 8;

/// Takes a packet out of its session's rate, and its source address into the session's sources.
#[inline(always)]
pub fn check(arrival: &Arrival, now: Now, entry: *mut TrackedSession) -> Result<(), Reason> {
    let rate = rate(arrival, entry)?;
    // SAFETY: as in `tracked::settled`.
    let state = unsafe { &raw mut (*entry).rate };
    if rate.cost_ns != 0 {
        // SAFETY: as above.
        unsafe { state.read_volatile() }.after(now.kernel_ns, rate).ok_or(Reason::RateLimited)?;
    }
    if arrival.max_sources != 0 {
        from_one_of_its_sources(arrival, entry)?;
    }
    if rate.cost_ns != 0 { take(state, now, rate) } else { Ok(()) }
}

#[inline(always)]
fn rate(arrival: &Arrival, entry: *mut TrackedSession) -> Result<Rate, Reason> {
    if arrival.flags & FLAG_RATED == 0 {
        return Ok(Rate::default());
    }
    let tables = Tables::from_word(arrival.tables);
    let of_service = RATES.get(tables.half * SERVICES_MAX + arrival.service_index).ok_or(Reason::Internal)?;
    // SAFETY: as in `tracked::settled`.
    let class = unsafe { (&raw const (*entry).session.admission.class).read_volatile() };
    Ok(of_service[usize::from(class)])
}

#[inline(always)]
fn take(state: *mut GcraState, now: Now, rate: Rate) -> Result<(), Reason> {
    for _ in 0..TRIES {
        // SAFETY: an aligned word of the entry; if that has become another token's, it does not hold what was read.
        unsafe {
            let found = state.read_volatile();
            let next = found.after(now.kernel_ns, rate).ok_or(Reason::RateLimited)?;
            if atomic::replace_u64(state.cast(), found.0, next.0) {
                return Ok(());
            }
        }
    }
    Err(Reason::RateLimited)
}

#[inline(always)]
fn from_one_of_its_sources(arrival: &Arrival, entry: *mut TrackedSession) -> Result<(), Reason> {
    let wanted = source(arrival.source);
    // SAFETY: as in `tracked::settled`.
    let sources = unsafe { &raw mut (*entry).sources }.cast::<u32>();
    for place in 0..SOURCES_MAX {
        if place >= usize::from(arrival.max_sources) {
            break;
        }
        // SAFETY: one of the entry's places, and an aligned word.
        let found = unsafe {
            match sources.add(place).read_volatile() {
                0 => atomic::exchange_u32(sources.add(place), 0, wanted),
                other => other,
            }
        };
        if found == 0 || found == wanted {
            return Ok(());
        }
    }
    Err(Reason::TooManySources)
}
