//! Step 6: the admission itself, paid for once per token and then remembered.

use lb_common::{
    keyslot::KeySlot,
    reason::Reason,
    scratch::Scratch,
    service::Service,
    session::{Admission, Seen, Session, TokenKey},
    token::{Claims, Header, header::Binding, tags},
};

use crate::{
    maps::{HMAC_COST_NS, SCRATCH, SESSIONS},
    packet::Cursor,
    token::Token,
};

/// What a token says of its session: from the cache, or by the full check.
#[inline(always)]
pub fn token(token: &Token, service: &Service) -> Result<Admission, Reason> {
    let header = token.header()?;
    match cached(&header) {
        Some(admission) => Ok(admission),
        None => checked(token, service),
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
fn checked(token: &Token, service: &Service) -> Result<Admission, Reason> {
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let scratch: &mut Scratch = unsafe { &mut *scratch };
    if !scratch.budget.take(token.now.kernel_ns, HMAC_COST_NS.load()) {
        return Err(Reason::HmacBudget);
    }
    scratch.hmacs += 1;
    scratch.binding_address = token.binding.address;
    scratch.binding_port = token.binding.port.into();
    full_check(scratch, token.key, token.at, service.id)?;
    Ok(scratch.session.admission)
}

/// The full tag, the sealed claims, and a place in the cache. A function of its own, with next to no stack: it calls
/// the compression function, and the frames of all three share 512 bytes.
#[inline(never)]
fn full_check(scratch: &mut Scratch, key: &KeySlot, at: Cursor, service_id: u32) -> Result<(), Reason> {
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
