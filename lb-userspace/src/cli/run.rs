//! `tollgate run`: the daemon. When it ends, the XDP program stays attached.

use std::{
    env, io,
    net::TcpListener,
    os::unix::net::{UnixDatagram, UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tollgate::{
    api::{access::Rules, listen, serve, server},
    config::Config,
    control::{Acceptance, Controller, Handle, Readiness, desired},
    datapath::{Pins, preflight},
    protocol::Verdict,
    sandbox::{self, Account},
    store,
};
use tracing::{info, warn};

use super::{Global, signals::Signals};

/// How long the daemon waits for pending answers when it ends.
const ANSWERS_UNDER_WAY: Duration = Duration::from_secs(2);

/// How often the announced state is compared with the readiness.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Log message at SIGHUP.
const HANGUP: &str = "a running daemon does not reload its configuration; restart it to apply a changed \
                      configuration, no valid packet is lost";

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Switch to this user once everything that needs root is open; the user owns the store and the pins
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Accept, for this start, a store that is older than the kernel state, empty, or another one; the error of the
    /// refused start contains the value. Everything revoked in the kernel stays revoked
    #[arg(long, value_name = "FOUND:REMEMBERED:DIGEST")]
    accept_store: Option<Acceptance>,
}

/// Runs the daemon until a signal ends it.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<()> {
    global.log();
    let config = global.load()?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    preflight(&config)?;
    let account = args.user.as_deref().map(Account::find).transpose()?.flatten();
    let pins = Pins::new(&config.bpffs)?;
    let listeners = Listeners::open(&config, account.as_ref())?;
    let pins = match &account {
        Some(account) => {
            sandbox::hand_over(&config, account)?;
            pins.in_working_directory()
        }
        None => pins,
    };
    // Before the first thread: later threads inherit the restrictions.
    sandbox::enter(account.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(daemon(config, pins, listeners, args.accept_store.clone(), global.detach_command()))
}

/// The sockets that the daemon listens on.
struct Listeners {
    control: UnixListener,
    rules: Rules,
    metrics: Option<TcpListener>,
    socket: Socket,
}

impl Listeners {
    /// Opens all sockets, before anything changes in the kernel.
    fn open(config: &Config, account: Option<&Account>) -> anyhow::Result<Self> {
        let user = account.map_or_else(nix::unistd::geteuid, |account| account.uid);
        let rules = Rules::new(config, user.as_raw());
        let control = listen::control(&config.control, rules.name_groups())?;
        let socket = Socket(config.control.clone());
        if let Some(account) = account {
            sandbox::give_socket(&config.control, account)?;
        }
        let metrics = config.metrics.map(listen::metrics).transpose()?;
        Ok(Self { control, rules, metrics, socket })
    }
}

fn preflight(config: &Config) -> anyhow::Result<()> {
    preflight::raise_memlock_limit();
    let checks = preflight::checks(&config.bpffs, &desired::options(config));
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check.verdict == Verdict::Failed)
        .map(|check| format!("{}: {}; {}", check.name, check.found, check.hint))
        .collect();
    if !failed.is_empty() {
        bail!("this host cannot run the XDP program\n  {}", failed.join("\n  "));
    }
    for check in checks.iter().filter(|check| check.verdict == Verdict::Warning) {
        warn!("{}: {}; {}", check.name, check.found, check.hint);
    }
    Ok(())
}

