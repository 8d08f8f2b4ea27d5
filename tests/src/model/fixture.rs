//! The state of the program before a packet arrives: time, services, keys, backends. The default is one service with
//! one key and three backends on the segment. This module also makes a token for it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use lb_common::{
    backend::{Backend, TAGS_KEPT},
    balance::{MaglevTable, TABLE_LEN, TABLE_ROOM},
    control::SECOND_NS,
    keyslot::{KeyId, KeySlot, STATE_VERIFY},
    mac::{Mac, MacEntry},
    nat::{Ports, Translation, TranslationKey},
    rate::{CLASSES, Rate, RateTable},
    revocation::RevocationKey,
    service::{ACCEPT_BEARER, ACCEPT_PROOF, FLAG_RATED, FLAG_STRIP, FORWARD_L2, Service, ServiceKey},
    session::Admission,
    token::{
        Claims, Header,
        keys::{DerivedKeys, MasterKey},
        mint::{Grant, ProofToken},
    },
};
use tollgate::datapath::Snapshot;

use crate::model::packet::Family;

/// The IPv4 address of the default service; its IPv6 address is the twin of this one.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)), 7777);
/// The default client.
pub const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 23)), 40_000);
/// A router that sends ICMP errors.
pub const ICMP_ROUTER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 66)), 0);
/// The network card under test.
pub const BALANCER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The source of packets.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
/// Id of the default service.
pub const SERVICE_ID: u32 = 42;
/// Index of the default service. An index that was not set would be 0.
pub const SERVICE_INDEX: u32 = 3;
/// The default time, unix seconds.
pub const NOW: u32 = 1_700_000_010;
/// The interface of test runs that name none: loopback.
pub const LOOPBACK: u32 = 1;
/// An interface that frames can be sent out of.
pub const OTHER_INTERFACE: u32 = 7;
/// The ports of this node that stand for clients of `forward = "nat"`.
pub const NAT_PORTS: Ports = Ports { first: 40_000, last: 40_099 };
/// The default session.
pub const SESSION: u64 = 0x1122_3344_5566_7788;

/// The state that the program is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixture {
    /// Unix nanoseconds.
    pub now_ns: u64,
    /// The length of a kernel tick for the program, nanoseconds. At 0, the program's clock stays at 0. At a few
    /// nanoseconds, the clock is this multiple of the ticks since boot, which are more than 4 × 10⁹, and hardly
    /// advances.
    pub tick_ns: u64,
    /// How long ago the clock was confirmed, nanoseconds.
    pub clock_age_ns: u64,
    /// Services and their addresses.
    pub services: Vec<(SocketAddr, Service)>,
    /// The destination MAC addresses that interfaces accept, and the action for frames with other addresses.
    pub macs: BTreeSet<MacEntry>,
    /// Keys, each for the slot that its id contains.
    pub keys: Vec<HeldKey>,
    /// Revocations by name, each with its end in unix nanoseconds.
    pub revocations: Vec<(RevocationKey, u64)>,
    /// The classes that have a rate, in services with `FLAG_RATED`.
    pub rates: Vec<ClassRate>,
    /// Backends, by index.
    pub backends: Vec<Backend>,
    /// Interfaces that frames may be sent out of.
    pub egress: Vec<u32>,
    /// Flow entries: client, index of the service, and session.
    pub flows: Vec<(SocketAddr, u32, Admission)>,
    /// NAT translations.
    pub translations: Vec<(TranslationKey, Translation)>,
    /// The value at every position of the Maglev tables: the index of a backend plus one. `None`: the backends of the
    /// service alternate.
    pub maglev: Option<u16>,
    /// The number of generations of tables that the daemon has started to write since the current one.
    pub generations_begun: u32,
}

impl Default for Fixture {
    fn default() -> Self {
        Self {
            now_ns: u64::from(NOW) * SECOND_NS,
            tick_ns: 0,
            clock_age_ns: 0,
            services: at_both(service()),
            macs: accepting(&[BALANCER_MAC], false),
            keys: vec![key().held(SERVICE_ID)],
            revocations: vec![],
            rates: vec![],
            backends: (1..=3).map(backend).collect(),
            egress: vec![OTHER_INTERFACE],
            flows: vec![],
            translations: vec![],
            maglev: None,
            generations_begun: 0,
        }
    }
}

impl Fixture {
    /// The default fixture with this service instead of the default one, at its addresses.
    pub fn with_service(service: Service) -> Self {
        Self { services: at_both(service), ..Self::default() }
    }

    /// The default fixture with this one key.
    pub fn with_key(key: HeldKey) -> Self {
        Self { keys: vec![key], ..Self::default() }
    }

    /// The default fixture at another time, unix nanoseconds.
    pub fn at(now_ns: u64) -> Self {
        Self { now_ns, ..Self::default() }
    }

