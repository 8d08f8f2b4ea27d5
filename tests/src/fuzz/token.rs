//! Tokens: for any start of a datagram and any header that the key has signed, lb-common's verification gives the
//! same result as the oracle's own reading of token.md, and so does `token inspect`.

use std::net::{Ipv6Addr, SocketAddr};

use lb_common::{
    keyslot::KeyId,
    reason::Reason,
    service::{ACCEPT_BEARER, ACCEPT_PROOF, BIND_REQUIRED, Service},
    sha256::Scratch,
    token::{Claims, Header, Kind, Source, header, keys::MasterKey, tags, verify::verify},
};
use tollgate::{
    keyring::{ExportedKey, KeyState},
    protocol::InspectToken,
    token::{KnownKey, inspect},
};

use crate::model::{
    fixture::{self, NOW},
    oracle::token::{Keys, Token},
};

/// The secret of the default key.
const MASTER: [u8; 32] = [7; 32];

/// Any payload of a datagram.
pub fn check(bytes: &[u8]) {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xaaaa, 0xbbbb, 1, 2, 3, 4);
    for from in [fixture::CLIENT, SocketAddr::new(v6.into(), 40_000)] {
        for service in services() {
            judge(bytes, &service, from);
            if let Some(signed) = sign(bytes, from) {
                judge(&signed, &service, from);
            }
        }
    }
}

/// A service that accepts all tokens, and one that accepts few.
fn services() -> [Service; 2] {
    let all = Service { accept: ACCEPT_BEARER | ACCEPT_PROOF, ..fixture::service() };
    let few = Service { bind: BIND_REQUIRED, max_ttl: 60, revoked_before: NOW - 5, ..fixture::service() };
    [all, few]
}

fn judge(payload: &[u8], service: &Service, from: SocketAddr) {
    let now_ns = u64::from(NOW) * lb_common::control::SECOND_NS;
    let key = fixture::key().slot(service.id);
    let slot = |slot| if KeyId(key.key_id).slot() == slot { key } else { Default::default() };
    let ours = verify(payload, &Source::new(from.ip(), from.port()), service, slot, now_ns);
    let expected = by_the_oracle(payload, service, from, now_ns);
    assert_eq!(ours, expected, "by lb-common, and by the oracle, from {from}");
    inspected(payload, service, from, expected.map(drop));
}

fn by_the_oracle(payload: &[u8], service: &Service, from: SocketAddr, now_ns: u64) -> Result<Claims, Reason> {
    let key_id = fixture::key().id.0;
    let keys = Keys::derive(&MASTER, key_id);
    let token = Token::parse(payload)?;
    token.allowed(service)?;
    if token.key_id() != key_id {
        return Err(Reason::UnknownKey);
    }
    token.in_time(service, now_ns)?;
    token.signed(&keys, from)?;
    let sealed = token.admitted(&keys, service, from)?;
    if token.is_proof() {
        token.proven(&token.session_key(&keys))?;
    }
    Ok(Claims {
        service_id: sealed.service_id,
        class: sealed.class,
        backend_id: sealed.backend_id,
        session_id: sealed.session_id,
    })
}

/// `token inspect` starts with the key, and sees no payload after a proof.
fn inspected(payload: &[u8], service: &Service, from: SocketAddr, expected: Result<(), Reason>) {
    let request =
        InspectToken { token: hex::encode(payload), from: Some(from.ip()), from_port: Some(from.port()) };
    let exported = ExportedKey {
        key_id: fixture::key().id.0,
        state: KeyState::Active,
        master: MasterKey::from_bytes(MASTER),
        not_after: u32::MAX.into(),
        sign_until: u32::MAX.into(),
    };
    let key = KnownKey::exported(service.id, &exported);
    let Ok(found) = inspect(&request, Some(&[key]), &[*service], None, NOW.into()) else { return };
    if found.verdict != "unchecked" && found.verdict != Reason::UnknownKey.name() {
        let expected = expected.map_or_else(Reason::name, |()| "valid");
        assert_eq!(found.verdict, expected, "by `token inspect`, from {from}");
    }
}

/// The same, signed with the default key: only a key holder can make such a token, so a fuzzer does not find one.
fn sign(payload: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let key = fixture::key();
    let (head, data) = payload.split_first_chunk::<{ header::LEN }>()?;
    let mut bytes = *head;
    bytes[4..8].copy_from_slice(&key.id.0.to_be_bytes());
    let parsed = Header::from_payload(&bytes).ok()?;
    let binding = parsed.binding(&Source::new(from.ip(), from.port())).ok()?;
    let mut words = parsed.words();
    let mut scratch = Scratch::default();
    match parsed.kind() {
        Kind::Bearer => {
            [words[6], words[7]] = tags::full(&key.derived.full, parsed.claims(), &binding, &mut scratch);
        }
        Kind::Proof => {
            let session_key = tags::session_key(&key.derived.proof, parsed.claims(), &mut scratch);
            let proof = parsed.proof();
            words[7] = tags::proof_over(session_key, proof.seq, proof.ts_ms, data);
        }
    }
    words[5] = tags::fast(key.derived.fast, &Header::from_verified(words), &binding);
    Some([&Header::from_verified(words).to_bytes()[..], data].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_what_their_names_say() {
        for (name, expected) in [
            ("bearer", Ok(())),
            ("proof", Ok(())),
            ("bound_to_an_ipv4_network", Ok(())),
            ("expired_but_for_the_skew", Ok(())),
            ("expired", Err(Reason::Expired)),
            ("a_bit_of_the_claims_flipped", Err(Reason::BadFastTag)),
            ("a_bit_of_the_full_tag_flipped", Err(Reason::BadFastTag)),
            ("a_bit_of_the_proof_flipped", Err(Reason::BadProof)),
            ("for_another_service", Err(Reason::WrongService)),
            ("reserved_byte_set", Err(Reason::BadHeader)),
            ("of_another_key", Err(Reason::UnknownKey)),
        ] {
            let case = std::fs::read(super::super::corpus().join("token").join(name)).expect(name);
            let now_ns = u64::from(NOW) * lb_common::control::SECOND_NS;
            let found = by_the_oracle(&case, &services()[0], fixture::CLIENT, now_ns);
            assert_eq!(found.map(drop), expected, "{name}");
        }
    }
}
