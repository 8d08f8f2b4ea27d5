//! Step 6: the admission itself, paid for once per token: `session` and `tracked` remember it.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    live::{Live, OFFSET_STALE_NS},
    reason::Reason,
    scratch::Scratch,
    session::{Admission, Session, TokenKey},
    siphash::SipKey,
    token::{Claims, Header, Kind, header::Binding, tags},
};

use crate::{
    clock,
    maps::{HMAC_COST_NS, KEY_SLOTS, SCRATCH},
    outline,
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

/// What an entry of a cache says, if it is the one of this token: 64 bits of fast tag may collide.
#[inline(always)]
pub fn cached(entry: *const Session, header: &Header) -> Option<Admitted> {
    // The cache may give an entry's memory to another token while it is read here. Its writer fills the value from
    // the first byte to the last, so what is read in the other order and has the right claims is the right entry.
    //
    // SAFETY: the pointer is the kernel's, to an entry that stays allocated; volatile, because it may be written to.
    let admitted = unsafe {
        let backend_id = (&raw const (*entry).admission.backend_id).read_volatile();
        let session_id = (&raw const (*entry).admission.session_id).read_volatile();
        Admitted { session_id, backend_id }
    };
    is_of(entry, header).then_some(admitted)
}

/// Whether an entry is the one of these claims.
#[inline(always)]
pub fn is_of(entry: *const Session, header: &Header) -> bool {
    let mut other = 0;
    for (at, claim) in Session::kept(header.claims()).into_iter().enumerate() {
        // SAFETY: as in `cached`.
        other |= unsafe { (&raw const (*entry).claims[at]).read_volatile() } ^ claim;
    }
    other == 0
}

/// Makes the full check of a token that is in no cache, and leaves what is to come into one in this CPU's scratch, where the
/// datagram's arrival is.
#[inline(always)]
pub fn in_full(frame: &Frame, packet: &Packet, token: &Token, live: &Live) -> Result<Admitted, Reason> {
    let scratch = scratch()?;
    let now = clock::now(live).kernel_ns;
    if now.saturating_sub(live.confirmed_ns) > OFFSET_STALE_NS {
        return Err(Reason::StaleClock);
    }
    if !scratch.budget.take(now, HMAC_COST_NS.load()) {
        return Err(Reason::HmacBudget);
    }
    scratch.hmacs += 1;
    let binding = token.header()?.binding(&packet.from)?;
    scratch.binding_address = binding.address;
    scratch.binding_port = binding.port.into();
    outline::result(
        full_check(frame.context(), token.slot),
        [Reason::BadFullTag, Reason::BadHeader, Reason::WrongService],
    )?;
    Ok(Admitted::from(&scratch.tracked.session.admission))
}

/// The full tag or the session's key, and the sealed claims. A function with a name for the linker, which the verifier looks
/// at once; with next to no stack, for it calls the compression function, and the frames of all three share 512 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_check(ctx: *mut xdp_md, slot: u32) -> u32 {
    outline::code(checked_in_full(ctx, slot))
}

#[inline(always)]
fn checked_in_full(ctx: *mut xdp_md, slot: u32) -> Result<(), Reason> {
    let scratch = scratch()?;
    let key = KEY_SLOTS.get(slot).ok_or(Reason::Internal)?;
    let at = Frame::at(ctx).start().skip(scratch.arrival.token_at as usize & PAYLOAD_AT_MASK);
    let header = Header::again(at.read(0).ok_or(Reason::Internal)?);
    if header.kind() == Kind::Proof {
        scratch.tracked.proof_key = tags::session_key(&key.proof, header.claims(), &mut scratch.sha256);
    } else {
        let binding = Binding { address: scratch.binding_address, port: scratch.binding_port as u16 };
        if tags::full(&key.full, header.claims(), &binding, &mut scratch.sha256) != header.full_tag() {
            return Err(Reason::BadFullTag);
        }
        scratch.tracked.proof_key = SipKey::default(); // Not that of the PROOF token before.
    }
    let claims = Claims::unseal(&header, key.seal)?;
    if claims.service_id != scratch.arrival.service_id {
        return Err(Reason::WrongService);
    }
    scratch.token = TokenKey::of(&header);
    scratch.tracked.session = Session {
        claims: Session::kept(header.claims()),
        admission: Admission {
            session_id: claims.session_id,
            backend_id: claims.backend_id,
            class: claims.class,
            ..Admission::default()
        },
        ..Session::default()
    };
    Ok(())
}

/// This CPU's scratch.
#[inline(always)]
pub fn scratch() -> Result<&'static mut Scratch, Reason> {
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    Ok(unsafe { &mut *scratch })
}