    /// The same fixture with interfaces in generic mode.
    pub fn in_generic_mode(mut self) -> Self {
        let on = |entry: MacEntry| MacEntry { generic: u16::from(entry.mac == Mac::OTHERS), ..entry };
        self.macs = self.macs.into_iter().map(on).collect();
        self
    }

    /// The same fixture for a repeated test run: from the second run on, the frame is the one that the previous run
    /// sent to a backend.
    pub fn repeated(mut self) -> Self {
        let entry = |backend: &Backend| MacEntry {
            mac: Mac::new(backend.destination_mac),
            ifindex: LOOPBACK,
            passes: 0,
            generic: 0,
        };
        self.macs.extend(self.backends.iter().map(entry));
        self
    }

    /// The indices of the backends of a service.
    pub fn backend_indices(&self, service_index: u32) -> Vec<u16> {
        let indexed = self.backends.iter().zip(0..);
        indexed
            .filter(|(backend, _)| u32::from(backend.service_index) == service_index)
            .map(|(_, at)| at)
            .collect()
    }

    /// The value at a position of a service's Maglev table.
    pub fn maglev_at(&self, service_index: u32, position: usize) -> u16 {
        self.maglev.unwrap_or_else(|| match &self.backend_indices(service_index)[..] {
            [] => 0,
            indices => indices[position % indices.len()] + 1,
        })
    }

    /// Whether services, MAC addresses, rates and backends are the same.
    pub fn same_tables(&self, other: &Self) -> bool {
        self.services == other.services
            && self.macs == other.macs
            && self.rates == other.rates
            && self.backends == other.backends
            && self.maglev == other.maglev
    }

    /// Services, MAC addresses, rates and backends as the daemon publishes them.
    pub fn snapshot(&self) -> Snapshot {
        let table = |service: &Service| {
            let mut table: Box<MaglevTable> = Box::new([0; TABLE_ROOM]);
            for (position, index) in table.iter_mut().enumerate().take(TABLE_LEN) {
                *index = self.maglev_at(service.index, position);
            }
            (service.index, table)
        };
        let rated = self.services.iter().filter(|(_, service)| service.flags & FLAG_RATED != 0);
        let key = |at: &SocketAddr| ServiceKey {
            address_be: address_be(at.ip()),
            port_be: at.port().to_be().into(),
        };
        Snapshot {
            services: self.services.iter().map(|(at, service)| (key(at), *service)).collect(),
            macs: self.macs.clone(),
            rates: rated.map(|(_, service)| (service.index, self.rate_table())).collect(),
            maglev: self.services.iter().map(|(_, service)| table(service)).collect(),
            backends: self.backends.clone(),
        }
    }

    fn rate_table(&self) -> Box<RateTable> {
        let mut table = Box::new([Rate::default(); CLASSES]);
        for ClassRate { class, per_second, burst } in &self.rates {
            table[usize::from(*class)] = Rate::new(*per_second, *burst);
        }
        table
    }

    /// The backend that a hash selects for the default service.
    pub fn picked(&self, hashed: u64) -> Backend {
        let position = lb_common::balance::position(hashed) as usize;
        self.backends[usize::from(self.maglev_at(SERVICE_INDEX, position)) - 1]
    }
}

/// The interface of test runs accepts these addresses; if `switched`, frames for other addresses are passed on.
pub fn accepting(macs: &[[u8; 6]], switched: bool) -> BTreeSet<MacEntry> {
    accepting_on(LOOPBACK, macs, switched)
}

/// Like [`accepting`], for any interface.
pub fn accepting_on(ifindex: u32, macs: &[[u8; 6]], switched: bool) -> BTreeSet<MacEntry> {
    let entry = |mac, passes| MacEntry { mac, ifindex, passes, generic: 0 };
    let own = macs.iter().map(|octets| entry(Mac::new(*octets), 0));
    own.chain([entry(Mac::OTHERS, switched.into())]).collect()
}

/// A service at the default service's addresses of both families.
pub fn at_both(service: Service) -> Vec<(SocketAddr, Service)> {
    Family::BOTH.map(|family| (family.twin_at(SERVICE), service)).to_vec()
}

