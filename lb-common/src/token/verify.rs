//! The whole check of one packet on a host, in the order of token.md and from the same steps as the program's.

use crate::{
    keyslot::KeySlot,
    reason::Reason,
    service::Service,
    sha256::Scratch,
    token::{Claims, Header, Kind, Source, tags},
};

/// Checks the start of a datagram's payload for a service at unix nanosecond `now_ns`, with the key that `slot`
/// holds in the slot asked for. A token cache, budgets, replay and limits are the program's own.
///
/// # Errors
/// The reason the program would count.
pub fn verify(
    payload: &[u8],
    source: &Source,
    service: &Service,
    slot: impl FnOnce(u32) -> KeySlot,
    now_ns: u64,
) -> Result<Claims, Reason> {
    let header = Header::from_payload(payload)?;
    header.allowed_by(service)?;
    let key_id = header.key_id();
    let key = slot(key_id.slot());
    key.admits(key_id, service.id, now_ns)?;
    header.lives(service, now_ns)?;
    let binding = header.binding(source)?;
    if tags::fast(key.fast, &header, &binding) != header.fast_tag() {
        return Err(Reason::BadFastTag);
    }
    let mut scratch = Scratch::default();
    if header.kind() == Kind::Bearer
        && tags::full(&key.full, header.claims(), &binding, &mut scratch) != header.full_tag()
    {
        return Err(Reason::BadFullTag);
    }
    let claims = Claims::unseal(&header, key.seal)?;
    if claims.service_id != service.id {
        return Err(Reason::WrongService);
    }
    if header.kind() == Kind::Proof {
        let proof = header.proof();
        let session_key = tags::session_key(&key.proof, header.claims(), &mut scratch);
        if tags::proof_over(session_key, proof.seq, proof.ts_ms, &payload[super::header::LEN..]) != proof.tag
        {
            return Err(Reason::BadProof);
        }
    }
    Ok(claims)
}
