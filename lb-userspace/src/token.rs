//! What issuers and operators do with a token: mint one, and see what is in one.

use std::net::IpAddr;

use lb_common::{
    keyslot::{KeyId, KeySlot},
    live::SECOND_NS,
    reason::Reason,
    service::{ACCEPT_BEARER, ACCEPT_PROOF, Service},
    token::{
        Claims, Header, Kind, Source, header,
        keys::{DerivedKeys, MasterKey},
        mint::{Grant, Prefix, PrefixLength},
        tags,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    api::messages::{MintRequest, Minted, TokenKind},
    config::{self, Bind},
    keyring::{ExportedKey, Key, KeyState},
};

/// Why there is no token, or nothing to see in one.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It would be dropped as `lifetime`.
    #[error(
        "a ttl of {ttl} s is outside 1 to {max_ttl} s, the service's max_ttl: it would be dropped as `lifetime`"
    )]
    Ttl {
        /// As asked for.
        ttl: u64,
        /// As the service allows.
        max_ttl: u64,
    },
    /// It would be dropped as `policy`.
    #[error("the service wants tokens bound to an address (bind = \"required\"): add --bind ADDR")]
    Unbound,
    /// It would be dropped as `no_backend`.
    #[error("the service has no backend {0}; see `tollgate backends list`")]
    NoSuchBackend(u16),
    /// The prefix is too long or too short.
    #[error(transparent)]
    Prefix(#[from] PrefixLength),
    /// No prefix without an address.
    #[error("a prefix length needs an address: --bind ADDR/LEN")]
    LengthWithoutAddress,
    /// There is no randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The clock is past 2106 or before 1970.
    #[error("the clock says {0} s since 1970, and a token has 32 bits for that: set the clock")]
    Clock(u64),
    /// No hex.
    #[error("a token is {digits} hexadecimal digits: {0}", digits = 2 * header::LEN)]
    Hex(#[from] hex::FromHexError),
    /// Nothing signs.
    #[error("the keyset has no active key; export it again with `tollgate keys export`")]
    NoSigner,
}

/// A key, wherever it comes from.
#[derive(Debug)]
pub struct KnownKey {
    id: KeyId,
    service_id: u32,
    state: KeyState,
    not_after: Option<u64>,
    master: MasterKey,
}

impl From<&Key> for KnownKey {
    fn from(key: &Key) -> Self {
        Self {
            id: key.id,
            service_id: key.service_id,
            state: key.state,
            not_after: key.not_after,
            master: key.master.clone(),
        }
    }
}

impl KnownKey {
    /// A key of a service's keyset.
    pub fn exported(service_id: u32, key: &ExportedKey) -> Self {
        let id = KeyId(key.key_id);
        let not_after = Some(key.not_after);
        Self { id, service_id, state: key.state, not_after, master: key.master.clone() }
    }

    /// Whether it signs.
    pub fn signs(&self) -> bool {
        self.state == KeyState::Active
    }

    fn to_slot(&self, keys: &DerivedKeys) -> KeySlot {
        KeySlot {
            key_id: self.id.0,
            state: u32::from(self.state != KeyState::Revoked),
            service_id: self.service_id,
            not_after_ns: self.not_after.map_or(u64::MAX, |end| end.saturating_mul(SECOND_NS)),
            fast: keys.fast,
            seal: keys.seal,
            full: keys.full,
            proof: keys.proof,
            ..KeySlot::default()
        }
    }
}

/// Checks a request against its service: no token is minted that would be dropped.
///
/// # Errors
/// With why it would be.
pub fn allowed(request: &MintRequest, service: &config::Service) -> Result<(), TokenError> {
    let max_ttl = service.max_ttl.as_secs();
    if request.ttl > max_ttl {
        return Err(TokenError::Ttl { ttl: request.ttl, max_ttl });
    }
    if service.bind == Bind::Required && request.bind.is_none() {
        return Err(TokenError::Unbound);
    }
    let is_there = |backend: &config::Backend| backend.id == request.backend;
    if request.backend != 0 && !service.backends.iter().any(is_there) {
        return Err(TokenError::NoSuchBackend(request.backend));
    }
    Ok(())
}

/// Mints a token at unix second `now`.
///
/// # Errors
/// If it cannot be expressed.
pub fn mint(request: &MintRequest, key: &KnownKey, now: u64) -> Result<Minted, TokenError> {
    if request.ttl == 0 {
        return Err(TokenError::Ttl { ttl: 0, max_ttl: u64::from(u32::MAX) });
    }
    let seconds = |at: u64| u32::try_from(at).map_err(|_| TokenError::Clock(at));
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(TokenError::Random)?;
    let bind = match (request.bind, request.bind_len) {
        (Some(address), len) => Some(Prefix::new(address, len.unwrap_or_else(|| Prefix::longest(address)))?),
        (None, Some(_)) => return Err(TokenError::LengthWithoutAddress),
        (None, None) => None,
    };
    let grant = Grant {
        claims: Claims {
            service_id: key.service_id,
            class: request.class,
            backend_id: request.backend,
            session_id: request.session,
        },
        issued_at: seconds(now)?,
        expires_at: seconds(now.saturating_add(request.ttl))?,
        nonce,
        bind,
        bind_port: request.bind_port,
    };
    let keys = DerivedKeys::derive(&key.master, key.id);
    let mut minted = Minted {
        header: String::new(),
        kind: request.kind,
        key_id: key.id.0,
        issued_at: grant.issued_at.into(),
        expires_at: grant.expires_at.into(),
        claims: None,
        fast_tag: None,
        session_key: None,
    };
    match request.kind {
        TokenKind::Bearer => minted.header = hex::encode(grant.bearer(key.id, &keys).to_bytes()),
        TokenKind::Proof => {
            let proof = grant.proof(key.id, &keys);
            minted.header = hex::encode(proof.header(0, 0, &[]).to_bytes());
            minted.claims = Some(hex::encode(proof.claims()));
            minted.fast_tag = Some(hex::encode(proof.fast_tag()));
            minted.session_key = Some(hex::encode(proof.session_key().as_bytes()));
        }
    }
    Ok(minted)
}

/// A token to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectRequest {
    /// The header, in hex.
    pub token: String,
    /// Where its packet came from: needed for the tags of a token that is bound to it.
    pub from: Option<IpAddr>,
    /// And from which port.
    pub from_port: Option<u16>,
}

