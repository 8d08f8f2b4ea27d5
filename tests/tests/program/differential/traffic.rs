//! Packets as clients and attackers send them, with a fixture that changes.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    backend::Backend,
    control::SECOND_NS,
    keyslot::{KeyId, STATE_OFF, STATE_VERIFY},
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    service::{ACCEPT_PROOF, BIND_REQUIRED, FLAG_RATED, Service},
    sha256::Scratch,
    token::{
        Claims, Header,
        header::LEN,
        mint::{Grant, Prefix, ProofToken},
        tags,
    },
};
use lb_tests::model::{
    fixture::{self, ClassRate, Fixture, Key, NOW, SERVICE, SERVICE_ID},
    packet::{Family, Icmp, Packet, UdpChecksum},
};

/// Distance of the clock from a full millisecond, so that it crosses no boundary while packets run.
pub const OFF_EDGES_NS: u64 = 100_000;
/// Number of tokens in use.
const POOL: usize = 1500;
/// Number of frames that may be repeated.
const HISTORY: usize = 4096;
/// The second service, which accepts only PROOF tokens that are bound.
const STRICT: u32 = SERVICE_ID + 1;
/// Length of a tick at which the kernel's clock has advanced more than an hour before now.
const FIRST_TICK_NS: u64 = 1000;

/// The generator of packets.
pub struct Traffic {
    random: fastrand::Rng,
    fixture: Fixture,
    keys: Vec<(u32, Key)>,
    pool: Vec<Issued>,
    history: Vec<Vec<u8>>,
    issued: u64,
}

/// A token, and how its client uses it.
struct Issued {
    token: Token,
    issued_at: u32,
    from: SocketAddr,
    to: SocketAddr,
    next_seq: u32,
    revocations: [RevocationKey; 2],
}

enum Token {
    Bearer(Header),
    Proof(ProofToken),
}

impl Traffic {
    /// The same packets for the same seed.
    pub fn new(seed: u64) -> Self {
        let key =
            |slot, generation, byte| Key::new([byte; 32], KeyId::new(slot, generation).expect("in range"));
        let keys = vec![
            (SERVICE_ID, key(9, 5, 1)),
            (SERVICE_ID, key(10, 6, 2)),
            (STRICT, key(11, 7, 3)),
            (SERVICE_ID, key(12, 8, 4)),
        ];
        let service = fixture::proving();
        let limited = Service { flags: service.flags | FLAG_RATED, max_sources: 3, ..service };
        let strict = Service {
            id: STRICT,
            index: 4,
            accept: ACCEPT_PROOF,
            bind: BIND_REQUIRED,
            max_ttl: 60,
            ..service
        };
        let mut services = fixture::at_both(limited);
        services.extend(Family::BOTH.map(|family| (strict_at(family), strict)));
        let backends = (1..=3).map(fixture::backend);
        let backends = backends.chain([Backend { service_index: 4, counter: 200, ..fixture::backend(9) }]);
        let rate = |class, burst| ClassRate { class, per_second: 1, burst };
        let fixture = Fixture {
            now_ns: u64::from(NOW) * SECOND_NS + OFF_EDGES_NS,
            tick_ns: FIRST_TICK_NS,
            services,
            keys: keys.iter().map(|(service, key)| key.held(*service)).collect(),
            backends: backends.collect(),
            rates: vec![rate(1, 3), rate(2, 4)],
            ..Fixture::default()
        };
        let random = fastrand::Rng::with_seed(seed);
        Self { random, fixture, keys, pool: vec![], history: vec![], issued: seed << 32 }
    }

    /// The fixture for the next packets.
    pub const fn fixture(&self) -> &Fixture {
        &self.fixture
    }

    /// Advances by some seconds.
    pub fn go_on(&mut self) {
        self.fixture.now_ns += self.random.u64(..3) * SECOND_NS + self.random.u64(..1000) * 1_000_000;
        // The kernel's clock advances by more than four seconds: all rates have recovered.
        self.fixture.tick_ns += 1;
        self.fixture.clock_age_ns = if self.random.u8(..8) == 0 { 4001 } else { 3999 } * SECOND_NS;
        let state = if self.random.bool() { STATE_VERIFY } else { STATE_OFF };
        self.fixture.keys[1].slot.state = state;
        let until = self.fixture.now_ns - self.fixture.now_ns % SECOND_NS + self.random.u64(..4) * SECOND_NS;
        let chosen = (0..20.min(self.pool.len())).map(|_| self.random.usize(..self.pool.len()));
        let chosen: Vec<usize> = chosen.collect();
        self.fixture.revocations =
            chosen.into_iter().map(|at| (self.pool[at].revocations[at % 2], until)).collect();
    }

    /// The next packet, and its kind.
    pub fn packet(&mut self) -> (&'static str, Vec<u8>) {
        if self.pool.len() < 100 || self.random.u8(..20) == 0 {
            let issued = self.issue();
            if self.pool.len() < POOL {
                self.pool.push(issued);
            } else {
                let place = self.random.usize(..POOL);
                self.pool[place] = issued;
            }
        }
        let (what, frame) = self.made();
        if self.history.len() < HISTORY {
            self.history.push(frame.clone());
        } else {
            let place = self.random.usize(..HISTORY);
            self.history[place] = frame.clone();
        }
        (what, frame)
    }

