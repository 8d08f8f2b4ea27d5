//! `tollgate decap`: removes outer headers on the host of a backend, in the foreground.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, bail};
use lb_common::decap::Outcome;
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};
use tokio::time::interval;
use tollgate::{
    datapath::{
        decap::{self, Balancers, Decap},
        preflight,
    },
    protocol::{DecapCount, DecapReport},
};
use tracing::info;

use super::{
    Global,
    output::{self, columns},
    signals::Signals,
};

/// How often the interface is checked and the counters are shown.
const TICK: Duration = Duration::from_secs(1);

/// Log message at SIGHUP.
const HANGUP: &str = "the program stays on the interface; SIGTERM or SIGINT takes it off";

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Interface that receives the packets of the balancers
    #[arg(short, long, value_name = "IFACE")]
    interface: String,
    /// Addresses and prefixes that the packets of the balancers come from
    #[arg(long, value_name = "ADDR[/LEN]", required = true, value_delimiter = ',')]
    from: Vec<Balancers>,
}

/// Removes outer headers until a signal ends it; then prints the counters.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<()> {
    global.log();
    preflight::raise_memlock_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(until_told(args))?;
    output::print(global.output, &report, table)
}

async fn until_told(args: &Args) -> anyhow::Result<DecapReport> {
    let interface = args.interface.as_str();
    let mut signals = Signals::take()?;
    let index = if_nametoindex(interface)
        .with_context(|| format!("there is no interface `{interface}`; `ip link` shows those there are"))?;
    let mut decap = Decap::load(decap::embedded_object()?, mac(interface)?, &args.from)?;
    let mode = decap.attach(interface, index)?.name().to_owned();
    let from: Vec<_> = args.from.iter().map(ToString::to_string).collect();
    info!("{interface} ({mode}): taking off ipip and gue (UDP port 6080) from {}", from.join(", "));

    let mut tick = interval(TICK);
    let ended = loop {
        tokio::select! {
            signal = signals.end(HANGUP) => break Ok(signal),
            _ = tick.tick() => if let Err(error) = look(&mut decap, interface, index) { break Err(error) },
        }
    };
    let counts = decap.counts();
    // Detached before any output.
    drop(decap);
    info!("{}: off {interface}; tunnels' packets go to the host as they come", ended?);
    let outcomes = counts?.into_iter().map(|(outcome, counter)| DecapCount {
        outcome: outcome.name().to_owned(),
        packets: counter.packets,
        bytes: counter.bytes,
        meaning: outcome.meaning().to_owned(),
    });
    Ok(DecapReport { interface: interface.to_owned(), mode, from, outcomes: outcomes.collect() })
}

/// Fails if the interface is gone, and follows a change of its address. On a terminal, shows the counters in one line.
fn look(decap: &mut Decap, interface: &str, index: u32) -> anyhow::Result<()> {
    if if_nametoindex(interface) != Ok(index) {
        bail!("interface `{interface}` is gone, and the program with it; start again when it is back");
    }
    decap.set_mac(mac(interface)?)?;
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        let counts = decap.counts()?;
        let shown = counts.iter().filter(|(outcome, _)| *outcome != Outcome::Internal);
        let shown: Vec<_> =
            shown.map(|(outcome, counter)| format!("{} {}", outcome.name(), counter.packets)).collect();
        // The next line overwrites it; an error of the terminal does not matter.
        let _ = write!(stderr, "\r{}  ", shown.join("  "));
    }
    Ok(())
}

fn mac(interface: &str) -> anyhow::Result<[u8; 6]> {
    let mut addresses = getifaddrs().context("cannot list this host's interfaces")?;
    let mac = addresses.find_map(|found| {
        let is_ours = found.interface_name == interface;
        found.address.filter(|_| is_ours)?.as_link_addr()?.addr()
    });
    match mac {
        Some(mac) if mac != [0; 6] => Ok(mac),
        _ => bail!("interface `{interface}` has no MAC address; use the Ethernet interface below it"),
    }
}

fn table(report: &DecapReport) -> Vec<String> {
    let rows: Vec<_> = report
        .outcomes
        .iter()
        .map(|count| {
            let [packets, bytes] = [count.packets, count.bytes].map(|number| number.to_string());
            vec![count.outcome.clone(), packets, bytes, count.meaning.clone()]
        })
        .collect();
    columns(&["OUTCOME", "PACKETS", "BYTES", "MEANING"], &rows)
}
