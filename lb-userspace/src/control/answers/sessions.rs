//! Requests about the tokens in the kernel.

use lb_common::{
    revocation::{REVOKED_SESSION, REVOKED_TOKEN, RevocationKey},
    session::{SOURCES_MAX, Session, TokenKey},
    token::{Header, Kind},
};

use super::Answers;
use crate::{
    control::{Controller, RequestError, clock::unix_now},
    protocol::{List, ListSessions, SessionStatus, TokenKind},
};

/// The longest list: the loop does nothing else while it builds one.
const LISTED_MAX: usize = 10_000;

impl Answers<ListSessions> for Controller {
    async fn answer(&mut self, request: ListSessions) -> Result<List<SessionStatus>, RequestError> {
        let only = request
            .service
            .as_deref()
            .map(|name| self.service(name).map(|service| service.id))
            .transpose()?;
        let limit = request.limit.min(LISTED_MAX);
        let (mut total, mut items) = (0, Vec::new());
        let mut add = |key: &TokenKey, session: &Session, sources: Option<&[u32; SOURCES_MAX]>| {
            let header = header_of(key, session);
            // The service is that of the key, because the claims are sealed.
            let service_id = self.stored.state().keyring.key(header.key_id()).map_or(0, |key| key.service_id);
            let is_another = only.is_some_and(|only| only != service_id);
            if is_another || self.has_left(&header, service_id, sources.is_some()) {
                return;
            }
            total += 1;
            if items.len() < limit {
                items.push(self.session_status(&header, session, service_id, sources));
            }
        };
        let counters = &self.datapath.counters;
        counters.each_session(|key, session| add(key, session, None))?;
        counters.each_stateful(|key, stateful| add(key, &stateful.session, Some(&stateful.sources)))?;
        items.sort_by_key(|session: &SessionStatus| {
            (session.service_id, session.session_id, session.issued_at)
        });
        Ok(List::part(total, items))
    }
}

impl Controller {
    /// Whether an entry is stale: tokens of its service and type no longer use its cache, because the limits of the
    /// service have changed.
    fn has_left(&self, header: &Header, service_id: u32, is_tracked: bool) -> bool {
        let service = self.config.services.iter().find(|service| service.id == service_id);
        service.is_some_and(|service| is_tracked != (header.kind() == Kind::Proof || service.has_limits()))
    }

    fn session_status(
        &self,
        header: &Header,
        session: &Session,
        service_id: u32,
        sources: Option<&[u32; SOURCES_MAX]>,
    ) -> SessionStatus {
        let revocations = &self.stored.state().revocations;
        let session_id = session.admission.session_id;
        let names = [(REVOKED_SESSION, session_id), (REVOKED_TOKEN, header.nonce())];
        let named = names.into_iter().any(|(kind, of)| {
            revocations.until(&RevocationKey { service_id, kind, of }, unix_now()).is_some()
        });
        SessionStatus {
            service: self.service_name(service_id),
            service_id,
            session_id,
            kind: match header.kind() {
                Kind::Bearer => TokenKind::Bearer,
                Kind::Proof => TokenKind::Proof,
            },
            class: session.admission.class,
            backend_id: session.admission.backend_id,
            key_id: header.key_id().0,
            nonce: hex::encode(header.nonce().to_le_bytes()),
            issued_at: header.issued_at().into(),
            expires_at: header.expires_at().into(),
            sources: sources.into_iter().flatten().filter(|source| **source != 0).count(),
            revoked: named || header.issued_at() < revocations.before(service_id),
        }
    }
}

/// The header that an entry was made from; the fields after the fast tag are zero.
const fn header_of(key: &TokenKey, session: &Session) -> Header {
    let [a, b, d, e] = session.claims;
    Header::from_verified([a, b, key.nonce, d, e, key.fast_tag, 0, 0])
}
