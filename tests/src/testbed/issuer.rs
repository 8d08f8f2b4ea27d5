//! A token issuer as an operator would write it: it has an exported keyset and signs with the active key.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use lb_common::{
    keyslot::KeyId,
    token::{
        Claims, Header,
        keys::DerivedKeys,
        mint::{Grant, ProofToken},
    },
};
use tollgate::keyring::{KeyState, Keyset};

use crate::testbed::{
    daemon::{Instance, said},
    netns::Namespace,
};

/// Signs tokens.
pub struct Issuer {
    keys: BTreeMap<KeyId, DerivedKeys>,
    active: KeyId,
}

impl Issuer {
    /// Creates an issuer with the keyset that `tollgate keys export` prints now.
    ///
    /// # Errors
    /// If that fails, or no key may sign.
    pub fn new(instance: &Instance, namespace: &Namespace, service: &str) -> Result<Self> {
        let output = instance.run(namespace, &["keys", "export", "--service", service])?;
        let keyset: Keyset = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
        let keys = keyset.keys.iter().map(|key| {
            let id = KeyId(key.key_id);
            (id, DerivedKeys::derive(&key.master, id))
        });
        let active = keyset.keys.iter().find(|key| key.state == KeyState::Active);
        Ok(Self {
            keys: keys.collect(),
            active: KeyId(active.context("the keyset has no active key")?.key_id),
        })
    }

    /// The key it signs with.
    pub const fn active(&self) -> KeyId {
        self.active
    }

    /// A token with these claims, valid for the next `ttl` seconds.
    pub fn token(&self, claims: Claims, ttl: u32) -> Header {
        self.token_at(claims, unix_now(), ttl)
    }

    /// A token with these claims, issued at a unix second.
    pub fn token_at(&self, claims: Claims, issued_at: u32, ttl: u32) -> Header {
        grant(claims, issued_at, ttl).bearer(self.active, self.keys())
    }

    /// Like [`Issuer::token_at`], for a client that proves each packet.
    pub fn proof_at(&self, claims: Claims, issued_at: u32, ttl: u32) -> ProofToken {
        grant(claims, issued_at, ttl).proof(self.active, self.keys())
    }

    /// The keys derived from the key that it signs with.
    pub fn keys(&self) -> &DerivedKeys {
        &self.keys[&self.active]
    }
}

fn grant(claims: Claims, issued_at: u32, ttl: u32) -> Grant {
    Grant {
        claims,
        issued_at,
        expires_at: issued_at + ttl,
        nonce: fastrand::u64(..).to_ne_bytes(),
        bind: None,
        bind_port: None,
    }
}

/// The claims of a session of the service `game`, pinned to a backend or, with 0, to none.
pub fn session(session_id: u64, backend_id: u16) -> Claims {
    Claims { service_id: 42, class: 0, backend_id, session_id }
}

/// Unix seconds.
pub fn unix_now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as u32)
}
