//! Inspects a token: its content, and the checks of the XDP program in their order.

use std::net::Ipv4Addr;

use lb_common::{
    control::SECOND_NS,
    reason::Reason,
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    service::{ACCEPT_BEARER, ACCEPT_PROOF, Service},
    sha256::Scratch,
    token::{Claims, Header, Kind, Source, header, keys::DerivedKeys, tags},
};

use super::{KnownKey, TokenError};
use crate::{
    protocol::{HeaderFields, InspectToken, Inspection, OpenClaims, Step, TokenKind},
    revocation::Revocations,
};

/// Inspects a token at Unix time `now`, with the available keys and revocations. If the service of the key is not among
/// `services`, its rules are not checked.
///
/// # Errors
/// If the token is not hexadecimal.
pub fn inspect(
    request: &InspectToken,
    keys: Option<&[KnownKey]>,
    services: &[Service],
    revocations: Option<&Revocations>,
    now: u64,
) -> Result<Inspection, TokenError> {
    let bytes = hex::decode(request.token.trim())?;
    if bytes.is_empty() {
        return Err(TokenError::Nothing);
    }
    let mut steps = Steps::default();
    let header = Header::from_payload(&bytes);
    steps.check("form", header.map(drop));
    let (fields, claims) = match header {
        Ok(header) => {
            let claims = match keys {
                Some(keys) => {
                    let claims = check(&header, request, keys, services, now, &mut steps);
                    if let Some(claims) = &claims {
                        revoked(&header, claims, revocations, now, &mut steps);
                    }
                    claims
                }
                None => {
                    steps.skip("key", "no key available; add --keyset FILE, or start the daemon");
                    None
                }
            };
            (Some(fields(&header)), claims)
        }
        Err(_) => (None, None),
    };
    Ok(Inspection { header: fields, claims, verdict: steps.verdict(), steps: steps.steps })
}

fn fields(header: &Header) -> HeaderFields {
    HeaderFields {
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
    }
}

/// The checks from the key on. Returns the claims, if the key opens them.
fn check(
    header: &Header,
    request: &InspectToken,
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
    // Without a known service, the rules allow everything.
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
        None => steps.skip("policy", "a keyset does not contain the rules of the service"),
    }
    steps.check("key", slot.admits(header.key_id(), key.service_id, now_ns));
    steps.check("lifetime", header.lives(&rules, now_ns));
    let bound = (header.bind_len() != 0 && request.from.is_none())
        || (header.flags() & header::FLAG_BIND_PORT != 0 && request.from_port.is_none());
    if bound {
        steps.skip("tags", "bound to the sender: add --from ADDR, and --from-port PORT if bound to a port");
        return None;
    }
    let from = request.from.unwrap_or_else(|| Ipv4Addr::UNSPECIFIED.into());
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
            let full = tags::full(&slot.full, header.claims(), &binding, &mut Scratch::default());
            steps.check("full tag", right(full == header.full_tag(), Reason::BadFullTag));
        }
        Kind::Proof => steps.skip("proof", "covers the payload, which is not part of the input"),
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

/// Checks whether the session or the token is revoked.
fn revoked(
    header: &Header,
    claims: &OpenClaims,
    revocations: Option<&Revocations>,
    now: u64,
    steps: &mut Steps,
) {
    let Some(revocations) = revocations else {
        return steps.skip("revocation", "only the daemon knows the revocations");
    };
    let mut names = [(REVOKED_SESSION, claims.session_id), (REVOKED_TOKEN, header.nonce())].into_iter();
    let service_id = claims.service_id;
    let revoked =
        names.any(|(kind, of)| revocations.until(&RevocationKey { service_id, kind, of }, now).is_some());
    steps.check("revocation", if revoked { Err(Reason::Revoked) } else { Ok(()) });
}

/// The results of the checks so far.
#[derive(Default)]
struct Steps {
    steps: Vec<Step>,
    refused: Option<Reason>,
    skipped: bool,
}

impl Steps {
    /// Adds a check, unless an earlier check has failed. Returns whether it passed.
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

#[cfg(test)]
mod tests {
    use lb_common::{keyslot::KeyId, token::keys::MasterKey};

    use super::*;
    use crate::{
        keyring::{ExportedKey, KeyState},
        protocol::MintToken,
        token::mint,
    };

    const NOW: u64 = 1_800_000_000;

