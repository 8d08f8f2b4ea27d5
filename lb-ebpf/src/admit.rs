//! Step 6: the admission itself, paid for once per token and then remembered.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    reason::Reason,
    scratch::Scratch,
    service::Service,
    session::{Admission, Seen, Session, TokenKey},
    token::{Claims, Header, header::Binding, tags},
};

use crate::{
    maps::{HMAC_COST_NS, KEY_SLOTS, SCRATCH, SESSIONS},
    packet::Frame,
    parse::PAYLOAD_AT_MASK,
    token::Token,
};

/// What a token says of its session: from the cache, or by the full check.
#[inline(always)]
pub fn token(frame: &Frame, token: &Token, service: &Service) -> Result<Admission, Reason> {
    let header = token.header()?;
    match cached(&header) {
        Some(admission) => Ok(admission),
        None => checked(frame, token, service),
    }
}

/// A hit counts only if the claims that were verified are the packet's: 64 bits of fast tag may collide.
#[inline(always)]
fn cached(header: &Header) -> Option<Admission> {
    let key = TokenKey { fast_tag: header.fast_tag(), nonce: header.nonce() };
    let entry = SESSIONS.get_ptr(key)?;
    // The cache may give an entry's memory to another token while it is read here. Its writer fills the value from
    // the first byte to the last, so what is read in the other order and has the right claims is the right entry.
    //
    // SAFETY: the pointer is the kernel's, to an entry that stays allocated; volatile, because it may be written to.
    let (admission, claims) = unsafe {
        ((&raw const (*entry).admission).read_volatile(), (&raw const (*entry).claims).read_volatile())
    };
    header.claims_are(&claims).then_some(admission)
}

/// Lays out the full check in this CPU's scratch, where it leaves the stack alone, and runs it.
#[inline(always)]
fn checked(frame: &Frame, token: &Token, service: &Service) -> Result<Admission, Reason> {
    let scratch = scratch()?;
    if !scratch.budget.take(token.now.kernel_ns, HMAC_COST_NS.load()) {
        return Err(Reason::HmacBudget);
    }
    scratch.hmacs += 1;
    scratch.binding_address = token.binding.address;
    scratch.binding_port = token.binding.port.into();
    let at = token.at.offset_in(frame) as u32;
    match full_check(frame.context(), token.slot, at, service.id) {
        GOOD => Ok(scratch.session.admission),
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
    scratch.session = Session {
        claims: header.claims(),
        admission: Admission {
            session_id: claims.session_id,
            backend_id: claims.backend_id,
            class: claims.class,
            reserved: [0; 5],
        },
        seen: Seen::default(),
    };
    // A cache that cannot take the entry costs the next packet another HMAC, and nothing else.
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "by value, they would be copied to the stack"
    )]
    let _ = SESSIONS.insert(&scratch.token, &scratch.session, 0);
    Ok(())
}

#[inline(always)]
fn scratch() -> Result<&'static mut Scratch, Reason> {
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    Ok(unsafe { &mut *scratch })
}
