//! The rows of PROOF tokens: a service that accepts them, and packets with sequence numbers and proofs.

use std::net::SocketAddr;

use lb_common::{
    backend::Backend,
    keyslot::KeyId,
    service::{ACCEPT_PROOF, Service},
    token::{
        Claims, Header,
        mint::{Grant, ProofToken},
    },
};
use lb_tests::model::{
    fixture::{self, Key},
    packet::Packet,
};

const NUMBER: u16 = 200;
/// The default grant is ten seconds old.
const NOW_MS: u32 = 10_000;

/// The packets of a session.
pub struct Proofs {
    token: ProofToken,
    next: u32,
}

/// Address and port of the service.
pub fn at() -> SocketAddr {
    let mut at = fixture::SERVICE;
    at.set_port(10_000 + NUMBER);
    at
}

/// The service.
pub fn service() -> Service {
    Service { id: 2000, index: NUMBER.into(), accept: ACCEPT_PROOF, flags: 0, ..fixture::service() }
}

/// The key of the service.
pub fn key() -> Key {
    Key::new([8; 32], KeyId::new(2000, 1).expect("in range"))
}

/// The backend of the service.
pub fn backend() -> Backend {
    Backend { service_index: NUMBER, counter: 300, ..fixture::backend(99) }
}

impl Proofs {
    /// Packets of a session with this id.
    pub fn of(session_id: u64) -> Self {
        let claims = Claims { service_id: service().id, session_id, ..fixture::grant().claims };
        let grant = Grant { claims, nonce: session_id.to_be_bytes(), ..fixture::grant() };
        Self { token: grant.proof(key().id, &key().derived), next: 0 }
    }

    /// The headers of its next packets, all with this payload.
    pub fn next(&mut self, count: u32, payload: &[u8]) -> Vec<Header> {
        let first = self.next;
        self.next += count;
        (first..self.next).map(|seq| self.token.header(seq, NOW_MS, payload)).collect()
    }

    /// The next packet of the session, with this payload after the token.
    pub fn packet(&mut self, payload: &[u8]) -> Packet {
        let header = self.next(1, payload)[0];
        with(&header, payload)
    }

    /// Like [`Proofs::packet`], with a proof as old as the token.
    pub fn stale_packet(&self, payload: &[u8]) -> Packet {
        with(&self.token.header(0, 0, payload), payload)
    }
}

fn with(header: &Header, payload: &[u8]) -> Packet {
    let mut packet = Packet { to: at(), ..Packet::default() };
    packet.payload = [&header.to_bytes()[..], payload].concat();
    packet
}
