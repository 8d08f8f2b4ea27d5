//! Steps 7 to 9, and where the flow is remembered: what a session has to say to a datagram whose token is verified.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    live::{Live, Tables},
    reason::Reason,
    scratch::{Arrival, Scratch},
    service::Service,
    session::Session,
    token::{Header, Kind, header},
};

use crate::{
    admit, clock, flow, limit,
    maps::{LIVE, SESSIONS},
    outline,
    packet::Frame,
    parse::{Datagram, PAYLOAD_AT_MASK, Packet},
    proof, revoke,
    token::Token,
};

/// Whether the session takes the datagram. `entry` is its entry of the token cache; null if it was made just now.
#[inline(always)]
pub fn takes(
    frame: &Frame,
    packet: &Packet,
    datagram: &Datagram,
    token: &Token,
    live: &Live,
    service: &Service,
    entry: *mut Session,
) -> Result<(), Reason> {
    let seen = packet.seen();
    if !entry.is_null() && !service.limits() && token.kind == Kind::Bearer {
        // SAFETY: the kernel's entry; volatile, because it may be written to.
        let (before, checked) = unsafe {
            ((&raw const (*entry).seen).read_volatile(), (&raw const (*entry).checked).read_volatile())
        };
        if before == seen && checked == live.revocations as u32 {
            return Ok(()); // Nothing has changed since its last datagram.
        }
    }
    admit::scratch()?.arrival = Arrival {
        seen,
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
    outline::result(
        settle(frame.context(), entry),
        [
            Reason::Revoked,
            Reason::StaleProof,
            Reason::BadProof,
            Reason::Replay,
            Reason::RateLimited,
            Reason::TooManySources,
            Reason::Unsupported,
        ],
    )
}

/// With a name for the linker: looked at by the verifier once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle(ctx: *mut xdp_md, entry: *mut Session) -> u32 {
    outline::code(settled(ctx, entry))
}

#[inline(always)]
fn settled(ctx: *mut xdp_md, entry: *mut Session) -> Result<(), Reason> {
    let scratch = admit::scratch()?;
    // SAFETY, here and wherever steps read or write an entry: the pointer is the kernel's, to memory that stays allocated.
    // The cache may give it to another token meanwhile, so that all reads are volatile, and what is written there does
    // no harm in another token's entry.
    let entry =
        if entry.is_null() { SESSIONS.get_ptr_mut(&scratch.token).ok_or(Reason::Internal)? } else { entry };
    let live = LIVE.get(0).ok_or(Reason::Internal)?;
    let now = clock::now(live);
    let frame = Frame::at(ctx);
    let token = frame.start().skip(scratch.arrival.token_at as usize & PAYLOAD_AT_MASK);
    let header = Header::again(token.read(0).ok_or(Reason::Internal)?);

    revoke::check(scratch, live, now, header.nonce(), entry)?;
    if header.kind() == Kind::Proof {
        proof::check(&frame, token, &header, &scratch.arrival, now, entry)?;
    }
    limit::check(Tables::from_word(live.tables), &scratch.arrival, now, entry)?;
    remember(&frame, scratch, entry);
    Ok(())
}

/// Where its client is another than that of the session's last datagram, the flow is remembered.
#[inline(always)]
fn remember(frame: &Frame, scratch: &mut Scratch, entry: *mut Session) {
    // SAFETY: as above. If the entry has become another token's, that one's flow is remembered once more, and this one's
    // with the other's session: an ICMP error may go to a wrong backend of the service.
    unsafe {
        let seen = &raw mut (*entry).seen;
        if seen.read_volatile() == scratch.arrival.seen {
            return;
        }
        seen.write_volatile(scratch.arrival.seen);
        scratch.session.admission = (&raw const (*entry).admission).read_volatile();
    }
    flow::remember(frame, scratch);
}
