//! State that tokens leave from one packet to the next: token cache, revocations, sequence numbers, limits.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    reason::Reason,
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    service::{FLAG_RATED, Service},
};

use super::{
    flow::{Flows, Use},
    token::{Keys, Sealed, Token},
};
use crate::model::fixture::{Fixture, HeldKey};

/// How long an unconfirmed clock admits new tokens.
const CLOCK_STALE_NS: u64 = 4000 * 1_000_000_000;
/// Maximum HMAC budget that accumulates.
const BUDGET_NS: u64 = 100_000_000;
/// Number of sequence numbers in the replay window, including the highest.
const REPLAY_WINDOW: i64 = 512;

/// The key of a token in the cache.
pub type TokenId = ([u8; 8], [u8; 8]);

/// The state of a program that runs on one CPU.
#[derive(Default)]
pub struct Sessions {
    derived: HashMap<([u8; 32], u32), Keys>,
    cache: HashMap<TokenId, Session>,
    flows: Flows,
    /// Number of HMACs that were computed.
    pub hmacs: u64,
    /// Cost of an HMAC, nanoseconds; 0: no cost.
    pub hmac_cost_ns: u64,
    budget: Bucket,
}

/// A token in the cache.
pub struct Session {
    claims: Vec<u8>,
    /// Its claims.
    pub sealed: Sealed,
    /// Its use.
    pub used: Use,
    key: [u8; 16],
    seen: HashSet<u32>,
    highest: u32,
    bucket: Bucket,
    sources: Vec<[u8; 8]>,
}

/// A token bucket in nanoseconds. It starts full.
#[derive(Default)]
struct Bucket {
    missing_ns: u64,
    filled_at: u64,
}

impl Bucket {
    /// Whether a bucket of this size holds enough tokens.
    const fn holds(&mut self, size_ns: u64, cost_ns: u64, now: u64) -> bool {
        self.missing_ns = self.missing_ns.saturating_sub(now.saturating_sub(self.filled_at));
        self.filled_at = now;
        self.missing_ns + cost_ns <= size_ns
    }

    const fn take(&mut self, cost_ns: u64) {
        self.missing_ns += cost_ns;
    }
}

impl Sessions {
    /// The session that owns a client of a service.
    pub fn of_client(&self, client: SocketAddr, service_index: u32) -> Option<Sealed> {
        self.flows.session((client, service_index))
    }

    /// Number of tokens in the cache.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Steps 2 to 9: the claims of a datagram that may pass at this time of the kernel's clock.
    pub fn admit(
        &mut self,
        fixture: &Fixture,
        service: &Service,
        datagram: &[u8],
        from: SocketAddr,
        kernel_ns: u64,
    ) -> Result<Sealed, Reason> {
        let token = Token::parse(datagram)?;
        token.allowed(service)?;
        let held = key(fixture, service, token.key_id())?;
        token.in_time(service, fixture.now_ns)?;
        let id = (held.master, held.slot.key_id);
        let keys = self.derived.entry(id).or_insert_with(|| Keys::derive(&held.master, held.slot.key_id));
        token.signed(keys, from)?;

        let remembered = self.cache.get(&token.id()).is_some_and(|session| session.claims == token.claims());
        if !remembered {
            if fixture.clock_age_ns > CLOCK_STALE_NS {
                return Err(Reason::StaleClock);
            }
            if !self.budget.holds(BUDGET_NS, self.hmac_cost_ns, kernel_ns) {
                return Err(Reason::HmacBudget);
            }
            self.budget.take(self.hmac_cost_ns);
            self.hmacs += 1;
            let sealed = token.admitted(keys, service, from)?;
            self.cache.insert(token.id(), Session::new(&token, keys, sealed));
        }
        let session = self.cache.get_mut(&token.id()).expect("it is in the cache now");

        let nonce = u64::from_le_bytes(token.id().1);
        for (kind, of) in [(REVOKED_SESSION, session.sealed.session_id), (REVOKED_TOKEN, nonce)] {
            let key = RevocationKey { service_id: service.id, kind, of };
            if fixture
                .revocations
                .iter()
                .any(|(revoked, until_ns)| *revoked == key && fixture.now_ns < *until_ns)
            {
                return Err(Reason::Revoked);
            }
        }
        if token.is_proof() {
            token.fresh(fixture.now_ns)?;
            token.proven(&session.key)?;
            session.first_time(token.seq())?;
        }
        session.within_limits(fixture, service, from.ip(), kernel_ns)?;
        let sealed = session.sealed;
        self.flows.passed(&mut self.cache, token.id(), (from, service.index), kernel_ns);
        Ok(sealed)
    }
}

/// Step 3: the key of a token.
fn key<'w>(fixture: &'w Fixture, service: &Service, key_id: u32) -> Result<&'w HeldKey, Reason> {
    let in_slot = fixture.keys.iter().find(|held| held.slot.key_id & 0xfff == key_id & 0xfff);
    let held = in_slot.filter(|held| held.slot.key_id == key_id && key_id != 0).ok_or(Reason::UnknownKey)?;
    let verifies = held.slot.state == 1
        && held.slot.service_id == service.id
        && (held.slot.not_before_ns..held.slot.not_after_ns).contains(&fixture.now_ns);
    if verifies { Ok(held) } else { Err(Reason::InactiveKey) }
}

impl Session {
    fn new(token: &Token, keys: &Keys, sealed: Sealed) -> Self {
        Self {
            claims: token.claims().to_vec(),
            sealed,
            used: Use::none(token),
            key: if token.is_proof() { token.session_key(keys) } else { [0; 16] },
            seen: HashSet::new(),
            highest: 0,
            bucket: Bucket::default(),
            sources: Vec::new(),
        }
    }

