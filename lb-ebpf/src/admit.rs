//! Step 6: the admission of a token, by its entry in a token cache or by its HMAC.

use lb_common::{
    control::OFFSET_STALE_NS,
    reason::{Reason, ReasonCode},
    scratch::Verification,
    session::{Admission, Session},
    siphash::SipKey,
    token::{Claims, Header, Kind, tags},
};

use crate::{
    clock,
    maps::{HMAC_COST_NS, KEY_SLOTS},
    packet::Frame,
    run::Run,
    scratch::Mailboxes,
    shared::{Shared, field},
    subprogram::subprogram,
    token::{self, Token},
    verifier::PAYLOAD_AT_MASK,
};

/// The data of a session that later steps need.
#[derive(Clone, Copy)]
pub struct Admitted {
    /// The id of the session.
    pub session_id: u64,
    /// The backend that its token names; 0: the balancer selects the backend.
    pub backend_id: u16,
}

impl From<&Admission> for Admitted {
    #[inline(always)]
    fn from(admission: &Admission) -> Self {
        Self { session_id: admission.session_id, backend_id: admission.backend_id }
    }
}

/// The admission in an entry of a token cache, if the entry belongs to this token: the keys of two tokens can be equal.
#[inline(always)]
pub fn cached(entry: Shared<Session>, header: &Header) -> Option<Admitted> {
    // The kernel writes a new value from its first byte to its last. The fields are read in the opposite order. So if
    // the claims, which are read last, match the packet, all fields belong to the packet's token.
    let backend_id = field!(entry, admission.backend_id).read();
    let session_id = field!(entry, admission.session_id).read();
    is_of(entry, header).then_some(Admitted { session_id, backend_id })
}

/// Whether an entry has the claims of this token.
#[inline(always)]
pub fn is_of(entry: Shared<Session>, header: &Header) -> bool {
    let mut other = 0;
    for (at, claim) in Session::kept(header.claims()).into_iter().enumerate() {
        other |= field!(entry, claims[at]).read() ^ claim;
    }
    other == 0
}

/// Verifies the HMAC of a token that has no cache entry. The scratch contains the metadata of its packet, and receives
/// the new entry.
#[inline(always)]
pub fn verify(run: &mut Run, token: &Token) -> Result<Admitted, ReasonCode> {
    let now = clock::now(run.control).kernel_ns;
    if now.saturating_sub(field!(run.control, confirmed_ns).read()) > OFFSET_STALE_NS {
        return Err(Reason::StaleClock.into());
    }
    let scratch = run.mailboxes.open()?;
    if !scratch.hmac_budget.take(now, HMAC_COST_NS.load()) {
        return Err(Reason::HmacBudget.into());
    }
    scratch.hmacs += 1;
    verify_hmac(&run.frame, &mut run.mailboxes, token.slot)?;
    Ok(Admitted::from(&run.mailboxes.open()?.verification.entry.session.admission))
}

subprogram! {
    /// Verifies the full tag or derives the session key, and unseals the claims. It uses almost no stack, because it
    /// calls the compression function, and the stack frames of all three functions share 512 bytes.
    fn verify_hmac(slot: u32) -> () = verified;
}

#[inline(always)]
fn verified(frame: &Frame, mailboxes: &mut Mailboxes, slot: u32) -> Result<(), ReasonCode> {
    let scratch = mailboxes.open()?;
    let (packet, Verification { sha256, entry }) = (&scratch.packet, &mut scratch.verification);
    let key = KEY_SLOTS.get(slot).ok_or(Reason::Internal)?;
    let header = token::header(frame.start().skip(packet.token_at as usize & PAYLOAD_AT_MASK))?;
    if header.kind() == Kind::Proof {
        entry.proof_key = tags::session_key(&key.proof, header.claims(), sha256);
    } else {
        let binding = header.binding(&packet.source())?;
        if tags::full(&key.full, header.claims(), &binding, sha256) != header.full_tag() {
            return Err(Reason::BadFullTag.into());
        }
        entry.proof_key = SipKey::default(); // Not the key of an earlier PROOF token.
    }
    let claims = Claims::unseal(&header, key.seal)?;
    if claims.service_id != packet.service_id {
        return Err(Reason::WrongService.into());
    }
    entry.session = Session {
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
