//! `tollgate status`.

use tollgate::protocol::{GetStatus, InterfaceStatus, KeyStatus, ServiceStatus, Status};

use super::{
    Global, backends,
    output::{self, columns, duration},
};

/// Prints the state of the node.
pub fn run(global: &Global) -> anyhow::Result<()> {
    let status = global.client()?.ask(&GetStatus {})?;
    output::print(global.output, &status, table)
}

fn table(status: &Status) -> Vec<String> {
    let mut lines = vec![
        format!(
            "node {}, tollgate {} ({}), process {}, up {}",
            status.node,
            status.version,
            status.commit,
            status.pid,
            duration(status.uptime_seconds)
        ),
        match status.ready {
            true => "ready: filtering".to_owned(),
            false => format!("NOT READY: {}", status.not_ready.join("; ")),
        },
        format!(
            "{} of {} token cache entries, {} of {} stateful entries, {} HMAC verifications, store at revision {}{}",
            status.token_cache_entries,
            status.token_cache_capacity,
            status.stateful_entries,
            status.token_cache_capacity,
            status.hmac_verifications,
            status.store_revision,
            if status.store_connected { "" } else { ", STORE NOT USABLE" }
        ),
        format!(
            "{} sessions and {} tokens revoked, capacity {}",
            status.revocations.sessions, status.revocations.tokens, status.revocations.capacity
        ),
    ];
    let mut section = |title: &str, table: Vec<String>| {
        lines.extend([String::new(), title.to_owned()]);
        lines.extend(table.into_iter().map(|line| format!("  {line}")));
    };
    section("interfaces", interfaces(&status.interfaces));
    section("services", services(&status.services));
    section("keys", keys(&status.keys));
    if !status.backends.is_empty() {
        section("backends", backends::table(&status.backends));
    }
    if !status.differences.is_empty() {
        section("differences between the kernel and the desired state", status.differences.clone());
    }
    if !status.errors.is_empty() {
        section("errors", status.errors.clone());
    }
    lines
}

fn interfaces(interfaces: &[InterfaceStatus]) -> Vec<String> {
    let row = |interface: &InterfaceStatus| {
        let mode = interface.mode.clone().unwrap_or_else(|| "NOT ATTACHED".to_owned());
        vec![interface.name.clone(), mode, interface.program_id.map_or_else(String::new, |id| id.to_string())]
    };
    columns(&["NAME", "MODE", "PROGRAM"], &interfaces.iter().map(row).collect::<Vec<_>>())
}

/// Address and port as in URLs (RFC 3986 §3.2.2).
fn socket_address(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// The table of services; `services list` shows it, too.
pub fn services(services: &[ServiceStatus]) -> Vec<String> {
    let row = |service: &ServiceStatus| {
        vec![
            service.name.clone(),
            service.service_id.to_string(),
            socket_address(&service.address, service.port),
            service.mode.clone(),
            service.forward.clone(),
            service.active_key_id.map_or_else(|| "NONE".to_owned(), |id| id.to_string()),
            format!("{}/{}", service.backends_up, service.backends),
            match service.revoked_before {
                0 => "-".to_owned(),
                before => output::date(before.into()),
            },
        ]
    };
    let heads = ["NAME", "ID", "ADDRESS", "MODE", "FORWARD", "ACTIVE KEY", "BACKENDS UP", "REVOKED BEFORE"];
    columns(&heads, &services.iter().map(row).collect::<Vec<_>>())
}

/// The table of keys; `keys list` shows it, too.
pub fn keys(keys: &[KeyStatus]) -> Vec<String> {
    let row = |key: &KeyStatus| {
        vec![
            key.service.clone(),
            key.key_id.to_string(),
            key.state.to_string(),
            if key.installed { "yes" } else { "no" }.to_owned(),
            output::date(key.created_at),
            key.not_after.map_or_else(|| "-".to_owned(), output::date),
        ]
    };
    let heads = ["SERVICE", "KEY", "STATE", "IN KERNEL", "MADE", "ENDS"];
    columns(&heads, &keys.iter().map(row).collect::<Vec<_>>())
}
