//! Step 6: the admission itself, paid for once per token and then remembered.

use core::ptr;

use aya_ebpf::bindings::{BPF_NOEXIST, xdp_md};
use lb_common::{
    live::{Live, OFFSET_STALE_NS},
    reason::Reason,
    scratch::Scratch,
    service::Service,
    session::{Admission, Session, TokenKey},
    siphash::SipKey,
    token::{Claims, Header, Kind, header::Binding, tags},
};

use crate::{
    clock,
    maps::{HMAC_COST_NS, KEY_SLOTS, SCRATCH, SESSIONS},
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

/// What a token says of its session, and the session's entry of the cache: null if it was made just now, by the full
/// check, for it is to be looked up then.
#[inline(always)]
pub fn token(
    frame: &Frame,
    packet: &Packet,
    token: &Token,
    live: &Live,
    service: &Service,
) -> Result<(Admitted, *mut Session), Reason> {
    match cached(&token.header()?) {
        Some(found) => Ok(found),
        None => {
            checked(frame, packet, token, live, service)?;
            Ok((Admitted::from(&scratch()?.session.admission), ptr::null_mut()))
        }
    }
}

/// A hit counts only if the claims that were verified are the packet's: 64 bits of fast tag may collide.
#[inline(always)]
fn cached(header: &Header) -> Option<(Admitted, *mut Session)> {
    let key = TokenKey { fast_tag: header.fast_tag(), nonce: header.nonce() };
    let entry = SESSIONS.get_ptr_mut(key)?;
    // The cache may give an entry's memory to another token while it is read here. Its writer fills the value from
    // the first byte to the last, so what is read in the other order and has the right claims is the right entry.
    //
    // SAFETY: the pointer is the kernel's, to an entry that stays allocated; volatile, because it may be written to.
    let admitted = unsafe {
        let backend_id = (&raw const (*entry).admission.backend_id).read_volatile();
        let session_id = (&raw const (*entry).admission.session_id).read_volatile();
        Admitted { session_id, backend_id }
    };
    is_of(entry, header).then_some((admitted, entry))
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

/// Lays out the full check in this CPU's scratch, where it leaves the stack alone, and runs it.
#[inline(always)]
fn checked(
    frame: &Frame,
    packet: &Packet,
    token: &Token,
    live: &Live,
    service: &Service,
) -> Result<(), Reason> {
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
    let at = token.at.offset_in(frame) as u32;
    outline::result(
        full_check(frame.context(), token.slot, at, service.id),
        [Reason::BadFullTag, Reason::BadHeader, Reason::WrongService],
    )
}

/// The full tag or the session's key, the sealed claims, and a place in the cache. A function with a name for the linker,
/// which the verifier looks at once; with next to no stack, for it calls the compression function, and the frames of all
/// three share 512 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn full_check(ctx: *mut xdp_md, slot: u32, at: u32, service_id: u32) -> u32 {
    outline::code(checked_in_full(ctx, slot, at, service_id))
}

#[inline(always)]
fn checked_in_full(ctx: *mut xdp_md, slot: u32, at: u32, service_id: u32) -> Result<(), Reason> {
    let scratch = scratch()?;
    let key = KEY_SLOTS.get(slot).ok_or(Reason::Internal)?;
    let at = Frame::at(ctx).start().skip(at as usize & PAYLOAD_AT_MASK);
    let header = Header::again(at.read(0).ok_or(Reason::Internal)?);
    if header.kind() == Kind::Proof {
        scratch.session.proof_key = tags::session_key(&key.proof, header.claims(), &mut scratch.sha256);
    } else {
        let binding = Binding { address: scratch.binding_address, port: scratch.binding_port as u16 };
        if tags::full(&key.full, header.claims(), &binding, &mut scratch.sha256) != header.full_tag() {
            return Err(Reason::BadFullTag);
        }
        scratch.session.proof_key = SipKey::default(); // Not that of the PROOF token before.
    }
    let claims = Claims::unseal(&header, key.seal)?;
    if claims.service_id != service_id {
        return Err(Reason::WrongService);
    }
    scratch.token = TokenKey { fast_tag: header.fast_tag(), nonce: header.nonce() };
    scratch.session.claims = Session::kept(header.claims());
    scratch.session.admission = Admission {
        session_id: claims.session_id,
        backend_id: claims.backend_id,
        class: claims.class,
        reserved: [0; 5],
    };
    // Where another CPU was faster, its entry stays: it knows what it has seen since.
    if SESSIONS.insert(&scratch.token, &scratch.session, BPF_NOEXIST.into()).is_ok() {
        return Ok(());
    }
    match SESSIONS.get_ptr_mut(&scratch.token) {
        Some(entry) if is_of(entry, &header) => Ok(()),
        // Another token's with the same fast tag and nonce: they take turns. Or the cache cannot take it.
        _ => SESSIONS.insert(&scratch.token, &scratch.session, 0).map_err(|_| Reason::Internal),
    }
}

/// This CPU's scratch.
#[inline(always)]
pub fn scratch() -> Result<&'static mut Scratch, Reason> {
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    Ok(unsafe { &mut *scratch })
}
