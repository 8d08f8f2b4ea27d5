//! `tollgate check`: the configuration and this host.

use std::{io::ErrorKind, net::TcpListener, os::unix::net::UnixStream};

use anyhow::bail;
use tollgate::{
    config::{Config, ConfigError, Problem, StoreLocation, Warning},
    control::{self, StartError, desired},
    datapath::{
        DatapathError,
        preflight::{self, Check},
    },
    network::{macs::Accepted, redirects::Redirects},
    protocol::{CheckReport, CheckResult, Verdict},
    store::{Commit, StoreError},
};

use super::{
    Global,
    output::{self, Format},
};

fn result(name: &str, verdict: Verdict, found: String, hint: &str) -> CheckResult {
    CheckResult { name: name.to_owned(), verdict, found, hint: hint.to_owned() }
}

fn result_of(check: &Check) -> CheckResult {
    let hint = if check.verdict == Verdict::Ok { "" } else { &check.hint };
    result(&check.name, check.verdict, check.found.clone(), hint)
}

/// Runs the checks and prints them; fails if one has failed. An error that keeps the checks from being made is a failed
/// check of the JSON report.
pub fn run(global: &Global, enough_descriptors: anyhow::Result<()>) -> anyhow::Result<()> {
    let (checks, error) = match enough_descriptors.and_then(|()| checks(global)) {
        Ok(checks) => (checks, None),
        Err(error) => (failures(global, &error), Some(error)),
    };
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Failed).count();
    if error.is_none() || global.output == Format::Json {
        output::print(global.output, &CheckReport { ok: failed == 0, checks }, |report| {
            let row = |check: &CheckResult| {
                let found = match check.hint.as_str() {
                    "" => check.found.clone(),
                    hint => format!("{}; {hint}", check.found),
                };
                vec![check.name.clone(), check.verdict.name().to_owned(), found]
            };
            let rows: Vec<_> = report.checks.iter().map(row).collect();
            output::columns(&["CHECK", "VERDICT", "FOUND"], &rows)
        })?;
    }
    match error {
        Some(error) => Err(error),
        None if failed == 0 => Ok(()),
        None => bail!("{failed} {} failed", if failed == 1 { "check" } else { "checks" }),
    }
}

/// An error that kept the checks from being made, for the JSON report: one check for each problem of the configuration.
fn failures(global: &Global, error: &anyhow::Error) -> Vec<CheckResult> {
    let failed = |name: &str, found, hint: &str| result(name, Verdict::Failed, found, hint);
    match error.downcast_ref::<ConfigError>() {
        Some(ConfigError::Invalid(invalid)) => {
            let file = global.file().display();
            let line = |problem: &Problem| {
                let Problem { line, column, message, hint, .. } = problem;
                failed("configuration", format!("{file}:{line}:{column}: {message}"), hint)
            };
            invalid.problems.iter().map(line).collect()
        }
        Some(error) => vec![failed("configuration", error.to_string(), "")],
        None => vec![failed("host", format!("{error:#}"), "")],
    }
}

fn checks(global: &Global) -> anyhow::Result<Vec<CheckResult>> {
    let config = global.load()?;
    let found = format!("{}, {} services", global.file().display(), config.services.len());
    let mut checks = vec![result("configuration", Verdict::Ok, found, "")];
    let warning = |warning: &Warning| result("configuration", Verdict::Warning, warning.to_string(), "");
    checks.extend(config.warnings.iter().map(warning));
    let host = preflight::checks(&config.bpffs, &desired::options(&config));
    checks.extend(host.iter().map(result_of));
    checks.push(store(&config));
    checks.extend(network(&config)?);
    checks.extend(metrics(&config));
    Ok(checks)
}

/// Whether the interfaces exist and are free, what their drivers support, and whether packets of the services reach the
/// filter.
fn network(config: &Config) -> anyhow::Result<Vec<CheckResult>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let interface = |(name, attachable): (String, Result<Accepted, DatapathError>)| {
        let (verdict, found) = match attachable {
            Ok(accepted) => {
                let macs = accepted.shown().join(", ");
                let found = format!(
                    "exists, without another XDP program; destination MAC addresses of services: {macs}"
                );
                (Verdict::Ok, found)
            }
            Err(error) => (Verdict::Failed, error.to_string()),
        };
        result(&format!("interface {name}"), verdict, found, "")
    };
    let redirects = |redirects: Redirects| {
        let found =
            "accepts ICMP redirects, with which a host of its segment can divert packets of this host";
        let name = format!("interface {}", redirects.interface);
        result(&name, Verdict::Warning, found.to_owned(), &redirects.hint())
    };
    Ok(match runtime.block_on(control::check_host(config)) {
        Ok(checked) => {
            let interfaces = checked.interfaces.into_iter().map(interface);
            let redirects = checked.redirects.into_iter().map(redirects);
            let others = checked.drivers.iter().chain(&checked.services).map(result_of);
            interfaces.chain(redirects).chain(others).collect()
        }
        // Without bpffs, which has its own check, the owner of a program on an interface is unknown.
        Err(StartError::Datapath(_)) => Vec::new(),
        Err(error) => return Err(error.into()),
    })
}

/// Whether the daemon could use the store; a running daemon does.
fn store(config: &Config) -> CheckResult {
    let StoreLocation::File(directory) = &config.store;
    let directory = directory.display();
    let (verdict, found) = if is_running(config) {
        (Verdict::Ok, format!("{directory}, in use by a running daemon"))
    } else {
        match control::check_store(config) {
            Ok(Commit { revision: 0, .. }) => (Verdict::Ok, format!("{directory}, empty")),
            Ok(Commit { revision, .. }) => (Verdict::Ok, format!("{directory}, at revision {revision}")),
            Err(StartError::Store(StoreError::Io { action, path, source }))
                if source.kind() == ErrorKind::PermissionDenied =>
            {
                (Verdict::Warning, format!("this user cannot {action} {}: {source}", path.display()))
            }
            Err(StartError::Datapath(error)) if !matches!(error, DatapathError::Layout { .. }) => (
                Verdict::Warning,
                format!("{directory}; unknown whether it continues from the kernel state: {error}"),
            ),
            Err(error) => (Verdict::Failed, error.to_string()),
        }
    };
    result("store", verdict, found, "")
}

fn is_running(config: &Config) -> bool {
    UnixStream::connect(&config.control).is_ok()
}

/// Whether metrics can be served; a running daemon serves them.
fn metrics(config: &Config) -> Option<CheckResult> {
    let address = config.metrics?;
    let running = is_running(config);
    let (verdict, found, hint) = match TcpListener::bind(address) {
        Ok(_) => (Verdict::Ok, format!("{address}, free"), ""),
        Err(_) if running => (Verdict::Ok, format!("{address}, in use by a running daemon"), ""),
        Err(error) => {
            (Verdict::Failed, format!("{address}: {error}"), "see `ss -ltnp`, or set another `metrics`")
        }
    };
    Some(result("metrics", verdict, found, hint))
}
