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
    datapath::{
        Pins,
        preflight::{self, Verdict},
    },
    sandbox::{self, Account},
    store,
};
use tracing::{info, warn};

use super::{Global, signals::Signals};

/// How long answers may take once the daemon ends.
const ANSWERS_UNDER_WAY: Duration = Duration::from_secs(2);

/// How often it is looked whether the loop still looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is logged at SIGHUP.
const HANGUP: &str = "a running daemon does not read its configuration again; restart it to apply a changed \
                      configuration, no valid packet is lost";

/// As whom.
#[derive(clap::Args)]
pub struct Args {
    /// Become this user once everything is open that takes root, and own the store and the pins as it
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Accept once a store that is older than the kernel state, empty or another one; the error of the refused start names the
    /// value. What the kernel has revoked stays revoked
    #[arg(long, value_name = "FOUND:REMEMBERED:DIGEST")]
    accept_store: Option<Acceptance>,
}

/// Runs until it is told to end.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<()> {
    global.log();
    let config = global.load()?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    preflight(&config)?;
    let account = args.user.as_deref().map(Account::find).transpose()?.flatten();
    let pins = Pins::new(&config.bpffs)?;
    let doors = Doors::open(&config, account.as_ref())?;
    let pins = match &account {
        Some(account) => {
            sandbox::hand_over(&config, account)?;
            pins.in_working_directory()
        }
        None => pins,
    };
    // Before the first thread: what is given up is given up by those that come after.
    sandbox::enter(account.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(daemon(config, pins, doors, args.accept_store.clone(), global.detach_command()))
}

/// What others reach the daemon by.
struct Doors {
    control: UnixListener,
    rules: Rules,
    metrics: Option<TcpListener>,
    socket: Socket,
}

impl Doors {
    /// Before anything changes in the kernel, everything that can be refused is asked for.
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
        .map(|check| format!("{}: {}; {}", check.name, check.found, check.mend))
        .collect();
    if !failed.is_empty() {
        bail!("this host cannot run the data path\n  {}", failed.join("\n  "));
    }
    for check in checks.iter().filter(|check| check.verdict == Verdict::Warning) {
        warn!("{}: {}; {}", check.name, check.found, check.mend);
    }
    Ok(())
}

async fn daemon(
    config: Config,
    pins: Pins,
    doors: Doors,
    accept_store: Option<Acceptance>,
    detach: String,
) -> anyhow::Result<()> {
    let mut signals = Signals::take()?;
    let Doors { control, rules, metrics, socket } = doors;
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
            ended.context("the control loop ended by itself: please report it, and start it again")?;
        }
    }
    say_what_stays(&handle, &detach).await;
    notify("STOPPING=1");
    // Answers under way are still given; whoever does not read them is not waited for, nor is anybody after a second
    // signal.
    let _ = stop.send(());
    tokio::select! {
        ended = timeout(ANSWERS_UNDER_WAY, control) => if let Ok(ended) = ended {
            ended.context("the control socket's server")?;
        },
        signal = signals.end(HANGUP) => info!("{signal} again: answers under way are not waited for"),
    }
    drop(socket);
    Ok(())
}

/// Logs which interfaces the XDP program stays attached to without this process, and which it does not. `detach` is the
/// command that removes it.
async fn say_what_stays(handle: &Handle, detach: &str) {
    let Ok(Ok(remaining)) = timeout(ANSWERS_UNDER_WAY, handle.remaining()).await else {
        warn!("the control loop does not answer: `ip link` shows where the XDP program stays attached");
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

/// The control socket's file, which goes with the daemon, however that ends.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // If it cannot be removed, as where its directory is root's and the daemon is not, the next one replaces it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Tells the log and the service manager when it filters, and when it does not any more.
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
                // A cable or a backend that is missing keeps no service manager waiting.
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
        // That nobody looks any more is no change that anybody tells.
        if let Ok(Err(_)) = timeout(LOOK_AGAIN, readiness.changed()).await {
            return;
        }
    }
}

/// sd_notify(3): one datagram to the service manager, if there is one.
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
