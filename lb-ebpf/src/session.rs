//! Steps 6 and 7 of a session of which nothing is counted, and where the flow is remembered.

use core::ptr;

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    live::Live,
    reason::Reason,
    scratch::{Arrival, Scratch},
    service::Service,
    session::{Session, TokenKey},
    token::{Header, header},
};

use crate::{
    admit::{self, Admitted},
    clock, flow,
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
    live: &Live,
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
        if seen == packet.seen() && checked == live.revocations as u32 {
            return Ok(admitted); // Nothing has changed since its last datagram.
        }
    }
    arrives(frame, packet, datagram, token, service)?;
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
    service: &Service,
) -> Result<(), Reason> {
    admit::scratch()?.arrival = Arrival {
        seen: packet.seen(),
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
        reserved: [0; 5],
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
        let nonce = Header::again(token.read(0).ok_or(Reason::Internal)?).nonce();
        revoke::check(scratch, live, now, nonce, entry)?;
        remember(&frame, scratch, entry);
        return Ok(());
    }
    // Of a new entry nobody else knows: it is settled before it comes into the cache, whatever becomes of the datagram.
    let entry = &raw mut scratch.tracked.session;
    let nonce = scratch.token.nonce;
    let result = revoke::check(scratch, live, now, nonce, entry);
    if result.is_ok() {
        remember(&frame, scratch, entry);
    }
    // A cache that cannot take the entry costs the next packet another HMAC, and nothing else.
    let _ = SESSIONS.insert(&scratch.token, &scratch.tracked.session, 0);
    result
}

/// Where its client is another than that of the session's last datagram, the flow is remembered.
#[inline(always)]
pub fn remember(frame: &Frame, scratch: &mut Scratch, entry: *mut Session) {
    // SAFETY: the kernel's entry, to memory that stays allocated. If it has become another token's, that one's flow is
    // remembered once more, and this one's with the other's session: an ICMP error may go to a wrong backend of the service.
    unsafe {
        let seen = &raw mut (*entry).seen;
        if seen.read_volatile() == scratch.arrival.seen {
            return;
        }
        seen.write_volatile(scratch.arrival.seen);
        scratch.tracked.session.admission = (&raw const (*entry).admission).read_volatile();
    }
    flow::remember(frame, scratch);
}