/// An address as maps contain it.
pub fn address_be(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

/// The default service: BEARER tokens of at most an hour, strip, l2.
pub fn service() -> Service {
    Service {
        id: SERVICE_ID,
        index: SERVICE_INDEX,
        max_ttl: 3600,
        accept: ACCEPT_BEARER,
        forward: FORWARD_L2,
        flags: FLAG_STRIP,
        ..Service::default()
    }
}

/// The default service, which also accepts PROOF tokens.
pub fn proving() -> Service {
    Service { accept: ACCEPT_BEARER | ACCEPT_PROOF, ..service() }
}

/// The default service's backend with this id, behind loopback.
pub fn backend(id: u8) -> Backend {
    Backend {
        service_index: SERVICE_INDEX as u16,
        backend_id: id.into(),
        counter: 100 + u32::from(id),
        ifindex: LOOPBACK,
        destination_mac: [0x02, 0, 0, 0, 0x0a, id],
        source_mac: BALANCER_MAC,
        tag_count: TAGS_KEPT,
        mtu: 1500,
        ..Backend::default()
    }
}

/// The default service's backend with this id, with an address of this family.
pub fn backend_at(id: u8, family: Family) -> Backend {
    let address = |last: u8| address_be(family.twin(Ipv4Addr::new(10, 9, last, id).into()));
    Backend {
        v6: u8::from(family == Family::V6),
        address_be: address(1),
        source_be: address(2),
        port_be: 9000_u16.to_be(),
        ..backend(id)
    }
}

/// A fixture whose default service forwards to one backend in this mode.
pub fn sending(forward: u8, flags: u8, backend: Backend) -> Fixture {
    Fixture { backends: vec![backend], ..Fixture::with_service(Service { forward, flags, ..service() }) }
}

/// A rate limit for the sessions of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassRate {
    /// The class it is for.
    pub class: u8,
    /// Packets per second.
    pub per_second: u32,
    /// Burst, in packets.
    pub burst: u32,
}

/// A key slot of the kernel, and the master key that it was derived from: the oracle derives its own keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKey {
    /// The key slot.
    pub slot: KeySlot,
    /// The master key.
    pub master: [u8; 32],
}

/// A key on the issuer's side.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// The master key.
    pub master: [u8; 32],
    /// The keys derived from the master key.
    pub derived: DerivedKeys,
}

/// The default key.
pub fn key() -> Key {
    Key::new([7; 32], key_id())
}

/// Id of the default key.
pub const fn key_id() -> KeyId {
    KeyId::new(5, 9).expect("in range")
}

impl Key {
    /// Derives a key from a master key.
    pub fn new(master: [u8; 32], id: KeyId) -> Self {
        Self { id, master, derived: DerivedKeys::derive(&MasterKey::from_bytes(master), id) }
    }

    /// As an entry of a fixture: it verifies tokens of this service at all times.
    pub fn held(&self, service_id: u32) -> HeldKey {
        HeldKey { slot: self.slot(service_id), master: self.master }
    }

    /// As a key slot that verifies tokens of this service at all times.
    pub fn slot(&self, service_id: u32) -> KeySlot {
        KeySlot {
            key_id: self.id.0,
            state: STATE_VERIFY,
            service_id,
            reserved: 0,
            not_before_ns: 0,
            not_after_ns: u64::MAX,
            fast: self.derived.fast,
            seal: self.derived.seal,
            full: self.derived.full,
            proof: self.derived.proof,
        }
    }

    /// A PROOF token, as its client receives it.
    pub fn proof(&self, grant: &Grant) -> ProofToken {
        grant.proof(self.id, &self.derived)
    }

    /// A BEARER token.
    pub fn bearer(&self, grant: &Grant) -> Header {
        grant.bearer(self.id, &self.derived)
    }

    /// A BEARER token with the claims of this header after `damage` has changed them; both tags are correct.
    pub fn resign(&self, header: &Header, damage: impl FnOnce(&mut [u64; 5])) -> Header {
        use lb_common::{sha256::Scratch, token::tags};
        let mut claims = header.claims();
        damage(&mut claims);
        let [a, b, c, d, e] = claims;
        let binding = lb_common::token::header::Binding::default();
        let [f, g] = tags::full(&self.derived.full, claims, &binding, &mut Scratch::default());
        let fast = tags::fast(self.derived.fast, &Header::from_verified([a, b, c, d, e, 0, f, g]), &binding);
        Header::from_verified([a, b, c, d, e, fast, f, g])
    }
}

/// The grant of the default token: valid for five minutes, issued ten seconds ago, without binding.
pub fn grant() -> Grant {
    Grant {
        claims: Claims { service_id: SERVICE_ID, class: 1, backend_id: 0, session_id: SESSION },
        issued_at: NOW - 10,
        expires_at: NOW + 290,
        nonce: *b"a nonce!",
        bind: None,
        bind_port: None,
    }
}

/// The default token.
pub fn token() -> Header {
    key().bearer(&grant())
}

/// The grant with this number, which has its own nonce and session.
pub fn grant_number(number: u64) -> Grant {
    let claims = Claims { session_id: number, ..grant().claims };
    Grant { claims, nonce: number.to_be_bytes(), ..grant() }
}

/// A token with its own nonce and session.
pub fn token_number(number: u64) -> Header {
    key().bearer(&grant_number(number))
}

/// A PROOF token with its own nonce and session.
pub fn proof_number(number: u64) -> ProofToken {
    key().proof(&grant_number(number))
}
