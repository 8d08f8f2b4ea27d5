//! `tollgate backends`.

use tollgate::protocol::{BackendStatus, ListBackends};

use super::{
    Global,
    output::{self, columns},
};

/// What to do.
#[derive(clap::Subcommand)]
pub enum Backends {
    /// All backends, and whether they get sessions
    List {
        /// Only this service's, by name or id
        #[arg(long, value_name = "S")]
        service: Option<String>,
    },
}

/// Does it.
pub fn run(global: &Global, command: Backends) -> anyhow::Result<()> {
    let Backends::List { service } = command;
    let list = global.client()?.ask(&ListBackends { service })?;
    output::print(global.output, &list, |list| table(list))
}

/// The way to one that is up, from this host's end on.
fn way(backend: &BackendStatus) -> String {
    let unknown = || "?".to_owned();
    let mut way = format!(
        "up, {} on {}",
        backend.mac.clone().unwrap_or_else(unknown),
        backend.interface.clone().unwrap_or_else(unknown)
    );
    let tags = (!backend.tags.is_empty()).then(|| format!(", {}", backend.tags.join(" ")));
    let gateway = backend.gateway.as_ref().map(|gateway| format!(", by {gateway}"));
    let source = backend.source.as_ref().map(|source| format!(", from {source}"));
    let mtu = backend.mtu.map(|mtu| format!(", mtu {mtu}"));
    way.extend([tags, gateway, source, mtu].into_iter().flatten());
    way
}

/// Also of `status`.
pub fn table(list: &[BackendStatus]) -> Vec<String> {
    let row = |backend: &BackendStatus| {
        vec![
            backend.service.clone(),
            backend.id.to_string(),
            backend.name.clone(),
            backend.address.clone(),
            backend.weight.to_string(),
            backend.packets.to_string(),
            if backend.up { way(backend) } else { format!("{}: {}", backend.state, backend.detail) },
        ]
    };
    let heads = ["SERVICE", "ID", "NAME", "ADDRESS", "WEIGHT", "PACKETS", "STATE"];
    columns(&heads, &list.iter().map(row).collect::<Vec<_>>())
}