    fn made(&mut self) -> (&'static str, Vec<u8>) {
        let mut packet = self.sent();
        let what = match self.random.u8(..27) {
            0..=9 => "as its client sends it",
            10 => {
                for _ in 0..=self.random.usize(..2) {
                    self.flip(&mut packet, 0..LEN);
                }
                "bits of the header flipped"
            }
            11 => {
                self.flip(&mut packet, 40..LEN + 20);
                "a bit flipped in tags or payload"
            }
            12 | 13 => {
                let other = self.sent().payload;
                let edges = [0, 8, 16, 24, 40, 48, 52, 56, LEN];
                let (a, b) = (edges[self.random.usize(..9)], edges[self.random.usize(..9)]);
                let (from, to) = (a.min(b), a.max(b));
                packet.payload[from..to].copy_from_slice(&other[from..to]);
                "two tokens spliced"
            }
            14 | 15 if !self.history.is_empty() => {
                let place = self.random.usize(..self.history.len());
                return ("replayed", self.history[place].clone());
            }
            16 => {
                packet.payload[1] ^= 3;
                "of the other type"
            }
            17 => {
                self.random.fill(&mut packet.payload[48..LEN]);
                "the last 16 bytes at random"
            }
            18 => {
                let family = self.family();
                packet.from.set_ip(self.address(family));
                if packet.family() != family {
                    packet.to = SocketAddr::new(
                        if family == Family::V4 { SERVICE.ip() } else { family.twin(SERVICE.ip()) },
                        packet.to.port(),
                    );
                }
                "from another address"
            }
            19 => {
                packet.from.set_port(self.random.u16(1024..));
                "from another port"
            }
            20 => {
                packet.to.set_port(if packet.to.port() == SERVICE.port() {
                    STRICT_PORT
                } else {
                    SERVICE.port()
                });
                "to the other service"
            }
            21 => {
                let len = self.random.usize(..packet.payload.len() + 1);
                packet.payload.truncate(len);
                "cut off"
            }
            22 => {
                packet.payload.extend([0; 3]);
                "longer"
            }
            25 => {
                packet.udp_checksum = UdpChecksum::Partial;
                "its checksum left to a network card"
            }
            24 => {
                packet = self.error();
                "an ICMP error"
            }
            23 => {
                let [a, b] = [self.random.u8(..), self.random.u8(..)];
                packet.destination_mac =
                    [[2, 0, 0, 0, a, b], [1, 0, 0x5e, 0, a, b], [0xff; 6]][self.random.usize(..3)];
                "for another station, or for all"
            }
            _ => {
                self.resign(&mut packet);
                "by a holder of the keys who forges"
            }
        };
        (what, packet.bytes())
    }

    /// An ICMP error about an answer to a token's client.
    fn error(&mut self) -> Packet {
        let place = self.random.usize(..self.pool.len());
        let Issued { from, to, .. } = self.pool[place];
        let answer = Packet { from: to, to: from, ..Packet::with_payload(b"answer".to_vec()) };
        let kind = if to.is_ipv4() { 3 } else { 1 };
        let message = Icmp { kind, code: 1, rest: [0; 4] };
        Packet::icmp_error(message, &answer.ip_packet(), usize::MAX).over(Family::of(to.ip()))
    }

    fn flip(&mut self, packet: &mut Packet, bytes: std::ops::Range<usize>) {
        let at = self.random.usize(bytes.start..bytes.end.min(packet.payload.len()));
        packet.payload[at] ^= 1 << self.random.u8(..8);
    }

    /// A packet of a token in use, as its client would make it: mostly with the next number and the right time.
    fn sent(&mut self) -> Packet {
        let place = self.random.usize(..self.pool.len());
        let len = [0, 1, 15, 16, 17, 40][self.random.usize(..6)];
        let data: Vec<u8> = std::iter::repeat_with(|| self.random.u8(..)).take(len).collect();
        let (number, jump) = (self.random.u8(..16), self.random.u32(..1200));
        let late_ms = match self.random.u8(..40) {
            0 => 5000,
            1 => 5001,
            2 => -4999,
            3 => -5000,
            4 => self.random.i64(-20_000..20_000),
            _ => self.random.i64(-100..100),
        };
        let issued = &mut self.pool[place];
        let header = match &issued.token {
            Token::Bearer(header) => *header,
            Token::Proof(token) => {
                let seq = match number {
                    0 => issued.next_seq.saturating_sub(jump),
                    1 => issued.next_seq.saturating_add(jump),
                    2 => issued.next_seq.saturating_add(jump % 8),
                    3 if jump < 4 => u32::MAX - jump,
                    _ => issued.next_seq,
                };
                issued.next_seq = issued.next_seq.max(seq.saturating_add(1));
                let now_ms = (self.fixture.now_ns / 1_000_000) as i64;
                let ts_ms = now_ms - late_ms - i64::from(issued.issued_at) * 1000;
                token.header(seq, ts_ms as u32, &data)
            }
        };
        Packet {
            from: issued.from,
            to: issued.to,
            ..Packet::with_payload([&header.to_bytes()[..], &data].concat())
        }
    }

