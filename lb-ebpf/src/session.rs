//! Steps 6 and 7 of a session of which nothing is counted, and where the flow is remembered.

use core::ptr;

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    live::{Live, Tables},
    reason::Reason,
    scratch::{Arrival, Scratch},
    service::Service,
    session::{Session, TokenKey},
    token::{Header, header},
};

use crate::{
    admit::{self, Admitted},
    clock::{self, Now},
    flow,
    maps::{LIVE, SESSIONS},
    outline,
    packet::Frame,
    parse::{Datagram, PAYLOAD_AT_MASK, Packet},
    revoke,
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
    let header = token.header()?;
    let known = SESSIONS
        .get_ptr_mut(TokenKey::of(&header))
        .and_then(|entry| Some((admit::cached(entry, &header)?, entry)));
    if let Some((admitted, entry)) = known {
        // SAFETY: the kernel's entry; volatile, because it may be written to.
        let (seen, checked) = unsafe {
            ((&raw const (*entry).seen).read_volatile(), (&raw const (*entry).checked).read_volatile())
        };
        if seen == packet.seen() && checked == live.revocations as u32 && used(entry, clock::now(live)) {
            return Ok(admitted); // Nothing has changed since its last datagram.
        }
    }
    arrives(frame, packet, datagram, token, tables, service)?;
    let (admitted, entry) = match known {
        Some(known) => known,
        None => (admit::in_full(frame, packet, token, live)?, ptr::null_mut()),
    };
    outline::result(settle(frame.context(), entry), [Reason::Revoked])?;
    Ok(admitted)
}

/// Lays out what is to be known of a datagram in this CPU's scratch.
#[inline(always)]
pub fn arrives(
    frame: &Frame,
    packet: &Packet,
    datagram: &Datagram,
    token: &Token,
    tables: Tables,
    service: &Service,
) -> Result<(), Reason> {
    admit::scratch()?.arrival = Arrival {
        seen: packet.seen(),
        tables: tables.to_word(),
        source: packet.from.address,
        token_at: token.at.offset_in(frame) as u32,
        ip_at: packet.ip.offset_in(frame) as u32,
        payload_len: u32::from(datagram.payload_len) - header::LEN as u32,
        v6: packet.from.v6.into(),
        service_id: service.id,
        service_index: service.index,
        flags: service.flags,
        forward: service.forward,
        max_sources: service.max_sources,
        tracked: service.tracks(token.kind).into(),
        reserved: [0; 4],
    };
    Ok(())
}

/// With a name for the linker: looked at by the verifier once. `entry` is null if the full check was made just now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle(ctx: *mut xdp_md, entry: *mut Session) -> u32 {
    outline::code(settled(ctx, entry))
}

#[inline(always)]
fn settled(ctx: *mut xdp_md, entry: *mut Session) -> Result<(), Reason> {
    let scratch = admit::scratch()?;
    let live = LIVE.get(0).ok_or(Reason::Internal)?;
    let now = clock::now(live);
    let frame = Frame::at(ctx);
    if !entry.is_null() {
        let token = frame.start().skip(scratch.arrival.token_at as usize & PAYLOAD_AT_MASK);
        let header = Header::again(token.read(0).ok_or(Reason::Internal)?);
        revoke::check(scratch, live, now, header.nonce(), entry)?;
        scratch.token = TokenKey::of(&header);
        remember(&frame, scratch, now, entry);
        return Ok(());
    }
    // Of a new entry nobody else knows: it is settled before it comes into the cache, whatever becomes of the datagram.
    let entry = &raw mut scratch.tracked.session;
    let nonce = scratch.token.nonce;
    let result = revoke::check(scratch, live, now, nonce, entry);
    if result.is_ok() {
        remember(&frame, scratch, now, entry);
    }
    // A cache that cannot take the entry costs the next packet another HMAC, and nothing else.
    let _ = SESSIONS.insert(&scratch.token, &scratch.tracked.session, 0);
    result
}

/// Notes in an entry that its token is in use from the client that it names. False where the client's flow is to be looked
/// at: once in a while, and for as long as it is another session's.
#[inline(always)]
fn used(entry: *mut Session, now: Now) -> bool {
    let now = flow::activity(entry, now);
    // SAFETY: the kernel's entry, to memory that stays allocated. If it has become another token's, that one looks at its
    // flow once more, or is taken for used at another moment by a few seconds.
    unsafe {
        let active = &raw mut (*entry).admission.active;
        let before = active.read_volatile();
        // Not at every datagram: those on other CPUs read it.
        if before != now && before.is_settled(now) {
            active.write_volatile(now);
        }
        before.is_settled(now)
    }
}

/// Claims the flow of a datagram's client for the session of an entry, whose token's key is in the scratch: where the client
/// is another than that of the session's last datagram, and where [`used`] says so.
#[inline(always)]
pub fn remember(frame: &Frame, scratch: &mut Scratch, now: Now, entry: *mut Session) {
    // SAFETY: as in `used`.
    unsafe {
        let (seen, active) = (&raw mut (*entry).seen, &raw mut (*entry).admission.active);
        let of_now = flow::activity(entry, now);
        if seen.read_volatile() == scratch.arrival.seen
            && (used(entry, now) || active.read_volatile() == of_now.contested())
        {
            return;
        }
        let is_own = flow::claim(frame, scratch, now, entry);
        active.write_volatile(if is_own { of_now } else { of_now.contested() });
        seen.write_volatile(scratch.arrival.seen);
    }
}
