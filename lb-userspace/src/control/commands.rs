//! What is asked of the loop from outside, and its answers.

use lb_common::keyslot::{KeyId, STATE_OFF};
use tokio::sync::{mpsc, oneshot};
use tracing::{Span, info, warn};

use super::{
    Controller, MetricsReport, Outcome, Remaining,
    clock::unix_now,
    keys::{self, KeysError},
};
use crate::{
    api::messages::{
        BackendStatus, ClockAccepted, ClockStatus, CounterReport, ImportReport, KeyStatus, MintRequest,
        Minted, RevocationStatus, RevokeBeforeRequest, RevokeSessionsRequest, RevokeTokenRequest, Revoked,
        RevokedBefore, Rotated, ServiceStatus, SessionList, Status, UnrevokeSessionsRequest,
    },
    config::Service,
    datapath::DatapathError,
    keyring::{KeyState, Keyset},
    revocation::{RevocationError, SKEW, date},
    store::StoreError,
    token::{self, Inspection, KnownKey, TokenError},
};

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No such service.
    #[error("there is no service `{name}`; there {}", those_there_are(services))]
    NoSuchService {
        /// What was asked for.
        name: String,
        /// The names there are.
        services: Vec<String>,
    },
    /// Keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Revocations.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The kernel.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It is stored, and the kernel has not followed yet.
    #[error("stored, but not in the kernel yet: {0}; it is tried again every second, see `tollgate status`")]
    NotInKernel(String),
    /// Nothing may sign yet.
    #[error("service `{0}` has no key that may sign yet; see `tollgate keys list` and `tollgate status`")]
    NoSigner(String),
    /// Everything was revoked by a clock that was ahead.
    #[error(
        "service `{service}` refuses all that is issued before {}, and the clock is not there yet: a token of now would be \
         refused. Wait until then", date(*before)
    )]
    RevokedAhead {
        /// Its name.
        service: String,
        /// Unix second.
        before: u64,
    },
    /// There is nothing to accept.
    #[error("the program follows the wall clock: there is nothing to accept; see `tollgate clock`")]
    ClockFollows,
    /// The daemon ends.
    #[error("the daemon is ending; start it again")]
    Ending,
}

fn those_there_are(services: &[String]) -> String {
    match services {
        [] => "are none in the configuration".to_owned(),
        [one] => format!("is {one}"),
        several => format!("are {}", several.join(", ")),
    }
}

/// Where the answer of a request goes.
pub type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// A request, and where its answer goes.
pub enum Command {
    /// `status`
    Status(Reply<Status>),
    /// `counters`, of one service or all
    Counters(Option<String>, Reply<CounterReport>),
    /// `/metrics`
    Metrics(Reply<MetricsReport>),
    /// `keys list`
    Keys(Reply<Vec<KeyStatus>>),
    /// `keys rotate`, of one service or all
    Rotate(Option<String>, Reply<Vec<Rotated>>),
    /// `keys revoke`
    Revoke(KeyId, Reply<Revoked>),
    /// `keys export`
    Export(String, Reply<Keyset>),
    /// `keys import`
    Import(Keyset, Reply<ImportReport>),
    /// `token mint`
    Mint(MintRequest, Reply<Minted>),
    /// `token inspect`
    Inspect(token::InspectRequest, Reply<Inspection>),
    /// `backends list`, of one service or all
    Backends(Option<String>, Reply<Vec<BackendStatus>>),
    /// `services list`
    Services(Reply<Vec<ServiceStatus>>),
    /// `services revoke-before`
    RevokeBefore(RevokeBeforeRequest, Reply<RevokedBefore>),
    /// `sessions list`, of one service or all, and how many at most
    Sessions(Option<String>, usize, Reply<SessionList>),
    /// `sessions list --revoked`, of one service or all
    Revocations(Option<String>, Reply<Vec<RevocationStatus>>),
    /// `sessions revoke`
    RevokeSessions(RevokeSessionsRequest, Reply<Vec<RevocationStatus>>),
    /// `token revoke`
    RevokeToken(RevokeTokenRequest, Reply<RevocationStatus>),
    /// `sessions unrevoke`
    UnrevokeSessions(UnrevokeSessionsRequest, Reply<Vec<RevocationStatus>>),
    /// `token unrevoke`
    UnrevokeToken(RevokeTokenRequest, Reply<RevocationStatus>),
    /// `clock`
    Clock(Reply<ClockStatus>),
    /// `clock accept`
    AcceptClock(Reply<ClockAccepted>),
    /// What filters once the daemon has ended
    Remaining(Reply<Remaining>),
}