    fn key(state: KeyState) -> KnownKey {
        let key = ExportedKey {
            key_id: KeyId::new(7, 3).unwrap().0,
            state,
            master: MasterKey::from_bytes([9; 32]),
            not_after: NOW + 10_000,
            sign_until: NOW + 5_000,
        };
        KnownKey::exported(42, &key)
    }

    fn request() -> MintToken {
        MintToken {
            service: "game".to_owned(),
            session_id: u64::MAX,
            kind: TokenKind::Bearer,
            ttl: 300,
            bind: None,
            bind_len: None,
            bind_port: None,
            class: 3,
            backend_id: 11,
        }
    }

    fn service() -> Service {
        Service { id: 42, index: 1, max_ttl: 3600, accept: ACCEPT_BEARER, ..Service::default() }
    }

    fn look(token: &str, now: u64) -> Inspection {
        let request = InspectToken { token: token.to_owned(), from: None, from_port: None };
        inspect(&request, Some(&[key(KeyState::Active)]), &[service()], Some(&Revocations::default()), now)
            .unwrap()
    }

    #[test]
    fn what_is_minted_is_valid() {
        let minted = mint(&request(), &key(KeyState::Active), NOW).unwrap();
        let found = look(&minted.header, NOW);
        assert_eq!(found.verdict, "valid", "{:?}", found.steps);
        let claims = found.claims.unwrap();
        assert_eq!((claims.session_id, claims.class, claims.backend_id), (u64::MAX, 3, 11));
        assert_eq!(serde_json::to_value(&claims).unwrap()["session_id"], u64::MAX.to_string());
    }

    #[test]
    fn the_first_check_that_fails_is_the_verdict() {
        let minted = mint(&request(), &key(KeyState::Active), NOW).unwrap().header;
        let other_key = minted.replacen(&minted[8..16], "00001001", 1);
        let forged = format!("{}{}", &minted[..127], if minted.ends_with('0') { 1 } else { 0 });
        for (token, now, verdict) in [
            ("0b", NOW, "no_token"),
            (&minted.replacen("0b11", "0b21", 1), NOW, "bad_header"),
            (&other_key, NOW, "unknown_key"),
            (&minted, NOW - 10, "not_yet_valid"),
            (&minted, NOW + 302, "expired"),
            (&minted, NOW + 20_000, "inactive_key"),
            (&forged, NOW, "bad_fast_tag"),
        ] {
            let found = look(token, now);
            assert_eq!(found.verdict, verdict, "{:?}", found.steps);
            assert_eq!(found.steps.last().unwrap().outcome, verdict);
        }
    }

    #[test]
    fn what_is_revoked_is_shown() {
        let token = mint(&request(), &key(KeyState::Active), NOW).unwrap().header;
        let request = InspectToken { token, from: None, from_port: None };
        let mut revocations = Revocations::default();
        let revoked = RevocationKey { service_id: 42, kind: REVOKED_SESSION, of: u64::MAX };
        revocations.revoke(&[revoked], NOW + 10, NOW).unwrap();
        for (now, verdict) in [(NOW + 9, "revoked"), (NOW + 10, "valid")] {
            let keys = [key(KeyState::Active)];
            let found = inspect(&request, Some(&keys), &[service()], Some(&revocations), now).unwrap();
            assert_eq!(found.verdict, verdict);
        }
    }

    #[test]
    fn a_bound_token_needs_its_sender() {
        let bound = MintToken { bind: Some([192, 0, 2, 7].into()), bind_len: Some(24), ..request() };
        let token = mint(&bound, &key(KeyState::Active), NOW).unwrap().header;
        assert_eq!(look(&token, NOW).verdict, "unchecked");
        for (from, verdict) in [([192, 0, 2, 99], "valid"), ([192, 0, 3, 7], "bad_fast_tag")] {
            let request = InspectToken { token: token.clone(), from: Some(from.into()), from_port: None };
            let none = Revocations::default();
            let keys = [key(KeyState::Retiring)];
            let found = inspect(&request, Some(&keys), &[service()], Some(&none), NOW).unwrap();
            assert_eq!(found.verdict, verdict);
        }
    }

    #[test]
    fn without_a_key_the_fields_are_there() {
        let token = mint(&request(), &key(KeyState::Active), NOW).unwrap().header;
        let request = InspectToken { token, from: None, from_port: None };
        let found = inspect(&request, None, &[], None, NOW).unwrap();
        assert_eq!(found.verdict, "unchecked");
        assert_eq!(found.header.unwrap().issued_at, NOW);
        assert!(found.claims.is_none());
    }
}
