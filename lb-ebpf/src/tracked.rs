//! Steps 6 to 9 of a session of which something is counted: what PROOF and limits have to say to each of its datagrams.

use core::ptr;

use aya_ebpf::bindings::{BPF_NOEXIST, xdp_md};
use lb_common::{
    live::{Live, Tables},
    reason::Reason,
    scratch::Scratch,
    service::Service,
    session::{TokenKey, TrackedSession},
    token::{Header, Kind},
};

use crate::{
    admit::{self, Admitted},
    clock, limit,
    maps::{LIVE, TRACKED},
    outline,
    packet::Frame,
    parse::{Datagram, PAYLOAD_AT_MASK, Packet},
    proof, revoke, session,
    token::Token,
};

/// The session of a datagram's token, if it takes the datagram.
#[inline(always)]
pub fn of(
    frame: &Frame,
    packet: &Packet,
    datagram: &Datagram,
    token: &Token,
    (live, tables): (&Live, Tables),
    service: &Service,
) -> Result<Admitted, Reason> {
    session::arrives(frame, packet, datagram, token, tables, service)?;
    let header = token.header()?;
    let known = TRACKED
        .get_ptr_mut(TokenKey::of(&header))
        .and_then(|entry| Some((admit::cached(entry.cast(), &header)?, entry)));
    let (admitted, entry) = match known {
        Some(known) => known,
        None => (admit::in_full(frame, packet, token, live)?, ptr::null_mut()),
    };
    outline::result(
        settle_tracked(frame.context(), entry),
        [
            Reason::Revoked,
            Reason::StaleProof,
            Reason::BadProof,
            Reason::Replay,
            Reason::RateLimited,
            Reason::TooManySources,
            Reason::Unsupported,
        ],
    )?;
    Ok(admitted)
}

/// With a name for the linker: looked at by the verifier once. `entry` is null if the full check was made just now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle_tracked(ctx: *mut xdp_md, entry: *mut TrackedSession) -> u32 {
    outline::code(settled(ctx, entry))
}

#[inline(always)]
fn settled(ctx: *mut xdp_md, entry: *mut TrackedSession) -> Result<(), Reason> {
    let scratch = admit::scratch()?;
    let live = LIVE.get(0).ok_or(Reason::Internal)?;
    let now = clock::now(live);
    let frame = Frame::at(ctx);
    let token = frame.start().skip(scratch.arrival.token_at as usize & PAYLOAD_AT_MASK);
    let header = Header::again(token.read(0).ok_or(Reason::Internal)?);
    let entry = if entry.is_null() { entered(scratch, &header)? } else { entry };
    // SAFETY: here and wherever steps read or write an entry, the pointer is the kernel's, to memory that stays allocated.
    // The cache may give it to another token meanwhile, so that all reads are volatile, and what is written there does
    // no harm in another token's entry.
    let session = unsafe { &raw mut (*entry).session };

    revoke::check(scratch, live, now, header.nonce(), session)?;
    if header.kind() == Kind::Proof {
        proof::check(&frame, token, &header, &scratch.arrival, now, entry)?;
    }
    limit::check(&scratch.arrival, now, entry)?;
    scratch.token = TokenKey::of(&header);
    session::remember(&frame, scratch, now, session);
    Ok(())
}

/// The entry of a token that has just been checked.
#[inline(always)]
fn entered(scratch: &Scratch, header: &Header) -> Result<*mut TrackedSession, Reason> {
    // Where another CPU was faster, its entry stays: it knows what it has seen since.
    if TRACKED.insert(&scratch.token, &scratch.tracked, BPF_NOEXIST.into()).is_err() {
        match TRACKED.get_ptr_mut(&scratch.token) {
            Some(entry) if admit::is_of(entry.cast(), header) => return Ok(entry),
            // Another token's with the same fast tag and nonce: they take turns. Or the cache cannot take it.
            _ => TRACKED.insert(&scratch.token, &scratch.tracked, 0).map_err(|_| Reason::Internal)?,
        }
    }
    TRACKED.get_ptr_mut(&scratch.token).ok_or(Reason::Internal)
}