    /// A token of a random type, key and binding, sometimes with times at the limit or beyond it.
    fn issue(&mut self) -> Issued {
        self.issued += 1;
        let (service_id, key) = self.keys[[0, 0, 0, 1, 2, 2, 3][self.random.usize(..7)]].clone();
        let service_id = if self.random.u8(..60) == 0 { service_id ^ 1 } else { service_id };
        let family = self.family();
        // Sometimes the client of another session.
        let place = self.random.usize(..4 * self.pool.len().max(1));
        let other =
            self.pool.get(place).map(|issued| issued.from).filter(|from| Family::of(from.ip()) == family);
        let from = match other {
            Some(from) => from,
            None => SocketAddr::new(self.address(family), self.random.u16(1024..)),
        };
        let to = if key.id.slot() == 11 { strict_at(family) } else { family.twin_at(SERVICE) };
        let now = (self.fixture.now_ns / SECOND_NS) as u32;
        let issued_at = now.saturating_add_signed([-20, -10, -1, 0, 0, 2, 3][self.random.usize(..7)]);
        let ttl = [50, 59, 60, 60, 61, 300, 3600, 3601][self.random.usize(..8)];
        let expires_at = match self.random.u8(..20) {
            0 => now - 2,
            1 => now - 1,
            2 => issued_at - 1,
            _ => issued_at + ttl,
        };
        let bound_to_address = to.port() == STRICT_PORT || self.random.bool();
        let len = self.random.u8(1..=Prefix::longest(from.ip()));
        let claims = Claims {
            service_id,
            class: self.random.u8(..4),
            backend_id: [0, 0, 0, 1, 3, 9][self.random.usize(..6)],
            session_id: self.issued,
        };
        let nonce = self.random.u64(..).to_le_bytes();
        let grant = Grant {
            claims,
            issued_at,
            expires_at,
            nonce,
            bind: bound_to_address.then(|| Prefix::new(from.ip(), len).expect("in range")),
            bind_port: (self.random.u8(..3) == 0).then_some(from.port()),
        };
        let is_proof = to.port() == STRICT_PORT && self.random.u8(..20) != 0 || self.random.bool();
        let token =
            if is_proof { Token::Proof(key.proof(&grant)) } else { Token::Bearer(key.bearer(&grant)) };
        let revocation = |kind, of| RevocationKey { service_id: key_service(&key), kind, of };
        let revocations = [
            revocation(REVOKED_SESSION, claims.session_id),
            revocation(REVOKED_TOKEN, u64::from_le_bytes(nonce)),
        ];
        Issued { token, issued_at, from, to, next_seq: self.random.u32(..600), revocations }
    }

    /// Recomputes the tags of a BEARER token over claims that no issuer creates.
    fn resign(&mut self, packet: &mut Packet) {
        let (words, _) = packet.payload.as_chunks::<8>();
        let Some(words) = words.first_chunk::<8>() else { return };
        let header = Header::from_verified(words.map(u64::from_le_bytes));
        let Some((_, key)) = self.keys.iter().find(|(_, key)| key.id == header.key_id()) else { return };
        let source = lb_common::token::Source::new(packet.from.ip(), packet.from.port());
        let binding = header.binding(&source).unwrap_or_default();
        let mut claims = header.claims();
        let mut full = None;
        match self.random.u8(..4) {
            0 => claims[3] ^= 1 << 40,
            1 => claims[3] ^= 1 << self.random.u32(..32),
            2 => full = Some([self.random.u64(..), 7]),
            _ => claims[1] ^= 1 << self.random.u32(..64),
        }
        let [f, g] =
            full.unwrap_or_else(|| tags::full(&key.derived.full, claims, &binding, &mut Scratch::default()));
        let [a, b, c, d, e] = claims;
        let fast = tags::fast(key.derived.fast, &Header::from_verified([a, b, c, d, e, 0, f, g]), &binding);
        packet.payload[..LEN].copy_from_slice(&Header::from_verified([a, b, c, d, e, fast, f, g]).to_bytes());
    }

    fn family(&mut self) -> Family {
        Family::BOTH[self.random.usize(..2)]
    }

    fn address(&mut self, family: Family) -> IpAddr {
        let bytes = [198, 18, self.random.u8(..), self.random.u8(..)];
        family.twin(IpAddr::from(bytes))
    }
}

const STRICT_PORT: u16 = SERVICE.port() + 1;

fn strict_at(family: Family) -> SocketAddr {
    SocketAddr::new(family.twin(SERVICE.ip()), STRICT_PORT)
}

const fn key_service(key: &Key) -> u32 {
    if key.id.slot() == 11 { STRICT } else { SERVICE_ID }
}
