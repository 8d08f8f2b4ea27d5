//! Requests about revocations.

use lb_common::{
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    token::{
        Header,
        header::{self, Binding},
        tags,
    },
};
use tracing::{info, warn};

use super::Answers;
use crate::{
    control::{Controller, Outcome, RequestError, clock::unix_now},
    protocol::{
        List, ListRevocations, RevocationStatus, RevokeBefore, RevokeSessions, RevokeToken, RevokedBefore,
        UnrevokeSessions, UnrevokeToken,
    },
    revocation::{self, RevocationError, SKEW},
    token::TokenError,
};

impl Answers<ListRevocations> for Controller {
    /// Revocations by name, of one service or all.
    async fn answer(&mut self, request: ListRevocations) -> Result<List<RevocationStatus>, RequestError> {
        let only = request
            .service
            .as_deref()
            .map(|name| self.service(name).map(|service| service.id))
            .transpose()?;
        let all = self.stored.state().revocations.in_force(unix_now());
        let selected = all.filter(|(key, _)| only.is_none_or(|id| id == key.service_id));
        Ok(selected.map(|(key, until)| self.shown(&key, until)).collect::<Vec<_>>().into())
    }
}

impl Answers<RevokeSessions> for Controller {
    async fn answer(&mut self, request: RevokeSessions) -> Result<List<RevocationStatus>, RequestError> {
        let service_id = self.service(&request.service)?.id;
        let lifetime = revocation::lifetime(self.longest_ttl(service_id));
        let until = self.clock.latest().saturating_add(request.seconds.unwrap_or(lifetime));
        Ok(self.revoke_named(&keys_of(service_id, &request.sessions), until).await?.into())
    }
}

impl Answers<UnrevokeSessions> for Controller {
    async fn answer(&mut self, request: UnrevokeSessions) -> Result<List<RevocationStatus>, RequestError> {
        let service_id = self.service(&request.service)?.id;
        Ok(self.unrevoke_named(&keys_of(service_id, &request.sessions)).await?.into())
    }
}

impl Answers<RevokeToken> for Controller {
    async fn answer(&mut self, request: RevokeToken) -> Result<RevocationStatus, RequestError> {
        let (header, key) = self.token_of(&request.token, request.service.as_deref())?;
        let until = u64::from(header.expires_at()) + SKEW;
        if until <= self.clock.latest() {
            return Err(TokenError::Expired(header.expires_at().into()).into());
        }
        if !self.may_be_signed(&request.token, &header) {
            return Err(TokenError::Forged.into());
        }
        let max_ttl = self.longest_ttl(key.service_id);
        let lives = u64::from(header.expires_at()).checked_sub(header.issued_at().into());
        if lives.is_none_or(|lives| lives > max_ttl) {
            return Err(TokenError::NeverValid { max_ttl }.into());
        }
        let mut revoked = self.revoke_named(&[key], until).await?;
        Ok(revoked.remove(0))
    }
}

impl Answers<UnrevokeToken> for Controller {
    async fn answer(&mut self, request: UnrevokeToken) -> Result<RevocationStatus, RequestError> {
        let (_, key) = self.token_of(&request.token, request.service.as_deref())?;
        let mut lifted = self.unrevoke_named(&[key]).await?;
        Ok(lifted.remove(0))
    }
}

impl Answers<RevokeBefore> for Controller {
    /// Revokes all tokens that a service issued before a time; by default, until now.
    async fn answer(&mut self, request: RevokeBefore) -> Result<RevokedBefore, RequestError> {
        let service = self.service(&request.service)?;
        let (service_id, service) = (service.id, service.name.clone());
        // The program clock is used if it is ahead, to include the tokens issued by it.
        let at = request.at.unwrap_or_else(|| self.clock.latest() + 1);
        let revoked_before = self.revoke_all_before(&[service_id], at).await?;
        warn!(service, revoked_before, "tokens issued before are revoked");
        Ok(RevokedBefore { service, service_id, revoked_before })
    }
}

impl Controller {
    fn shown(&self, key: &RevocationKey, until: u64) -> RevocationStatus {
        let is_session = key.kind == REVOKED_SESSION;
        RevocationStatus {
            service: self.service_name(key.service_id),
            service_id: key.service_id,
            session_id: is_session.then(|| key.of.to_string()),
            nonce: (!is_session).then(|| hex::encode(key.of.to_le_bytes())),
            until,
        }
    }

    /// The longest lifetime of a token of a service, seconds. Includes tokens from before `max_ttl` was lowered,
    /// which are valid again if it is raised.
    fn longest_ttl(&self, service_id: u32) -> u64 {
        let of_keys = self.stored.state().keyring.verifying().filter(|key| key.service_id == service_id);
        let of_keys = of_keys.map(|key| key.max_ttl).max();
        let configured = self.keys.policy(service_id).map(|policy| policy.max_ttl);
        of_keys.max(configured).unwrap_or(u64::MAX)
    }