/// A command, and what the log is to say of who asked.
pub struct Asked {
    /// What is asked.
    pub command: Command,
    /// In which it is done.
    pub span: Span,
}

/// Asks the loop.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Asked>);

impl Handle {
    /// A handle, and what [`Controller::run`] reads.
    pub fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self(sender), receiver)
    }

    /// Sends the command that `make` makes of a reply's address, and waits for the answer.
    ///
    /// # Errors
    /// The loop's, or `Ending`.
    pub async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { command: make(reply), span: Span::current() };
        self.0.send(asked).await.map_err(|_| RequestError::Ending)?;
        answer.await.map_err(|_| RequestError::Ending)?
    }
}

/// Whoever asked may have gone; then nobody needs the answer.
fn reply<T>(to: Reply<T>, answer: Result<T, RequestError>) {
    let _ = to.send(answer);
}

impl Controller {
    pub(super) async fn answer(&mut self, command: Command) {
        match command {
            Command::Status(to) => reply(to, self.status()),
            Command::Counters(service, to) => reply(to, self.counters(service.as_deref())),
            Command::Metrics(to) => reply(to, self.metrics()),
            Command::Keys(to) => reply(to, Ok(self.key_list())),
            Command::Remaining(to) => reply(to, Ok(self.remaining())),
            Command::Rotate(service, to) => {
                let answer = self.rotate(service.as_deref()).await;
                reply(to, answer);
            }
            Command::Revoke(id, to) => {
                let answer = self.revoke(id).await;
                reply(to, answer);
            }
            Command::Export(service, to) => {
                let answer = self.export(&service).await;
                reply(to, answer);
            }
            Command::Import(keyset, to) => {
                let answer = self.import(&keyset).await;
                reply(to, answer);
            }
            Command::Mint(request, to) => reply(to, self.mint(&request)),
            Command::Inspect(request, to) => reply(to, self.inspect(&request)),
            Command::Backends(service, to) => reply(to, self.backend_list(service.as_deref())),
            Command::Services(to) => reply(to, self.service_list()),
            Command::RevokeBefore(request, to) => {
                let answer = self.revoke_before(&request).await;
                reply(to, answer);
            }
            Command::Sessions(service, limit, to) => {
                reply(to, self.session_list(service.as_deref(), limit));
            }
            Command::Revocations(service, to) => reply(to, self.revocation_list(service.as_deref())),
            Command::RevokeSessions(request, to) => {
                let answer = self.revoke_sessions(&request).await;
                reply(to, answer);
            }
            Command::RevokeToken(request, to) => {
                let answer = self.revoke_token(&request).await;
                reply(to, answer);
            }
            Command::UnrevokeSessions(request, to) => {
                let answer = self.unrevoke_sessions(&request).await;
                reply(to, answer);
            }
            Command::UnrevokeToken(request, to) => {
                let answer = self.unrevoke_token(&request).await;
                reply(to, answer);
            }
            Command::Clock(to) => {
                let answer = self.clock.follow(&self.datapath);
                reply(to, answer.map(|()| self.clock_status()).map_err(RequestError::from));
            }
            Command::AcceptClock(to) => {
                let answer = self.accept_clock().await;
                reply(to, answer);
            }
        }
    }

