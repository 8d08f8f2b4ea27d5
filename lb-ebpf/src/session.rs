//! Steps 6 and 7 of a session without state: BEARER tokens of a service without limits.

use lb_common::{
    reason::{Reason, ReasonCode},
    scratch::{FlowClaim, PacketMetadata, Scratch, Verification},
    service::Service,
    session::{Session, TokenKey},
    token::header,
};

use crate::{
    admit::{self, Admitted},
    clock::{self, Now},
    flow,
    maps::{CONTROL, SESSIONS},
    packet::Frame,
    parse::{Datagram, Packet},
    revoke,
    run::Run,
    scratch::Mailboxes,
    shared::{Shared, field},
    subprogram::subprogram,
    token::{self, Token},
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
    let header = token::header(token.at)?;
    let known = Shared::entry(&SESSIONS, &TokenKey::of(&header))
        .and_then(|entry| Some((admit::cached(entry, &header)?, entry)));
    if let Some((admitted, entry)) = known {
        let (seen, checked) = (field!(entry, seen).read(), field!(entry, checked).read());
        let additions = field!(run.control, revocations).read() as u32;
        if seen == packet.client() && checked == additions && used(entry, clock::now(run.control)) {
            return Ok(admitted); // Nothing has changed since its last datagram.
        }
    }
    *describe(run, packet, datagram, token, service)? = TokenKey::of(&header);
    let (admitted, entry) = match known {
        Some((admitted, entry)) => (admitted, Some(entry)),
        None => (admit::verify(run, token)?, None),
    };
    check_session(&run.frame, &mut run.mailboxes, entry)?;
    Ok(admitted)
}

/// Writes the metadata of a packet into the scratch, except for the key of its token. Returns a reference to that key.
#[inline(always)]
pub fn describe<'a>(
    run: &'a mut Run,
    packet: &Packet,
    datagram: &Datagram,
    token: &Token,
    service: &Service,
) -> Result<&'a mut TokenKey, ReasonCode> {
    let metadata = &mut run.mailboxes.open()?.packet;
    metadata.client = packet.client();
    metadata.tables = run.tables.to_word();
    metadata.source_address = packet.from.address;
    metadata.source_port = packet.from.port;
    metadata.token_at = token.at.offset_in(&run.frame) as u32;
    metadata.ip_at = packet.ip.offset_in(&run.frame) as u32;
    metadata.payload_len = u32::from(datagram.payload_len) - header::LEN as u32;
    metadata.v6 = packet.from.v6.into();
    metadata.service_id = service.id;
    metadata.service_index = service.index;
    metadata.flags = service.flags;
    metadata.forward = service.forward;
    metadata.max_sources = service.max_sources;
    metadata.stateful = service.is_stateful(token.kind).into();
    Ok(&mut metadata.token)
}

subprogram! {
    /// Checks the revocations, and claims the flow of the packet's client for its session. If `entry` is `None`, the
    /// HMAC has just been verified, and the new entry is in the scratch.
    fn check_session(entry: Option<Shared<Session>>) -> () = checked;
}

#[inline(always)]
fn checked(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    entry: Option<Shared<Session>>,
) -> Result<(), ReasonCode> {
    let Scratch { packet, verification, revocation, flow, .. } = mailboxes.open()?;
    let control = Shared::value(&CONTROL).ok_or(Reason::Internal)?;
    let now = clock::now(control);
    let token = (packet.service_id, packet.token.nonce);
    if let Some(entry) = entry {
        revoke::check(revocation, control, now, token, entry)?;
        claim_flow(frame, packet, flow, now, entry);
        return Ok(());
    }
    // A new entry is not shared with other CPUs yet. It is inserted into the cache when it is complete, even if the
    // datagram is refused.
    let Verification { entry, .. } = verification;
    let new = Shared::own(&mut entry.session);
    let result = revoke::check(revocation, control, now, token, new);
    if result.is_ok() {
        claim_flow(frame, packet, flow, now, new);
    }
    // If the cache cannot store the entry, the next packet costs another HMAC.
    let _ = SESSIONS.insert(&packet.token, &entry.session, 0);
    result
}

/// Records in an entry that its token is in use by the client in the entry. Returns false if the client's flow must be
/// checked: periodically, and while the flow belongs to another session.
#[inline(always)]
fn used(entry: Shared<Session>, now: Now) -> bool {
    let now = flow::activity(entry, now);
    // If the entry now belongs to another token, that token checks its flow again, or its time of use is wrong by a few
    // seconds.
    let active = field!(entry, admission.active);
    let before = active.read();
    // Not for every datagram, because other CPUs read the word.
    if before != now && before.is_settled(now) {
        active.write(now);
    }
    before.is_settled(now)
}

/// Claims the flow of a packet's client for the session of its token's entry: if the client differs from that of the
/// session's last packet, or if the flow must be checked (see [`used`]).
#[inline(always)]
pub fn claim_flow(
    frame: &Frame,
    packet: &PacketMetadata,
    flow: &mut FlowClaim,
    now: Now,
    entry: Shared<Session>,
) {
    let (seen, active) = (field!(entry, seen), field!(entry, admission.active));
    let of_now = flow::activity(entry, now);
    if seen.read() == packet.client && (used(entry, now) || active.read() == of_now.contested()) {
        return;
    }
    let is_own = flow::claim(frame, packet, flow, now, entry);
    active.write(if is_own { of_now } else { of_now.contested() });
    seen.write(packet.client);
}