/// What is in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// `bearer` or `proof`.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// The key that signed it.
    pub key_id: u32,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// The nonce, in hex.
    pub nonce: String,
    /// Bits of the bound prefix; 0: not bound to an address.
    pub bind_len: u8,
    /// Whether it is bound to a port.
    pub bind_port: bool,
    /// The sealed claims, where a key opens them.
    pub claims: Option<OpenClaims>,
    /// Each check in the program's order, up to the first that fails.
    pub steps: Vec<Step>,
    /// `valid`, the reason it would be dropped, or `unchecked` where no key is at hand.
    pub verdict: String,
}

/// The sealed claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenClaims {
    /// The audience.
    pub service_id: u32,
    /// The session.
    #[serde(with = "crate::api::messages::text")]
    pub session_id: u64,
    /// The rate class.
    pub class: u8,
    /// The backend it is pinned to; 0: none.
    pub backend_id: u16,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was checked.
    pub check: String,
    /// `passed`, `skipped`, or the reason of the drop.
    pub outcome: String,
    /// What that means.
    pub detail: String,
}

/// Looks into a token at unix second `now`, with the keys at hand. Without a service of the key among `services`, its
/// own rules are left out.
///
/// # Errors
/// If it is no hex.
pub fn inspect(
    request: &InspectRequest,
    keys: Option<&[KnownKey]>,
    services: &[Service],
    now: u64,
) -> Result<Inspection, TokenError> {
    let bytes = hex::decode(request.token.trim())?;
    let mut steps = Steps::default();
    let header = match Header::from_payload(&bytes) {
        Ok(header) => header,
        Err(reason) => {
            steps.check("form", Err(reason));
            return Ok(Inspection::nothing(steps));
        }
    };
    steps.check("form", Ok(()));
    let mut inspection = Inspection {
        kind: match header.kind() {
            Kind::Bearer => TokenKind::Bearer,
            Kind::Proof => TokenKind::Proof,
        },
        key_id: header.key_id().0,
        issued_at: header.issued_at().into(),
        expires_at: header.expires_at().into(),
        nonce: hex::encode(header.nonce().to_le_bytes()),
        bind_len: header.bind_len(),
        bind_port: header.flags() & header::FLAG_BIND_PORT != 0,
        claims: None,
        steps: Vec::new(),
        verdict: String::new(),
    };
    match keys {
        Some(keys) => inspection.claims = check(&header, request, keys, services, now, &mut steps),
        None => steps.skip("key", "no key at hand: add --keyset FILE, or run the daemon"),
    }
    Ok(Inspection { verdict: steps.verdict(), steps: steps.steps, ..inspection })
}

