//! The vectors of token.md, written by an implementation that shares no code with this one.

use lb_common::{
    keyslot::{KeyId, KeySlot, STATE_VERIFY},
    reason::Reason,
    service::{ACCEPT_BEARER, ACCEPT_PROOF, Service},
    sha256::Scratch,
    siphash::{SipKey, siphash13, siphash24},
    token::{
        Claims, Header, Kind, Source,
        claims::keystream,
        keys::{DerivedKeys, MasterKey},
        mint::{Grant, Prefix},
        verify::verify,
    },
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    primitives: Primitives,
    keys: Vec<Key>,
    tokens: Vec<Token>,
    rejected: Vec<Rejected>,
}

#[derive(Deserialize)]
struct Primitives {
    siphash13: Sip,
    siphash24: Sip,
}

#[derive(Deserialize)]
struct Sip {
    key: String,
    outputs: Vec<SipOutput>,
}

#[derive(Deserialize)]
struct SipOutput {
    len: usize,
    out: String,
}

#[derive(Deserialize)]
struct Key {
    master: String,
    key_id: u32,
    full: String,
    fast: String,
    seal: String,
    proof: String,
}

#[derive(Deserialize)]
struct Token {
    name: String,
    key: usize,
    r#type: String,
    flags: u8,
    bind_len: u8,
    client_addr: Option<core::net::IpAddr>,
    client_port: Option<u16>,
    service_id: u32,
    session_id: String,
    class: u8,
    backend_id: u16,
    issued_at: u32,
    expires_at: u32,
    nonce: String,
    assoc: String,
    keystream: String,
    claims: String,
    header: String,
    session_key: Option<String>,
    seq: Option<u32>,
    ts_ms: Option<u32>,
    payload: Option<String>,
}

#[derive(Deserialize)]
struct Rejected {
    name: String,
    reason: String,
    header: String,
    key: usize,
    now: u64,
    service_id: u32,
    max_ttl: u32,
    skew: u64,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../vectors/token-v1.json")).unwrap()
}

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    hex::decode(hex).unwrap().try_into().unwrap()
}

fn words<const N: usize>(hex: &str) -> [u64; N] {
    let bytes = hex::decode(hex).unwrap();
    core::array::from_fn(|i| u64::from_le_bytes(bytes[8 * i..][..8].try_into().unwrap()))
}

fn derive(key: &Key) -> DerivedKeys {
    DerivedKeys::derive(&MasterKey::from_bytes(bytes(&key.master)), KeyId(key.key_id))
}

fn slot(key: &Key, service_id: u32) -> KeySlot {
    let keys = derive(key);
    KeySlot {
        key_id: key.key_id,
        state: STATE_VERIFY,
        service_id,
        reserved: 0,
        not_before_ns: 0,
        not_after_ns: u64::MAX,
        fast: keys.fast,
        seal: keys.seal,
        full: keys.full,
        proof: keys.proof,
    }
}

fn service(id: u32, max_ttl: u32) -> Service {
    Service { id, index: 1, max_ttl, accept: ACCEPT_BEARER | ACCEPT_PROOF, ..Service::default() }
}

#[test]
fn siphash() {
    let Primitives { siphash13: one_three, siphash24: two_four } = vectors().primitives;
    for (sip, hash) in [(one_three, siphash13 as fn(SipKey, &[u8]) -> u64), (two_four, siphash24)] {
        let key = SipKey::from_bytes(&bytes(&sip.key));
        assert!(!sip.outputs.is_empty());
        for output in sip.outputs {
            let message: Vec<u8> = (0..output.len).map(|i| u8::try_from(i).unwrap()).collect();
            assert_eq!(hex::encode(hash(key, &message).to_le_bytes()), output.out, "{} bytes", output.len);
        }
    }
}

#[test]
fn derived_keys() {
    for key in vectors().keys {
        let keys = derive(&key);
        assert_eq!(hex::encode(keys.fast.to_bytes()), key.fast);
        assert_eq!(hex::encode(keys.seal.to_bytes()), key.seal);
        // The HMAC keys are known by what they sign alone: the tags of a message under the vector's own key.
        for (ours, theirs) in [(keys.full, &key.full), (keys.proof, &key.proof)] {
            use hmac::{KeyInit, Mac};
            let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(&bytes::<32>(theirs)).unwrap();
            mac.update(b"8 bytes.");
            let mut scratch = Scratch::default();
            lb_common::sha256::load_block(&mut scratch, &[u64::from_le_bytes(*b"8 bytes.")], 8);
            lb_common::sha256::hmac(&ours, &mut scratch);
            let tag: Vec<u8> = scratch.state.iter().flat_map(|word| word.to_be_bytes()).collect();
            assert_eq!(tag, mac.finalize().into_bytes()[..]);
        }
    }
}

