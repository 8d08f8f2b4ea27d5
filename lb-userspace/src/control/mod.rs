//! The reconcile loop: makes the kernel equal to the desired state at start, after every change, and every second.
//!
//! Start at [`Controller::run`] and `Controller::round`. `answers` handles requests between two rounds.

mod accept;
mod answers;
mod attachment;
pub mod backends;
mod clock;
pub mod desired;
mod error;
mod handle;
mod indices;
mod keys;
mod lineage;
mod readiness;
mod revocations;
mod stored;
mod tables;

use std::{sync::Arc, time::Duration};

use lb_common::maps;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

pub use answers::{Answers, Checked, MetricsReport, check_host};
pub use attachment::Remaining;
pub use error::{RequestError, StartError};
pub use handle::{Asked, Handle};
pub use lineage::{Acceptance, Mismatch, NoAcceptance, check_store};
pub use readiness::Readiness;

use crate::{
    config::{Config, Forward, Service},
    datapath::{
        BackendOwner, Datapath, DatapathError, LastCommit, Lost, Options, PinLock, Pins, attach,
        embedded_object, preflight::Check,
    },
    keyring::Event,
    network::{Interfaces, Links, Network, NetworkError, exposure, redirects},
    store::Store,
};
use attachment::Attachments;
use backends::Backends;
use clock::Clock;
use indices::Indices;
use keys::{Keys, KeysError};
use readiness::{Found, FoundService};
use stored::Stored;
use tables::Built;

/// How often the kernel is compared with the desired state.
const EVERY: Duration = Duration::from_secs(1);
/// How long the start waits for the first resolution of backends.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);
/// How long changes of the network are collected before a round.
const SETTLE: Duration = Duration::from_millis(50);

/// Keeps the kernel equal to the desired state.
pub struct Controller {
    config: Config,
    datapath: Datapath,
    stored: Stored,
    keys: Keys,
    clock: Clock,
    network: Network,
    interfaces: Interfaces,
    links: Links,
    backends: Backends,
    indices: Indices,
    attachments: Attachments,
    built: Option<Built>,
    outcome: Outcome,
    ready: watch::Sender<Readiness>,
    started_at: Instant,
    store_connected: bool,
    pins: Pins,
    lock: PinLock,
}

/// The result of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    differences: Vec<String>,
    errors: Vec<String>,
    /// When to run the next round, because a write had to wait.
    again_in: Option<Duration>,
}

impl Outcome {
    /// Records a step that failed, and the differences that it leaves.
    fn failed(&mut self, differences: Vec<String>, error: &DatapathError) {
        self.differences.extend(differences);
        match error {
            DatapathError::Grace(left) => self.again_in = Some(*left),
            error => self.errors.push(error.to_string()),
        }
    }
}

impl Controller {
    /// Loads the program, writes clock, keys and tables, then attaches the program to the interfaces. If it fails,
    /// the attachments are as before. A store that the kernel state was not made from is refused, unless
    /// `accept_store` names it.
    ///
    /// # Errors
    /// With the first step that fails.
    pub async fn start(
        config: Config,
        store: Arc<dyn Store>,
        pins: Pins,
        accept_store: Option<Acceptance>,
    ) -> Result<Self, StartError> {
        let lock = pins.lock()?;
        let first_start = pins.is_empty()?;
        let started = Self::bring_up(config, store, &pins, lock, accept_store).await;
        if started.is_err() && first_start {
            pins.remove_all()?;
        }
        started
    }

