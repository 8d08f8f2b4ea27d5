//! `tollgate backends`.

use tollgate::protocol::{BackendStatus, ListBackends};

use super::{
    Global,
    output::{self, columns},
};

/// Subcommands.
#[derive(clap::Subcommand)]
pub enum Backends {
    /// List backends, and whether they get sessions
    List {
        /// Only backends of this service, by name or id
        #[arg(long, value_name = "S")]
        service: Option<String>,
    },
}

/// Runs the command.
pub fn run(global: &Global, command: Backends) -> anyhow::Result<()> {
    let Backends::List { service } = command;
    let list = global.client()?.ask(&ListBackends { service })?;
    output::print(global.output, &list, |list| table(&list.items))
}

/// The next hop of a backend that is up.
fn next_hop(backend: &BackendStatus) -> String {
    let unknown = || "?".to_owned();
    let mut shown = format!(
        "up, {} on {}",
        backend.mac.clone().unwrap_or_else(unknown),
        backend.interface.clone().unwrap_or_else(unknown)
    );
    let tags = (!backend.vlan_tags.is_empty()).then(|| format!(", {}", backend.vlan_tags.join(" ")));
    let gateway = backend.gateway.as_ref().map(|gateway| format!(", via {gateway}"));
    let source = backend.source.as_ref().map(|source| format!(", from {source}"));
    let mtu = backend.mtu.map(|mtu| format!(", mtu {mtu}"));
    shown.extend([tags, gateway, source, mtu].into_iter().flatten());
    shown
}

/// The table; `status` shows it, too.
pub fn table(list: &[BackendStatus]) -> Vec<String> {
    let row = |backend: &BackendStatus| {
        vec![
            backend.service.clone(),
            backend.backend_id.to_string(),
            backend.name.clone(),
            backend.address.clone(),
            backend.weight.to_string(),
            backend.packets.to_string(),
            if backend.up { next_hop(backend) } else { format!("{}: {}", backend.state, backend.detail) },
        ]
    };
    let heads = ["SERVICE", "ID", "NAME", "ADDRESS", "WEIGHT", "PACKETS", "STATE"];
    columns(&heads, &list.iter().map(row).collect::<Vec<_>>())
}