    /// The end of step 8.
    fn first_time(&mut self, seq: u32) -> Result<(), Reason> {
        let is_old = i64::from(seq) <= i64::from(self.highest) - REPLAY_WINDOW;
        if is_old || !self.seen.insert(seq) {
            return Err(Reason::Replay);
        }
        self.highest = self.highest.max(seq);
        Ok(())
    }

    /// Step 9: if one limit refuses a packet, the other one is not used up.
    fn within_limits(
        &mut self,
        fixture: &Fixture,
        service: &Service,
        from: IpAddr,
        kernel_ns: u64,
    ) -> Result<(), Reason> {
        let rated = service.flags & FLAG_RATED != 0;
        let rate = fixture.rates.iter().find(|rate| rated && rate.class == self.sealed.class);
        let cost_ns = rate.map_or(0, |rate| 1_000_000_000 / u64::from(rate.per_second));
        if rate.is_some_and(|rate| !self.bucket.holds(cost_ns * u64::from(rate.burst), cost_ns, kernel_ns)) {
            return Err(Reason::RateLimited);
        }
        let source = source(from);
        if service.max_sources != 0 && !self.sources.contains(&source) {
            if self.sources.len() >= usize::from(service.max_sources) {
                return Err(Reason::TooManySources);
            }
            self.sources.push(source);
        }
        self.bucket.take(cost_ns);
        Ok(())
    }
}

/// The unit that counts as one source: an IPv4 address, or the network of an IPv6 address.
fn source(from: IpAddr) -> [u8; 8] {
    let mut source = [0; 8];
    match from {
        IpAddr::V4(v4) => source[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => source.copy_from_slice(&v6.octets()[..8]),
    }
    source
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::{
        control::SECOND_NS,
        keyslot::KeyId,
        service::{ACCEPT_BEARER, ACCEPT_PROOF},
    };
    use serde_json::Value;

    use super::*;
    use crate::model::fixture::{self, Key};

    /// The vectors of token.md, from an implementation that shares no code with this one.
    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../../lb-common/vectors/token-v1.json")).unwrap()
    }

    fn number<T: TryFrom<u64>>(of: &Value) -> T {
        of.as_u64().unwrap().try_into().ok().unwrap()
    }

    fn bytes(of: &Value) -> Vec<u8> {
        hex::decode(of.as_str().unwrap_or("")).unwrap()
    }

    fn admit(
        vectors: &Value,
        case: &Value,
        max_ttl: u32,
        now: u64,
        from: SocketAddr,
    ) -> Result<Sealed, Reason> {
        let key = &vectors["keys"][number::<usize>(&case["key"])];
        let service_id = number(&case["service_id"]);
        let key = Key::new(bytes(&key["master"]).try_into().unwrap(), KeyId(number(&key["key_id"])));
        let mut held = key.held(service_id);
        // The oracle does not use the keys that the kernel verifies with.
        held.slot.fast = Default::default();
        held.slot.full = Default::default();
        let fixture = Fixture { now_ns: now * SECOND_NS, ..Fixture::with_key(held) };
        let accept = ACCEPT_BEARER | ACCEPT_PROOF;
        let service = Service { id: service_id, max_ttl, accept, ..fixture::service() };
        let datagram = [bytes(&case["header"]), bytes(&case["payload"])].concat();
        Sessions::default().admit(&fixture, &service, &datagram, from, 0)
    }

    #[test]
    fn tokens() {
        let vectors = vectors();
        for token in vectors["tokens"].as_array().unwrap() {
            let address = token["client_addr"].as_str().map(|address| address.parse().unwrap());
            let port = token["client_port"].as_u64().unwrap_or(1) as u16;
            let from = SocketAddr::new(address.unwrap_or(Ipv4Addr::LOCALHOST.into()), port);
            let issued_at: u64 = number(&token["issued_at"]);
            let ttl = number::<u64>(&token["expires_at"]) - issued_at;
            let sealed = Sealed {
                service_id: number(&token["service_id"]),
                class: number(&token["class"]),
                backend_id: number(&token["backend_id"]),
                session_id: u64::from_str_radix(token["session_id"].as_str().unwrap(), 16).unwrap(),
            };
            let found = admit(&vectors, token, ttl as u32, issued_at + 1, from);
            // One proof is made 49 days after its token, and is correct nevertheless.
            let made_at = token["ts_ms"].as_u64().unwrap_or(1000) / 1000;
            let expected = if made_at > ttl { Err(Reason::StaleProof) } else { Ok(sealed) };
            assert_eq!(found, expected, "{}", token["name"]);
            if token["type"] == "proof" {
                let session_key = bytes(&token["session_key"]).try_into().unwrap();
                let datagram = [bytes(&token["header"]), bytes(&token["payload"])].concat();
                assert_eq!(
                    Token::parse(&datagram).unwrap().proven(&session_key),
                    Ok(()),
                    "{}",
                    token["name"]
                );
            }
        }
    }

    #[test]
    fn rejected() {
        let vectors = vectors();
        for case in vectors["rejected"].as_array().unwrap() {
            let from = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
            let found = admit(&vectors, case, number(&case["max_ttl"]), number(&case["now"]), from);
            assert_eq!(
                found.map_err(Reason::name),
                Err(case["reason"].as_str().unwrap()),
                "{}",
                case["name"]
            );
        }
    }
}