/// The checks from the key on; what the key opens.
fn check(
    header: &Header,
    request: &InspectRequest,
    keys: &[KnownKey],
    services: &[Service],
    now: u64,
    steps: &mut Steps,
) -> Option<OpenClaims> {
    let now_ns = now.saturating_mul(SECOND_NS);
    let key = keys.iter().find(|key| key.id == header.key_id());
    let Some(key) = key else {
        steps.check("key", Err(Reason::UnknownKey));
        return None;
    };
    let derived = DerivedKeys::derive(&key.master, key.id);
    let slot = key.to_slot(&derived);
    let open = Claims::unseal(header, slot.seal).ok().map(|claims| OpenClaims {
        service_id: claims.service_id,
        session_id: claims.session_id,
        class: claims.class,
        backend_id: claims.backend_id,
    });
    let service = services.iter().find(|service| service.id == key.service_id).copied();
    // Of a service that is not known nothing is forbidden.
    let rules = service.unwrap_or(Service {
        id: key.service_id,
        max_ttl: u32::MAX,
        accept: ACCEPT_BEARER | ACCEPT_PROOF,
        ..Service::default()
    });
    match service {
        Some(service) => {
            steps.check("policy", header.allowed_by(&service));
        }
        None => steps.skip("policy", "the service's rules are not in a keyset"),
    }
    steps.check("key", slot.admits(header.key_id(), key.service_id, now_ns));
    steps.check("lifetime", header.lives(&rules, now_ns));
    let bound = (header.bind_len() != 0 && request.from.is_none())
        || (header.flags() & header::FLAG_BIND_PORT != 0 && request.from_port.is_none());
    if bound {
        steps.skip("tags", "bound to its sender: add --from ADDR, and --from-port PORT where that is bound");
        return None;
    }
    let from = request.from.unwrap_or_else(|| std::net::Ipv4Addr::UNSPECIFIED.into());
    let binding = match header.binding(&Source::new(from, request.from_port.unwrap_or(0))) {
        Ok(binding) => binding,
        Err(reason) => {
            steps.check("fast tag", Err(reason));
            return None;
        }
    };
    let right = |is_right: bool, reason| if is_right { Ok(()) } else { Err(reason) };
    let fast = tags::fast(slot.fast, header, &binding) == header.fast_tag();
    if !steps.check("fast tag", right(fast, Reason::BadFastTag)) {
        return None;
    }
    match header.kind() {
        Kind::Bearer => {
            let full =
                tags::full(&slot.full, header.claims(), &binding, &mut lb_common::sha256::Scratch::default());
            steps.check("full tag", right(full == header.full_tag(), Reason::BadFullTag));
        }
        Kind::Proof => steps.skip("proof", "covers the payload, which is not here"),
    }
    match open.as_ref() {
        Some(claims) => {
            steps.check("claims", right(claims.service_id == key.service_id, Reason::WrongService));
        }
        None => {
            steps.check("claims", Err(Reason::BadHeader));
        }
    }
    open
}

impl Inspection {
    /// Of what is no token.
    fn nothing(steps: Steps) -> Self {
        Self {
            kind: TokenKind::Bearer,
            key_id: 0,
            issued_at: 0,
            expires_at: 0,
            nonce: String::new(),
            bind_len: 0,
            bind_port: false,
            claims: None,
            verdict: steps.verdict(),
            steps: steps.steps,
        }
    }
}

/// Checks as they are made.
#[derive(Default)]
struct Steps {
    steps: Vec<Step>,
    refused: Option<Reason>,
    skipped: bool,
}

impl Steps {
    /// Adds a check, unless one before it has failed. Whether it passed.
    fn check(&mut self, check: &str, result: Result<(), Reason>) -> bool {
        if self.refused.is_some() {
            return result.is_ok();
        }
        let (outcome, detail) = match result {
            Ok(()) => ("passed".to_owned(), String::new()),
            Err(reason) => {
                self.refused = Some(reason);
                (reason.name().to_owned(), format!("{}; look at: {}", reason.meaning(), reason.look_first()))
            }
        };
        self.steps.push(Step { check: check.to_owned(), outcome, detail });
        result.is_ok()
    }

    fn skip(&mut self, check: &str, why: &str) {
        self.skipped = true;
        if self.refused.is_none() {
            let (check, detail) = (check.to_owned(), why.to_owned());
            self.steps.push(Step { check, outcome: "skipped".to_owned(), detail });
        }
    }

    fn verdict(&self) -> String {
        match (self.refused, self.skipped) {
            (Some(reason), _) => reason.name().to_owned(),
            (None, true) => "unchecked".to_owned(),
            (None, false) => "valid".to_owned(),
        }
    }
}
