//! The verification of one packet on a host, in the order of token.md and with the same steps as the XDP program.

use crate::{
    keyslot::KeySlot,
    reason::Reason,
    service::Service,
    sha256::Scratch,
    token::{Claims, Header, Kind, Source, tags},
};

/// Verifies the token at the start of a datagram's payload, for a service, at the Unix time `now_ns` (nanoseconds).
/// `slot` returns the key slot with a given number. Only the XDP program has token caches, budgets, replay windows and
/// limits.
///
/// # Errors
/// The reason under which the XDP program would count the packet.
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