    async fn bring_up(
        config: Config,
        store: Arc<dyn Store>,
        pins: &Pins,
        lock: PinLock,
        accept_store: Option<Acceptance>,
    ) -> Result<Self, StartError> {
        // First, so that a refusal leaves the kernel state as it was.
        let accepted =
            lineage::verify(&config, &store.snapshot().await?.commit, pins, accept_store.as_ref())?;
        let network = Network::connect()?;
        let (interfaces, links) = network.interfaces().await?;
        let attachments = Attachments::new(&config, pins.clone());
        attachments.check(&interfaces, &links)?;

        let options = Options { pins: Some(pins.clone()), ..desired::options(&config) };
        let datapath = Datapath::load(embedded_object()?, &options)?;
        let mut clock = Clock::default();
        clock.follow(&datapath)?;
        for map in &datapath.made_anew {
            if let Some(lost) = what_was_in(map) {
                warn!(
                    map,
                    "the map starts empty, because its size has changed or its pin was removed: {lost}"
                );
            }
        }
        let memory = LastCommit::open(Some(pins))?;
        let mut stored = Stored::open(store, Box::new(memory)).await?;
        // Before the kernel state changes, and before the commit that it was made from is overwritten.
        if let Some(mismatch) = accepted {
            accept::accept(&mismatch, &mut stored, &datapath).await?;
        }
        stored.remember()?;
        let keys = Keys::new(&config.services);
        let backends = Backends::new(&config, &datapath.tables.active()?);
        let mut controller = Self {
            indices: Indices::read(&datapath)?,
            config,
            datapath,
            stored,
            keys,
            clock,
            network,
            interfaces,
            links,
            backends,
            attachments,
            built: None,
            outcome: Outcome::default(),
            ready: watch::Sender::new(Readiness::found(Found {
                filtering: vec!["starting".to_owned()],
                ..Found::default()
            })),
            started_at: Instant::now(),
            store_connected: true,
            pins: pins.clone(),
            lock,
        };
        controller.first_answers().await?;
        controller.fill().await?;
        let Self { attachments, datapath, interfaces, links, .. } = &mut controller;
        attachments.attach_all(datapath, interfaces, links)?;
        for redirects in redirects::accepted(&attachments.names(), links) {
            warn!("interface {} accepts ICMP redirects: {}", redirects.interface, redirects.hint());
        }
        let Self { config, network, .. } = &controller;
        let filtered = controller.attachments.names();
        // The program is attached: a failure here must not fail the start.
        match exposure::warnings(&config.services, &filtered, network, &controller.links).await {
            Ok(checks) => {
                for Check { name, found, hint, .. } in checks {
                    warn!("{name}: {found}; {hint}");
                }
            }
            Err(error) => warn!("services are not checked for packets that bypass the filter: {error}"),
        }
        controller.round(true).await;
        Ok(controller)
    }

    /// Probes all backends and waits a moment for their answers.
    async fn first_answers(&mut self) -> Result<(), NetworkError> {
        let deadline = Instant::now() + FIRST_ANSWERS;
        let mut ask = true;
        loop {
            self.follow_backends(ask, &mut Outcome::default()).await?;
            ask = false;
            if !self.backends.any_resolving() {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, self.network.changed()).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Writes keys, revocations and tables before the program is attached. A service without a key drops everything:
    /// this is reported and retried. A service that is missing in the tables passes everything: this is an error.
    async fn fill(&mut self) -> Result<(), StartError> {
        tokio::time::sleep(self.datapath.tables.grace_left()).await;
        let mut outcome = Outcome::default();
        self.follow_keys(&mut outcome).await?;
        self.sync_keys(&mut outcome);
        self.confirm_keys().await?;
        self.sync_revocations(&mut outcome);
        self.publish_tables(&mut outcome)?;
        self.conclude(outcome);
        Ok(())
    }

    /// The readiness, as it changes.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.ready.subscribe()
    }

    /// Runs the loop until all [`Handle`]s are dropped.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Asked>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let network = self.network.clone();
        loop {
            let again = Instant::now() + self.outcome.again_in.unwrap_or(EVERY);
            tokio::select! {
                asked = requests.recv() => match asked {
                    Some(asked) => self.serve(asked).await,
                    None => return,
                },
                _ = ticks.tick() => self.round(true).await,
                () = sleep_until(again), if self.outcome.again_in.is_some() => self.round(false).await,
                () = network.changed() => {
                    tokio::time::sleep(SETTLE).await;
                    self.round(false).await;
                }
            }
        }
    }