    /// Whether the fast tag of a token is right; true if that is unknown, because only the claims are given, the key is
    /// missing, or the token is bound.
    fn may_be_signed(&self, token: &str, header: &Header) -> bool {
        let is_whole = token.trim().len() == 2 * header::LEN;
        let is_bound = header.bind_len() != 0 || header.flags() & header::FLAG_BIND_PORT != 0;
        match self.stored.state().keyring.key(header.key_id()) {
            Some(key) if is_whole && !is_bound => {
                tags::fast(key.to_slot().fast, header, &Binding::default()) == header.fast_tag()
            }
            _ => true,
        }
    }

    /// The header of a token or of its claims alone. The service is the given one, or that of the key.
    fn token_of(&self, token: &str, service: Option<&str>) -> Result<(Header, RevocationKey), RequestError> {
        let header = claims_of(token)?;
        let key_id = header.key_id().0;
        let named = service.map(|name| self.service(name)).transpose()?;
        let signed = self.stored.state().keyring.key(header.key_id()).map(|key| key.service_id);
        let service_id = match (named.map(|service| service.id), signed) {
            (Some(named), Some(signed)) if named != signed => {
                return Err(TokenError::OtherService { key_id, service: self.service_name(signed) }.into());
            }
            (named, signed) => named.or(signed).ok_or(TokenError::UnknownKey(key_id))?,
        };
        Ok((header, RevocationKey { service_id, kind: REVOKED_TOKEN, of: header.nonce() }))
    }

    async fn revoke_named(
        &mut self,
        keys: &[RevocationKey],
        until: u64,
    ) -> Result<Vec<RevocationStatus>, RequestError> {
        let change = self
            .stored
            .change(|state| Ok::<_, RequestError>(state.revocations.revoke(keys, until, unix_now())?));
        let revoked = change.await.inspect_err(|error| warn!("{error}"))?;
        self.put_in_force("revoked", &revoked)
    }

    async fn unrevoke_named(
        &mut self,
        keys: &[RevocationKey],
    ) -> Result<Vec<RevocationStatus>, RequestError> {
        let change =
            self.stored.change(|state| Ok::<_, RequestError>(state.revocations.unrevoke(keys, unix_now())?));
        let lifted = change.await?;
        self.put_in_force("no longer revoked", &lifted)
    }

    /// Copies stored revocations into the kernel, and logs them.
    fn put_in_force(
        &mut self,
        what: &str,
        changed: &[(RevocationKey, u64)],
    ) -> Result<Vec<RevocationStatus>, RequestError> {
        let mut outcome = Outcome::default();
        self.sync_revocations(&mut outcome);
        if !outcome.errors.is_empty() {
            return Err(RequestError::NotInKernel(outcome.errors.join("; ")));
        }
        for (key, until) in changed {
            info!(
                service_id = key.service_id,
                kind = revocation::kind_name(key),
                of = revocation::name_of(key),
                until,
                "{what}"
            );
        }
        Ok(changed.iter().map(|(key, until)| self.shown(key, *until)).collect())
    }

    pub(super) async fn revoke_all_before(
        &mut self,
        service_ids: &[u32],
        at: u64,
    ) -> Result<u32, RequestError> {
        let latest = self.clock.latest();
        let change = |revocations: &mut revocation::Revocations| {
            let each = service_ids.iter().map(|id| revocations.revoke_before(*id, at, latest));
            each.collect::<Result<Vec<_>, RevocationError>>()
        };
        let changed =
            self.stored.change(|state| Ok::<_, RequestError>(change(&mut state.revocations)?)).await?;
        tokio::time::sleep(self.datapath.tables.grace_left()).await;
        let mut outcome = Outcome::default();
        self.publish_tables(&mut outcome).map_err(|error| RequestError::NotInKernel(error.to_string()))?;
        Ok(changed.into_iter().max().unwrap_or(0))
    }
}

fn keys_of(service_id: u32, sessions: &[u64]) -> Vec<RevocationKey> {
    sessions.iter().map(|of| RevocationKey { service_id, kind: REVOKED_SESSION, of: *of }).collect()
}

/// Length of the claims, the first bytes of a header.
const CLAIMS_LEN: usize = 40;

/// A header, from its bytes or from the claims alone, with zeros for the rest.
fn claims_of(token: &str) -> Result<Header, TokenError> {
    let mut bytes = hex::decode(token.trim())?;
    if bytes.len() == CLAIMS_LEN {
        bytes.resize(header::LEN, 0);
    }
    Header::from_payload(&bytes).map_err(TokenError::NoToken)
}
