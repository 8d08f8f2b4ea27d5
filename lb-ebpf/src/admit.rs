//! Step 6: the admission itself, paid for once per token and then remembered.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    live::Live,
    reason::Reason,
    scratch::Scratch,
    service::Service,
    session::{Admission, Seen, Session, TokenKey},
    token::{Claims, Header, header::Binding, tags},
};

use crate::{
    clock, flow,
    maps::{HMAC_COST_NS, KEY_SLOTS, SCRATCH, SESSIONS},
    packet::Frame,
    parse::{PAYLOAD_AT_MASK, Packet},
    token::Token,
};

/// A session, as far as its way goes.
#[derive(Clone, Copy)]
pub struct Admitted {
    /// Its id.
    pub session_id: u64,
    /// The backend it is pinned to; 0 lets the balancer choose.
    pub backend_id: u16,
}

impl From<&Admission> for Admitted {
    #[inline(always)]
    fn from(admission: &Admission) -> Self {
        Self { session_id: admission.session_id, backend_id: admission.backend_id }
    }
}

/// What a token says of its session: from the cache, or by the full check. Where its client is another than that of the
/// token's last datagram, the flow is remembered.
#[inline(always)]
pub fn token(
    frame: &Frame,
    packet: &Packet,
    token: &Token,
    live: &Live,
    service: &Service,
) -> Result<Admitted, Reason> {
    let seen = packet.seen();
    let admitted = match cached(&token.header()?) {
        Some((admitted, entry)) => {
            // SAFETY: as in `cached`. If the entry has become another token's, that one's flow is remembered once more, and
            // this one's with the other's session: an ICMP error may go to a wrong backend of the service.
            unsafe {
                let at = &raw mut (*entry).seen;
                if at.read_volatile() == seen {
                    return Ok(admitted);
                }
                at.write_volatile(seen);
                scratch()?.session.admission = (&raw const (*entry).admission).read_volatile();
            }
            admitted
        }
        None => {
            checked(frame, packet, token, live, service, seen)?;
            Admitted::from(&scratch()?.session.admission)
        }
    };
    flow::remember(frame, packet, service);
    Ok(admitted)
}

/// A hit counts only if the claims that were verified are the packet's: 64 bits of fast tag may collide. Returns the
/// entry, too.
#[inline(always)]
fn cached(header: &Header) -> Option<(Admitted, *mut Session)> {
    let key = TokenKey { fast_tag: header.fast_tag(), nonce: header.nonce() };
    let entry = SESSIONS.get_ptr_mut(key)?;
    // The cache may give an entry's memory to another token while it is read here. Its writer fills the value from
    // the first byte to the last, so what is read in the other order and has the right claims is the right entry.
    //
    // SAFETY: the pointer is the kernel's, to an entry that stays allocated; volatile, because it may be written to.
    unsafe {
        let backend_id = (&raw const (*entry).admission.backend_id).read_volatile();
        let session_id = (&raw const (*entry).admission.session_id).read_volatile();
        let mut other = 0;
        for (at, claim) in header.claims().into_iter().enumerate() {
            other |= (&raw const (*entry).claims[at]).read_volatile() ^ claim;
        }
        (other == 0).then_some((Admitted { session_id, backend_id }, entry))
    }
}

/// Lays out the full check in this CPU's scratch, where it leaves the stack alone, and runs it.
#[inline(always)]
fn checked(
    frame: &Frame,
    packet: &Packet,
    token: &Token,
    live: &Live,
    service: &Service,
    seen: Seen,
) -> Result<(), Reason> {
    let scratch = scratch()?;
    let now = clock::now(live).kernel_ns;
    if !scratch.budget.take(now, HMAC_COST_NS.load()) {
        return Err(Reason::HmacBudget);
    }
    scratch.hmacs += 1;
    let binding = token.header()?.binding(&packet.from)?;
    scratch.binding_address = binding.address;
    scratch.binding_port = binding.port.into();
    scratch.session.seen = seen;
    let at = token.at.offset_in(frame) as u32;
    match full_check(frame.context(), token.slot, at, service.id) {
        GOOD => Ok(()),
        BAD_FULL_TAG => Err(Reason::BadFullTag),
        BAD_HEADER => Err(Reason::BadHeader),
        WRONG_SERVICE => Err(Reason::WrongService),
        _ => Err(Reason::Internal),
    }
}

const GOOD: u32 = 0;
const BAD_FULL_TAG: u32 = 1 + Reason::BadFullTag as u32;
const BAD_HEADER: u32 = 1 + Reason::BadHeader as u32;
const WRONG_SERVICE: u32 = 1 + Reason::WrongService as u32;

/// The full tag, the sealed claims, and a place in the cache. A function with a name for the linker, which the verifier
/// looks at once, whatever ways packets come to it; with next to no stack, for it calls the compression function, and
/// the frames of all three share 512 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_check(ctx: *mut xdp_md, slot: u32, at: u32, service_id: u32) -> u32 {
    match checked_in_full(ctx, slot, at, service_id) {
        Ok(()) => GOOD,
        Err(reason) => 1 + reason as u32,
    }
}

#[inline(always)]
fn checked_in_full(ctx: *mut xdp_md, slot: u32, at: u32, service_id: u32) -> Result<(), Reason> {
    let scratch = scratch()?;
    let key = KEY_SLOTS.get(slot).ok_or(Reason::Internal)?;
    let at = Frame::at(ctx).start().skip(at as usize & PAYLOAD_AT_MASK);
    let header = Header::again(at.read(0).ok_or(Reason::Internal)?);
    let binding = Binding { address: scratch.binding_address, port: scratch.binding_port as u16 };
    if tags::full(&key.full, header.claims(), &binding, &mut scratch.sha256) != header.full_tag() {
        return Err(Reason::BadFullTag);
    }
    let claims = Claims::unseal(&header, key.seal)?;
    if claims.service_id != service_id {
        return Err(Reason::WrongService);
    }
    scratch.token = TokenKey { fast_tag: header.fast_tag(), nonce: header.nonce() };
    scratch.session.claims = header.claims();
    scratch.session.admission = Admission {
        session_id: claims.session_id,
        backend_id: claims.backend_id,
        class: claims.class,
        reserved: [0; 5],
    };
    // A cache that cannot take the entry costs the next packet another HMAC, and nothing else.
    let _ = SESSIONS.insert(&scratch.token, &scratch.session, 0);
    Ok(())
}

#[inline(always)]
fn scratch() -> Result<&'static mut Scratch, Reason> {
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    Ok(unsafe { &mut *scratch })
}