    /// Compares the kernel with the desired state and corrects the differences. With `ask`, probes backends.
    async fn round(&mut self, ask: bool) {
        let mut outcome = Outcome::default();
        if let Err(error) = self.clock.follow(&self.datapath) {
            outcome.errors.push(error.to_string());
        }
        if let Err(error) = self.follow_keys(&mut outcome).await {
            outcome.errors.push(error.to_string());
        }
        self.sync_keys(&mut outcome);
        if let Err(error) = self.confirm_keys().await {
            outcome.errors.push(error.to_string());
        }
        self.sync_revocations(&mut outcome);
        if let Err(error) = self.stored.remember() {
            outcome.failed(
                vec!["the newest commit of the store is not recorded in the kernel".to_owned()],
                &error,
            );
        }
        match self.network.interfaces().await {
            Ok((interfaces, links)) => (self.interfaces, self.links) = (interfaces, links),
            Err(error) => outcome.errors.push(error.to_string()),
        }
        if let Err(error) = self.follow_backends(ask, &mut outcome).await {
            outcome.errors.push(error.to_string());
        }
        self.sync_tables(&mut outcome);
        // An interface whose MAC addresses are not in the tables drops all packets of services, so pending tables are
        // written first.
        if outcome.again_in.is_none() {
            outcome.errors.extend(self.attachments.repair(&mut self.datapath, &self.interfaces, &self.links));
        }
        outcome.differences.extend(self.attachments.stacked(&self.links));
        self.keep_pins(&mut outcome);
        self.datapath.flush_log();
        self.conclude(outcome);
    }

    /// Restores missing pins, so that filtering does not end with this process.
    fn keep_pins(&mut self, outcome: &mut Outcome) {
        if let Some(Lost { cause, returns }) = self.pins.lost(&self.lock) {
            let ends = format!("filtering ends with this daemon: {cause}");
            match returns.then(|| self.pins.lock_again()) {
                Some(Ok(lock)) => self.lock = lock,
                Some(Err(error)) => return outcome.failed(vec![ends], &error),
                None => {
                    outcome.errors.push(format!(
                        "{ends}; check that a BPF file system is mounted there, and start the daemon again"
                    ));
                    return outcome.differences.push(ends);
                }
            }
        }
        let pinned = self.datapath.pin_maps(&self.pins).and_then(|maps| {
            let links = self.attachments.pin_links()?;
            Ok([maps, links].concat())
        });
        match pinned {
            Ok(anew) if anew.is_empty() => {}
            Ok(anew) => warn!("pins were missing and have been restored: {}", anew.join(", ")),
            Err(error) => {
                outcome.failed(vec!["filtering ends with this daemon: pins are missing".to_owned()], &error);
            }
        }
    }

    /// The interfaces that stay filtered without this process.
    fn remaining(&self) -> Remaining {
        self.attachments.remaining(self.pins.lost(&self.lock).is_some())
    }

    fn conclude(&mut self, outcome: Outcome) {
        for error in outcome.errors.iter().filter(|error| !self.outcome.errors.contains(error)) {
            warn!("{error}");
        }
        if outcome.errors.is_empty() && !self.outcome.errors.is_empty() {
            info!("the kernel is as desired again");
        }
        self.outcome = outcome;
        let found = self.find();
        self.ready.send_if_modified(|before| {
            let changed = before.differs(&found);
            *before = Readiness::found(found);
            changed
        });
    }

    /// Rotates and ends keys that are due.
    async fn follow_keys(&mut self, outcome: &mut Outcome) -> Result<(), KeysError> {
        let ticked = self.keys.tick(&mut self.stored).await;
        self.store_connected = !matches!(ticked, Err(KeysError::Store(_)));
        for event in ticked? {
            match event {
                Event::Staged { service_id, key_id } => info!(service_id, key_id = key_id.0, "key made"),
                Event::Ended { service_id, key_id } => info!(service_id, key_id = key_id.0, "key ended"),
                Event::Blocked { service_id, error } => {
                    outcome.errors.push(format!("service {service_id} cannot get a new key: {error}"));
                }
            }
        }
        Ok(())
    }

