//! Requests about single tokens: minted, inspected.

use super::Answers;
use crate::{
    control::{Controller, RequestError, clock::unix_now, desired},
    protocol::{InspectToken, Inspection, MintToken, Minted},
    revocation::SKEW,
    token::{self, KnownKey},
};

impl Answers<MintToken> for Controller {
    async fn answer(&mut self, request: MintToken) -> Result<Minted, RequestError> {
        let service = self.service(&request.service)?;
        let signer =
            self.stored.state().keyring.signer(service.id).filter(|key| self.keys.is_installed(key.id));
        let signer = signer.ok_or_else(|| RequestError::NoSigner(service.name.clone()))?;
        token::allowed(&request, service)?;
        let key = KnownKey::from(signer);
        // A token minted in the second of a revocation must be issued in the next second, or it would be revoked.
        let (now, before) = (unix_now(), self.stored.state().revocations.before(service.id).into());
        if before > now + SKEW {
            return Err(RequestError::RevokedAhead { service: service.name.clone(), before });
        }
        Ok(token::mint(&request, &key, now.max(before))?)
    }
}

impl Answers<InspectToken> for Controller {
    async fn answer(&mut self, request: InspectToken) -> Result<Inspection, RequestError> {
        let keys: Vec<KnownKey> = self.stored.state().keyring.keys().map(KnownKey::from).collect();
        let revocations = &self.stored.state().revocations;
        let value = |service| desired::value(service, 1, revocations.before(service.id));
        let services: Vec<_> = self.config.services.iter().map(value).collect();
        Ok(token::inspect(&request, Some(&keys), &services, Some(revocations), unix_now())?)
    }
}