#[test]
fn headers_byte_for_byte() {
    let vectors = vectors();
    for token in &vectors.tokens {
        let name = &token.name;
        let key = &vectors.keys[token.key];
        let keys = derive(key);
        let grant = Grant {
            claims: Claims {
                service_id: token.service_id,
                class: token.class,
                backend_id: token.backend_id,
                session_id: u64::from_str_radix(&token.session_id, 16).unwrap(),
            },
            issued_at: token.issued_at,
            expires_at: token.expires_at,
            nonce: bytes(&token.nonce),
            bind: (token.bind_len != 0)
                .then(|| Prefix::new(token.client_addr.expect(name), token.bind_len).expect(name)),
            bind_port: (token.flags & 2 != 0).then(|| token.client_port.expect(name)),
        };
        let payload = token.payload.as_deref().map(|hex| hex::decode(hex).unwrap()).unwrap_or_default();
        let header = match token.r#type.as_str() {
            "bearer" => grant.bearer(KeyId(key.key_id), &keys),
            "proof" => {
                let proof = grant.proof(KeyId(key.key_id), &keys);
                assert_eq!(
                    hex::encode(proof.session_key().as_bytes()),
                    *token.session_key.as_ref().unwrap(),
                    "{name}"
                );
                assert_eq!(hex::encode(proof.claims()), token.claims, "{name}");
                proof.header(token.seq.unwrap(), token.ts_ms.unwrap(), &payload)
            }
            other => panic!("{name}: type {other}"),
        };
        assert_eq!(hex::encode(header.to_bytes()), token.header, "{name}");
        assert_eq!(header.flags(), token.flags, "{name}");
        assert_eq!(header.bind_len(), token.bind_len, "{name}");

        assert_eq!(keystream(keys.seal, words(&token.header)), words(&token.keystream), "{name}");
        let source = Source::new(
            token.client_addr.unwrap_or(core::net::Ipv4Addr::LOCALHOST.into()),
            token.client_port.unwrap_or(1),
        );
        let binding = header.binding(&source).expect(name);
        let assoc = [&binding.address.to_le_bytes()[..], &binding.port.to_le_bytes()].concat();
        assert_eq!(hex::encode(assoc), token.assoc, "{name}");

        let datagram = [&hex::decode(&token.header).unwrap()[..], &payload].concat();
        let now = (u64::from(token.issued_at) + 1) * 1_000_000_000;
        let found = verify(
            &datagram,
            &source,
            &service(token.service_id, token.expires_at - token.issued_at),
            |_| slot(key, token.service_id),
            now,
        );
        assert_eq!(found, Ok(grant.claims), "{name}");
    }
}

#[test]
fn rejected_with_their_reasons() {
    let vectors = vectors();
    assert!(!vectors.rejected.is_empty());
    for case in &vectors.rejected {
        assert_eq!(case.skew * 1_000_000_000, lb_common::control::SKEW_NS);
        let key = &vectors.keys[case.key];
        let found = verify(
            &hex::decode(&case.header).unwrap(),
            &Source::new(core::net::Ipv4Addr::LOCALHOST.into(), 1),
            &service(case.service_id, case.max_ttl),
            |index| {
                if index == KeyId(key.key_id).slot() {
                    slot(key, case.service_id)
                } else {
                    KeySlot::default()
                }
            },
            case.now * 1_000_000_000,
        );
        assert_eq!(found.map_err(Reason::name), Err(case.reason.as_str()), "{}", case.name);
    }
}

#[test]
fn a_wrong_proof_is_bad() {
    let vectors = vectors();
    let token = vectors.tokens.iter().find(|token| token.name == "proof, payload of 32 bytes").unwrap();
    let key = &vectors.keys[token.key];
    let payload = hex::decode(token.payload.as_ref().unwrap()).unwrap();
    let mut datagram = [hex::decode(&token.header).unwrap(), payload].concat();
    datagram[lb_common::token::header::LEN + 15] ^= 1;
    assert_eq!(Header::from_payload(&datagram).map(|header| header.kind()), Ok(Kind::Proof));
    let found = verify(
        &datagram,
        &Source::new(core::net::Ipv4Addr::LOCALHOST.into(), 1),
        &service(token.service_id, 3600),
        |_| slot(key, token.service_id),
        (u64::from(token.issued_at) + 1) * 1_000_000_000,
    );
    assert_eq!(found, Err(Reason::BadProof));
}
