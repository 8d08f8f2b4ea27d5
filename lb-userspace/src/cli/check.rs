//! `tollgate check`: the configuration and this host.

use std::{io::ErrorKind, net::TcpListener, os::unix::net::UnixStream};

use anyhow::bail;
use serde::Serialize;
use tollgate::{
    config::{Config, ConfigError, Problem, StoreLocation},
    control::{self, StartError, desired},
    datapath::{
        DatapathError,
        preflight::{self, Check, Verdict},
    },
    network::macs::Accepted,
    store::{Commit, StoreError},
};

use super::{
    Global,
    output::{self, Format},
};

#[derive(Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    verdict: &'static str,
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    mend: String,
}

impl From<Check> for Line {
    fn from(check: Check) -> Self {
        let verdict = match check.verdict {
            Verdict::Good => "good",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        };
        let mend = if check.verdict == Verdict::Good { String::new() } else { check.mend.into_owned() };
        Self { name: check.name.into_owned(), verdict, found: check.found, mend }
    }
}

/// Checks, prints, and fails if something will not do. What keeps it from looking at all is a failed check of the JSON
/// report, too.
pub fn run(global: &Global, enough_descriptors: anyhow::Result<()>) -> anyhow::Result<()> {
    let (checks, error) = match enough_descriptors.and_then(|()| lines(global)) {
        Ok(checks) => (checks, None),
        Err(error) => (failures(global, &error), Some(error)),
    };
    let ok = checks.iter().all(|line| line.verdict != "failed");
    if error.is_none() || global.output == Format::Json {
        output::print(global.output, &Report { ok, checks }, |report| {
            let row = |line: &Line| {
                let found = match line.mend.as_str() {
                    "" => line.found.clone(),
                    mend => format!("{}; {mend}", line.found),
                };
                vec![line.name.clone(), line.verdict.to_owned(), found]
            };
            let rows: Vec<_> = report.checks.iter().map(row).collect();
            output::columns(&["CHECK", "VERDICT", "FOUND"], &rows)
        })?;
    }
    match error {
        Some(error) => Err(error),
        None if ok => Ok(()),
        None => bail!("not everything will do: see the failed checks"),
    }
}

/// What kept the checks from being made, for the JSON report: each problem of a configuration by itself.
fn failures(global: &Global, error: &anyhow::Error) -> Vec<Line> {
    let failed = |name: &str, found, mend| Line { name: name.to_owned(), verdict: "failed", found, mend };
    match error.downcast_ref::<ConfigError>() {
        Some(ConfigError::Invalid(invalid)) => {
            let file = global.file().display();
            let line = |problem: &Problem| {
                let Problem { line, column, message, mend, .. } = problem;
                failed("configuration", format!("{file}:{line}:{column}: {message}"), mend.clone())
            };
            invalid.problems.iter().map(line).collect()
        }
        Some(error) => vec![failed("configuration", error.to_string(), String::new())],
        None => vec![failed("host", format!("{error:#}"), String::new())],
    }
}

fn lines(global: &Global) -> anyhow::Result<Vec<Line>> {
    let config = global.load()?;
    let mut checks = vec![Line {
        name: "configuration".to_owned(),
        verdict: "good",
        found: format!("{}, {} services", global.file().display(), config.services.len()),
        mend: String::new(),
    }];
    checks.extend(config.warnings.iter().map(|warning| Line {
        name: "configuration".to_owned(),
        verdict: "warning",
        found: warning.to_string(),
        mend: String::new(),
    }));
    let host = preflight::checks(&config.bpffs, &desired::options(&config));
    checks.extend(host.into_iter().map(Line::from));
    checks.push(store(&config));
    checks.extend(network(&config)?);
    checks.extend(metrics(&config));
    Ok(checks)
}

/// Whether the interfaces are there and free, what their drivers can do, and whether packets for the services pass the filter.
fn network(config: &Config) -> anyhow::Result<Vec<Line>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let line = |name: String, result: Result<Accepted, DatapathError>| Line {
        name: format!("interface {name}"),
        verdict: if result.is_ok() { "good" } else { "failed" },
        found: match result {
            Ok(accepted) => {
                let macs = accepted.shown().join(", ");
                format!(
                    "there, and no other XDP program on it; destination MAC addresses of services: {macs}"
                )
            }
            Err(error) => error.to_string(),
        },
        mend: String::new(),
    };
    Ok(match runtime.block_on(control::check_host(config)) {
        Ok(checked) => {
            let redirects = checked.redirects.into_iter().map(|redirects| Line {
                name: format!("interface {}", redirects.interface),
                verdict: "warning",
                found: "it takes ICMP redirects, by which a host of its segment leads this host's own packets elsewhere"
                    .to_owned(),
                mend: redirects.mend(),
            });
            let redirects: Vec<_> = redirects.collect();
            let interfaces = checked.interfaces.into_iter().map(|(name, result)| line(name, result));
            let others = checked.drivers.into_iter().chain(checked.services).map(Line::from);
            interfaces.chain(redirects).chain(others).collect()
        }
        // Without bpffs, which is a line of its own, nobody can say whose program is on an interface.
        Err(StartError::Datapath(_)) => Vec::new(),
        Err(error) => return Err(error.into()),
    })
}

/// Whether the daemon could use the store. While it runs, it does.
fn store(config: &Config) -> Line {
    let StoreLocation::File(directory) = &config.store;
    let directory = directory.display();
    let (verdict, found) = if is_running(config) {
        ("good", format!("{directory}, in use by a running daemon"))
    } else {
        match control::check_store(config) {
            Ok(Commit { revision: 0, .. }) => ("good", format!("{directory}, which is empty")),
            Ok(Commit { revision, .. }) => ("good", format!("{directory}, at revision {revision}")),
            Err(StartError::Store(StoreError::Io { action, path, source }))
                if source.kind() == ErrorKind::PermissionDenied =>
            {
                ("warning", format!("this user cannot {action} {}: {source}", path.display()))
            }
            Err(StartError::Datapath(error)) if !matches!(error, DatapathError::Layout { .. }) => (
                "warning",
                format!("{directory}; whether it continues from the kernel state is not known: {error}"),
            ),
            Err(error) => ("failed", error.to_string()),
        }
    };
    Line { name: "store".to_owned(), verdict, found, mend: String::new() }
}

fn is_running(config: &Config) -> bool {
    UnixStream::connect(&config.control).is_ok()
}

/// Whether metrics can be served. While the daemon runs, they are, by it.
fn metrics(config: &Config) -> Option<Line> {
    let address = config.metrics?;
    let running = is_running(config);
    let (verdict, found, mend) = match TcpListener::bind(address) {
        Ok(_) => ("good", format!("{address}, which is free"), ""),
        Err(_) if running => ("good", format!("{address}, while a daemon runs"), ""),
        Err(error) => ("failed", format!("{address}: {error}"), "see `ss -ltnp`, or set another `metrics`"),
    };
    Some(Line { name: "metrics".to_owned(), verdict, found, mend: mend.to_owned() })
}
