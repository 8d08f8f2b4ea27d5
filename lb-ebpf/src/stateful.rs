//! Steps 6 to 9 of a session with state: PROOF tokens, and every token of a service with limits.

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{
    reason::{Reason, ReasonCode},
    scratch::Scratch,
    service::Service,
    session::{StatefulEntry, TokenKey},
    token::{Header, Kind},
};

use crate::{
    admit::{self, Admitted},
    clock, limit,
    maps::{CONTROL, STATEFUL},
    packet::Frame,
    parse::{Datagram, Packet},
    proof, revoke,
    run::Run,
    scratch::Mailboxes,
    session,
    shared::{Shared, field},
    subprogram::subprogram,
    token::{self, Token},
    verifier::PAYLOAD_AT_MASK,
};

/// The session of a datagram's token, if it accepts the datagram.
#[inline(always)]
pub fn session(
    run: &mut Run,
    packet: &Packet,
    datagram: &Datagram,
    token: &Token,
    service: &Service,
) -> Result<Admitted, ReasonCode> {
    let key = session::describe(run, packet, datagram, token, service)?;
    let header = token::header(token.at)?;
    *key = TokenKey::of(&header);
    let known = Shared::entry(&STATEFUL, key)
        .and_then(|entry| Some((admit::cached(field!(entry, session), &header)?, entry)));
    let (admitted, entry) = match known {
        Some((admitted, entry)) => (admitted, Some(entry)),
        None => (admit::verify(run, token)?, None),
    };
    check_stateful_session(&run.frame, &mut run.mailboxes, entry)?;
    Ok(admitted)
}

subprogram! {
    /// Checks the revocations, the proof, and the limits, and claims the flow of the packet's client for its session.
    /// If `entry` is `None`, the HMAC has just been verified, and the new entry is in the scratch.
    fn check_stateful_session(entry: Option<Shared<StatefulEntry>>) -> () = checked;
}

#[inline(always)]
fn checked(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    entry: Option<Shared<StatefulEntry>>,
) -> Result<(), ReasonCode> {
    let Scratch { packet, verification, revocation, flow, .. } = mailboxes.open()?;
    let control = Shared::value(&CONTROL).ok_or(Reason::Internal)?;
    let now = clock::now(control);
    let token = frame.start().skip(packet.token_at as usize & PAYLOAD_AT_MASK);
    let header = token::header(token)?;
    let entry = match entry {
        Some(entry) => entry,
        None => inserted(&packet.token, &verification.entry, &header)?,
    };
    let session = field!(entry, session);
    revoke::check(revocation, control, now, (packet.service_id, packet.token.nonce), session)?;
    if header.kind() == Kind::Proof {
        proof::check(frame, token, &header, packet, now, entry)?;
    }
    limit::check(packet, now, entry)?;
    session::claim_flow(frame, packet, flow, now, session);
    Ok(())
}

/// Inserts the entry of a token whose HMAC has just been verified.
#[inline(always)]
fn inserted(
    key: &TokenKey,
    entry: &StatefulEntry,
    header: &Header,
) -> Result<Shared<StatefulEntry>, ReasonCode> {
    // If another CPU was faster, its entry stays, because it already has state.
    if STATEFUL.insert(key, entry, BPF_NOEXIST.into()).is_err() {
        match Shared::entry(&STATEFUL, key) {
            Some(entry) if admit::is_of(field!(entry, session), header) => return Ok(entry),
            // The entry belongs to another token with the same fast tag and nonce: the two tokens replace each other.
            // Or the cache could not store the entry.
            _ => STATEFUL.insert(key, entry, 0).map_err(|_| Reason::Internal)?,
        }
    }
    Ok(Shared::entry(&STATEFUL, key).ok_or(Reason::Internal)?)
}