    /// The services of a request: one by name or id, or all.
    pub(super) fn selected(&self, name: Option<&str>) -> Result<Vec<&Service>, RequestError> {
        match name {
            None => Ok(self.config.services.iter().collect()),
            Some(name) => Ok(vec![self.service(name)?]),
        }
    }

    pub(super) fn service(&self, name: &str) -> Result<&Service, RequestError> {
        Service::find(&self.config.services, name).ok_or_else(|| RequestError::NoSuchService {
            name: name.to_owned(),
            services: self.config.services.iter().map(|service| service.name.clone()).collect(),
        })
    }

    async fn rotate(&mut self, name: Option<&str>) -> Result<Vec<Rotated>, RequestError> {
        let services: Vec<_> =
            self.selected(name)?.into_iter().map(|service| (service.id, service.name.clone())).collect();
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
                previous: rotation.active.map(|id| id.0),
            }
        });
        Ok(rotated.collect())
    }

    async fn revoke(&mut self, id: KeyId) -> Result<Revoked, RequestError> {
        let revocation = keys::change(&mut self.stored, |keyring, now, _| keyring.revoke(id, now)).await?;
        if revocation.was != KeyState::Revoked {
            warn!(key_id = id.0, service_id = revocation.service_id, was = %revocation.was, "key revoked");
        }
        // The kernel first, then a new key where the service has none.
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
            was: revocation.was,
            active_key: self.stored.state().keyring.signer(revocation.service_id).map(|key| key.id.0),
        })
    }

    async fn export(&mut self, name: &str) -> Result<Keyset, RequestError> {
        let service = self.service(name)?;
        let (id, name) = (service.id, service.name.clone());
        let Some(policy) = self.keys.policy(id) else { return Err(RequestError::NoSigner(name)) };
        // Committed before anybody sees it: it promises how long it may be signed with.
        let keyset =
            keys::change(&mut self.stored, |keyring, now, _| Ok(keyring.export(&name, &policy, now))).await?;
        info!(service = name, "keys exported");
        Ok(keyset)
    }

    async fn import(&mut self, keyset: &Keyset) -> Result<ImportReport, RequestError> {
        let id = self.service(&keyset.service_id.to_string())?.id;
        let Some(policy) = self.keys.policy(id) else {
            return Err(RequestError::NoSigner(keyset.service.clone()));
        };
        let imported =
            keys::change(&mut self.stored, |keyring, now, _| keyring.import(keyset, &policy, now)).await?;
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

    /// Brings new keys into the kernel and lets them sign. A slot that rests makes them wait; then the loop goes on
    /// with them.
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

    fn mint(&self, request: &MintRequest) -> Result<Minted, RequestError> {
        let service = self.service(&request.service)?;
        let signer =
            self.stored.state().keyring.signer(service.id).filter(|key| self.keys.is_installed(key.id));
        let signer = signer.ok_or_else(|| RequestError::NoSigner(service.name.clone()))?;
        token::allowed(request, service)?;
        let key = KnownKey::from(signer);
        // What was issued before is revoked: in the second of a revocation, a token is of the next.
        let (now, before) = (unix_now(), self.stored.state().revocations.before(service.id).into());
        if before > now + SKEW {
            return Err(RequestError::RevokedAhead { service: service.name.clone(), before });
        }
        Ok(token::mint(request, &key, now.max(before))?)
    }

    fn inspect(&self, request: &token::InspectRequest) -> Result<Inspection, RequestError> {
        let keys: Vec<KnownKey> = self.stored.state().keyring.keys().map(KnownKey::from).collect();
        let revocations = &self.stored.state().revocations;
        let value = |service| super::desired::value(service, 1, revocations.before(service.id));
        let services: Vec<_> = self.config.services.iter().map(value).collect();
        Ok(token::inspect(request, Some(&keys), &services, Some(revocations), unix_now())?)
    }
}