    fn sync_keys(&mut self, outcome: &mut Outcome) {
        match self.keys.sync(&self.stored, &mut self.datapath.key_slots) {
            Ok(report) => {
                for difference in &report.differences {
                    debug!("{difference}");
                }
                for error in &report.errors {
                    outcome.failed(Vec::new(), error);
                }
                if !report.errors.is_empty() {
                    outcome.differences.extend(report.differences);
                }
            }
            Err(error) => outcome.failed(vec!["the keys cannot be compared".to_owned()], &error),
        }
    }

    /// Activates staged keys that the kernel has.
    async fn confirm_keys(&mut self) -> Result<(), KeysError> {
        for id in self.keys.confirm(&mut self.stored).await? {
            info!(key_id = id.0, "key is active");
        }
        Ok(())
    }

    async fn follow_backends(&mut self, ask: bool, outcome: &mut Outcome) -> Result<(), NetworkError> {
        let filtered = self.attachments.names();
        let (changes, errors) =
            self.backends.refresh(&self.network, &self.interfaces, &filtered, ask).await?;
        outcome.errors.extend(errors.iter().map(ToString::to_string));
        for change in changes {
            let BackendOwner { service_id, backend_id } = change.backend;
            let service = self.config.services.iter().find(|service| service.id == service_id);
            let service = service.map_or("", |service| service.name.as_str());
            if change.state.is_up() {
                info!(service, backend = backend_id, "backend up");
            } else {
                warn!(service, backend = backend_id, "backend not used: {}", change.state);
            }
        }
        Ok(())
    }

    /// Computes the readiness, service by service.
    fn find(&self) -> Found {
        let mut filtering = Vec::new();
        filtering.extend(self.clock.not_ready());
        filtering.extend(self.attachments.missing(&self.interfaces));
        // A write that was deferred is done within milliseconds.
        if self.outcome.again_in.is_none() {
            filtering.extend(self.outcome.differences.iter().map(|what| format!("not as desired: {what}")));
        }
        let services = self.config.services.iter();
        Found {
            filtering,
            interfaces: self.attachments.down(&self.interfaces),
            services: services.map(|service| (service.name.clone(), self.find_service(service))).collect(),
        }
    }

    fn find_service(&self, Service { id, name, forward, .. }: &Service) -> FoundService {
        let signer = self.stored.state().keyring.signer(*id);
        let has_key = signer.is_some_and(|key| self.keys.is_installed(key.id));
        // A local service needs no backend.
        let has_backend = *forward == Forward::Local || self.backends.up(*id).next().is_some();
        FoundService {
            key: (!has_key).then(|| format!("service {name} has no active key in the kernel")),
            backends: (!has_backend).then(|| {
                format!("service {name} has no backend that can be used: see `tollgate backends list`")
            }),
        }
    }
}

/// Detaches the program from all interfaces and removes all pins. Returns the interfaces.
///
/// # Errors
/// If a daemon is running, or a pin cannot be removed.
pub fn detach(config: &Config) -> Result<Vec<String>, DatapathError> {
    let pins = Pins::new(&config.bpffs)?;
    if !pins.exist()? {
        return Ok(Vec::new());
    }
    let _lock = pins.lock()?;
    let interfaces = pins.links()?.into_iter().map(|pin| pin.interface).collect();
    pins.remove_all()?;
    Ok(interfaces)
}

/// The consequence of losing the content of a map; `None` if it is written again from the store.
fn what_was_in(map: &str) -> Option<&'static str> {
    match map {
        maps::SESSIONS => Some("the HMAC of BEARER tokens without limits is verified once more"),
        maps::STATEFUL => Some("replay windows and limits start anew"),
        maps::FLOWS => Some("ICMP errors reach the backend of a session once its client has sent a packet"),
        maps::TRANSLATIONS => Some("clients of services with forward = \"nat\" get other ports"),
        maps::COUNTERS | maps::BACKEND_COUNTERS => Some("its counters start at zero"),
        _ => None,
    }
}

/// The name of a program that was not attached by this daemon, for messages.
fn program_name(id: u32) -> String {
    attach::program_name(id).filter(|name| !name.is_empty()).unwrap_or_else(|| "without a name".to_owned())
}