async fn daemon(
    config: Config,
    pins: Pins,
    listeners: Listeners,
    accept_store: Option<Acceptance>,
    detach: String,
) -> anyhow::Result<()> {
    let mut signals = Signals::take()?;
    let Listeners { control, rules, metrics, socket } = listeners;
    let control = tokio::net::UnixListener::from_std(control)?;
    let metrics = metrics.map(tokio::net::TcpListener::from_std).transpose()?;
    let store = store::open(&config.store)?;
    let node = config.node.clone();

    let controller = Controller::start(config, store, pins, accept_store).await?;
    let readiness = controller.readiness();
    let (handle, commands) = Handle::new();
    let mut controller = tokio::spawn(controller.run(commands));
    let (stop, stopped) = oneshot::channel::<()>();
    let router = server::control(handle.clone());
    let control = tokio::spawn(serve::control(control, router, Arc::new(rules), stopped));
    if let Some(metrics) = metrics {
        tokio::spawn(serve::metrics(metrics, server::metrics(handle.clone(), readiness.clone())));
    }
    tokio::spawn(announce(readiness, node));

    tokio::select! {
        signal = signals.end(HANGUP) => info!("{signal}: ending"),
        ended = &mut controller => {
            ended.context("the reconcile loop ended unexpectedly; please report it, and start the daemon again")?;
        }
    }
    log_remaining(&handle, &detach).await;
    notify("STOPPING=1");
    // Pending answers are still sent, for a limited time and until a second signal.
    let _ = stop.send(());
    tokio::select! {
        ended = timeout(ANSWERS_UNDER_WAY, control) => if let Ok(ended) = ended {
            ended.context("the control socket's server")?;
        },
        signal = signals.end(HANGUP) => info!("{signal} again: not waiting for pending answers"),
    }
    drop(socket);
    Ok(())
}

/// Logs on which interfaces the XDP program stays attached without this process. `detach` is the command that
/// detaches it.
async fn log_remaining(handle: &Handle, detach: &str) {
    let Ok(Ok(remaining)) = timeout(ANSWERS_UNDER_WAY, handle.remaining()).await else {
        warn!("the reconcile loop does not answer; `ip link` shows where the XDP program stays attached");
        return;
    };
    if !remaining.filtered.is_empty() {
        info!(
            "the XDP program stays attached to {} and filters by the last published state; remove it with `{detach}`",
            remaining.filtered.join(", ")
        );
    }
    if !remaining.open.is_empty() {
        warn!(
            "NOTHING IS FILTERED on {}: the pin is gone; start the daemon again",
            remaining.open.join(", ")
        );
    }
}

/// The file of the control socket; removed when the daemon ends.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // It cannot be removed where the directory belongs to root and the daemon runs as another user; the next daemon
        // replaces it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Reports changes of the readiness to the log and the service manager.
async fn announce(mut readiness: watch::Receiver<Readiness>, node: String) {
    let mut said = None;
    loop {
        let found = {
            let readiness = readiness.borrow_and_update();
            (readiness.not_filtering().is_empty(), readiness.reasons())
        };
        if said.as_ref() != Some(&found) {
            match (found.0, found.1.join("; ")) {
                (_, all) if all.is_empty() => {
                    info!(node, "ready: filtering");
                    notify("READY=1\nSTATUS=filtering");
                }
                // A missing link or backend must not keep the service manager waiting.
                (true, all) => {
                    warn!(node, "filtering, and not ready for traffic: {all}");
                    notify(&format!("READY=1\nSTATUS=filtering, and not ready for traffic: {all}"));
                }
                (false, all) => {
                    warn!(node, "not ready: {all}");
                    notify(&format!("STATUS=not ready: {all}"));
                }
            }
            said = Some(found);
        }
        // A loop that hangs does not report a change: check again after a while.
        if let Ok(Err(_)) = timeout(LOOK_AGAIN, readiness.changed()).await {
            return;
        }
    }
}

/// Sends one datagram to the service manager, if there is one: sd_notify(3).
fn notify(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    let sent = send(Path::new(&socket), state);
    if let Err(error) = sent {
        warn!("NOTIFY_SOCKET {}: {error}", Path::new(&socket).display());
    }
}

fn send(socket: &Path, state: &str) -> io::Result<()> {
    use std::os::{linux::net::SocketAddrExt as _, unix::ffi::OsStrExt as _, unix::net::SocketAddr};
    let address = match socket.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
