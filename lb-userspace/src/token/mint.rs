//! Mints tokens.

use lb_common::token::{
    Claims,
    keys::DerivedKeys,
    mint::{Grant, Prefix},
};

use super::{KnownKey, TokenError};
use crate::{
    config::{self, Bind},
    protocol::{MintToken, Minted, TokenKind},
};

/// Checks a request against its service, so that no token is minted that would be dropped.
///
/// # Errors
/// Why the token would be dropped.
pub fn allowed(request: &MintToken, service: &config::Service) -> Result<(), TokenError> {
    let max_ttl = service.max_ttl.as_secs();
    if request.ttl > max_ttl {
        return Err(TokenError::Ttl { ttl: request.ttl, max_ttl });
    }
    match request.kind {
        TokenKind::Bearer if !service.accept.bearer => return Err(TokenError::NotAccepted("bearer")),
        TokenKind::Proof if !service.accept.proof => return Err(TokenError::NotAccepted("proof")),
        TokenKind::Bearer | TokenKind::Proof => {}
    }
    if service.bind == Bind::Required && request.bind.is_none() {
        return Err(TokenError::Unbound);
    }
    if let Some(address) = request.bind.filter(|address| address.is_ipv4() != service.address.is_ipv4()) {
        let family = if service.address.is_ipv4() { "IPv4" } else { "IPv6" };
        return Err(TokenError::OtherFamily { address, family });
    }
    let is_there = |backend: &config::Backend| backend.id == request.backend_id;
    if request.backend_id != 0 && !service.backends.iter().any(is_there) {
        return Err(TokenError::NoSuchBackend(request.backend_id));
    }
    Ok(())
}

/// Mints a token at unix second `now`.
///
/// # Errors
/// If a token cannot express it.
pub fn mint(request: &MintToken, key: &KnownKey, now: u64) -> Result<Minted, TokenError> {
    if request.ttl == 0 {
        return Err(TokenError::NoTime);
    }
    if request.bind_port == Some(0) {
        return Err(TokenError::PortZero);
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
            backend_id: request.backend_id,
            session_id: request.session_id,
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
