//! The test vectors of token.md, written by an independent implementation, run through the program.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use lb_common::{
    backend::Backend,
    control::SECOND_NS,
    keyslot::KeyId,
    reason::Reason,
    service::{ACCEPT_BEARER, ACCEPT_PROOF, Service},
};
use lb_tests::model::{
    case::Case,
    fixture::{self, Fixture, Key, SERVICE_INDEX},
    packet::{Family, Packet},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    keys: Vec<MasterKey>,
    tokens: Vec<Token>,
    rejected: Vec<Rejected>,
}

#[derive(Deserialize)]
struct MasterKey {
    master: String,
    key_id: u32,
}

#[derive(Deserialize)]
struct Token {
    name: String,
    key: usize,
    r#type: String,
    client_addr: Option<IpAddr>,
    client_port: Option<u16>,
    service_id: u32,
    session_id: String,
    backend_id: u16,
    issued_at: u32,
    expires_at: u32,
    header: String,
    payload: Option<String>,
    ts_ms: Option<u32>,
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
}

fn vectors() -> Result<Vectors> {
    Ok(serde_json::from_str(include_str!("../../../lb-common/vectors/token-v1.json"))?)
}

impl Vectors {
    /// One service with the key of this vector, which accepts BEARER and PROOF.
    fn fixture(&self, key: usize, service_id: u32, max_ttl: u32, now_ns: u64) -> Result<Fixture> {
        let MasterKey { master, key_id } = &self.keys[key];
        let master = <[u8; 32]>::try_from(hex::decode(master)?).ok().context("32 bytes")?;
        let accept = ACCEPT_BEARER | ACCEPT_PROOF;
        Ok(Fixture {
            now_ns,
            keys: vec![Key::new(master, KeyId(*key_id)).held(service_id)],
            ..Fixture::with_service(Service { id: service_id, max_ttl, accept, ..fixture::service() })
        })
    }
}

#[test]
fn tokens() -> Result<()> {
    let vectors = vectors()?;
    let cases: Vec<Case> =
        vectors.tokens.iter().map(|token| token_case(&vectors, token)).collect::<Result<_>>()?;
    let forwarded = cases.iter().filter(|case| case.expected.reason == Reason::Forwarded).count();
    assert_eq!((cases.len(), forwarded), (12, 11), "the vectors have changed");
    crate::check_each(&cases)
}

fn token_case(vectors: &Vectors, token: &Token) -> Result<Case> {
    let Token { key, service_id, issued_at, expires_at, backend_id, .. } = *token;
    let now_ns = u64::from(issued_at + 1) * SECOND_NS;
    let mut fixture = vectors.fixture(key, service_id, expires_at - issued_at, now_ns)?;
    let pinned = Backend { backend_id, counter: 999, ..fixture::backend(200) };
    if backend_id != 0 {
        fixture.backends.push(pinned);
    }
    let payload = token.payload.as_deref().unwrap_or("");
    let mut packet = Packet::with_payload(hex::decode(token.header.clone() + payload)?);
    if let Some(address) = token.client_addr {
        packet = packet.over(Family::of(address));
        packet.from.set_ip(address);
    }
    packet.from.set_port(token.client_port.unwrap_or(packet.from.port()));

    let refused = |reason| Case::refused(&token.name, fixture.clone(), &packet, reason);
    Ok(match token.r#type.as_str() {
        // Made 49 days after its token was issued, which is valid for five minutes: its numbers are the largest
        // possible.
        "proof" if token.ts_ms == Some(u32::MAX) => refused(Reason::StaleProof),
        "bearer" | "proof" => {
            let session = u64::from_str_radix(&token.session_id, 16)?;
            let backend = if backend_id == 0 { fixture.picked(session) } else { pinned };
            let sent = packet.clone().stripped();
            Case::sent(&token.name, fixture.clone(), &packet, &sent, &backend, Reason::Forwarded)
        }
        other => bail!("{}: type {other}", token.name),
    })
}

#[test]
fn rejected() -> Result<()> {
    let vectors = vectors()?;
    let case = |rejected: &Rejected| {
        let Rejected { name, reason, header, key, now, service_id, max_ttl } = rejected;
        let fixture = vectors.fixture(*key, *service_id, *max_ttl, now * SECOND_NS)?;
        let packet = Packet::with_payload(hex::decode(header)?);
        let reason = Reason::ALL.iter().find(|known| known.name() == reason).context("a reason")?;
        Ok(Case::refused(name, fixture, &packet, *reason))
    };
    let cases: Vec<Case> = vectors.rejected.iter().map(case).collect::<Result<_>>()?;
    assert_eq!(cases.len(), 29, "the vectors have changed");
    assert!(cases.iter().all(|case| case.expected.service == SERVICE_INDEX));
    crate::check_each(&cases)
}
