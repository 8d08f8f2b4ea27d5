//! Requests about keys.

use lb_common::keyslot::{KeyId, STATE_OFF};
use tracing::{info, warn};

use super::Answers;
use crate::{
    control::{
        Controller, Outcome, RequestError,
        keys::{self},
    },
    keyring::{KeyState, Keyset},
    protocol::{
        ExportKeys, ImportKeys, ImportReport, KeyStatus, List, ListKeys, RevokeKey, Revoked, RotateKeys,
        Rotated,
    },
};

impl Answers<ListKeys> for Controller {
    async fn answer(&mut self, ListKeys {}: ListKeys) -> Result<List<KeyStatus>, RequestError> {
        Ok(self.key_list().into())
    }
}

impl Answers<RotateKeys> for Controller {
    async fn answer(&mut self, request: RotateKeys) -> Result<List<Rotated>, RequestError> {
        let services: Vec<_> = self
            .selected(request.service.as_deref())?
            .into_iter()
            .map(|service| (service.id, service.name.clone()))
            .collect();
        let policies: Vec<_> = services.iter().filter_map(|(id, _)| self.keys.policy(*id)).collect();
        let rotations = keys::change(&mut self.stored, |keyring, now, random| {
            policies.iter().map(|policy| keyring.rotate(policy, now, random)).collect::<Result<Vec<_>, _>>()
        })
        .await?;
        self.apply_keys().await?;
        let keyring = &self.stored.state().keyring;
        let rotated = services.into_iter().zip(rotations).map(|((service_id, service), rotation)| {
            let key = keyring.key(rotation.staged);
            let state = key.map_or(KeyState::Revoked, |key| key.state);
            info!(service, key_id = rotation.staged.0, %state, "key rotated");
            Rotated {
                service,
                service_id,
                key_id: rotation.staged.0,
                state,
                previous_key_id: rotation.active.map(|id| id.0),
            }
        });
        Ok(rotated.collect::<Vec<_>>().into())
    }
}

impl Answers<RevokeKey> for Controller {
    async fn answer(&mut self, request: RevokeKey) -> Result<Revoked, RequestError> {
        let id = KeyId(request.key_id);
        let revocation = keys::change(&mut self.stored, |keyring, now, _| keyring.revoke(id, now)).await?;
        if revocation.was != KeyState::Revoked {
            warn!(key_id = id.0, service_id = revocation.service_id, was = %revocation.was, "key revoked");
        }
        // First stop the key in the kernel, then make a new one if the service has none.
        let mut outcome = Outcome::default();
        self.sync_keys(&mut outcome);
        let held = self.datapath.key_slots.all()?[id.slot() as usize];
        if held.key_id == id.0 && held.state != STATE_OFF {
            return Err(RequestError::NotInKernel(outcome.errors.join("; ")));
        }
        if !revocation.signer_left {
            self.follow_keys(&mut Outcome::default()).await?;
            self.apply_keys().await?;
        }
        Ok(Revoked {
            key_id: id.0,
            service_id: revocation.service_id,
            previous_state: revocation.was,
            active_key_id: self.stored.state().keyring.signer(revocation.service_id).map(|key| key.id.0),
        })
    }
}

impl Answers<ExportKeys> for Controller {
    async fn answer(&mut self, request: ExportKeys) -> Result<Keyset, RequestError> {
        let service = self.service(&request.service)?;
        let (id, name) = (service.id, service.name.clone());
        let Some(policy) = self.keys.policy(id) else { return Err(RequestError::NoSigner(name)) };
        // Committed before it is returned, because it promises how long the key may sign.
        let keyset =
            keys::change(&mut self.stored, |keyring, now, _| Ok(keyring.export(&name, &policy, now))).await?;
        info!(service = name, "keys exported");
        Ok(keyset)
    }
}

impl Answers<ImportKeys> for Controller {
    async fn answer(&mut self, ImportKeys(keyset): ImportKeys) -> Result<ImportReport, RequestError> {
        let id = self.service(&keyset.service_id.to_string())?.id;
        let Some(policy) = self.keys.policy(id) else {
            return Err(RequestError::NoSigner(keyset.service.clone()));
        };
        let imported =
            keys::change(&mut self.stored, |keyring, now, _| keyring.import(&keyset, &policy, now)).await?;
        self.follow_keys(&mut Outcome::default()).await?;
        self.apply_keys().await?;
        info!(service_id = id, added = imported.added.len(), "keys imported");
        let numbers = |ids: Vec<KeyId>| ids.into_iter().map(|id| id.0).collect();
        Ok(ImportReport {
            added: numbers(imported.added),
            known: numbers(imported.known),
            skipped: numbers(imported.skipped.into_iter().map(|(id, _)| id).collect()),
        })
    }
}

impl Controller {
    pub(super) fn key_list(&self) -> Vec<KeyStatus> {
        let keys = self.stored.state().keyring.keys();
        keys.map(|key| KeyStatus {
            service: self.service_name(key.service_id),
            service_id: key.service_id,
            key_id: key.id.0,
            state: key.state,
            installed: self.keys.is_installed(key.id),
            created_at: key.created_at,
            activated_at: key.activated_at,
            not_after: key.not_after,
            imported: key.imported,
        })
        .collect()
    }

    /// Copies new keys into the kernel and activates them; waits for a key slot that must rest.
    async fn apply_keys(&mut self) -> Result<(), RequestError> {
        let mut outcome = Outcome::default();
        self.sync_keys(&mut outcome);
        if let Some(left) = outcome.again_in.take() {
            tokio::time::sleep(left).await;
            self.sync_keys(&mut outcome);
        }
        self.confirm_keys().await?;
        match outcome.errors.is_empty() {
            true => Ok(()),
            false => Err(RequestError::NotInKernel(outcome.errors.join("; "))),
        }
    }
}
