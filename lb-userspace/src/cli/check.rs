//! `tollgate check`: the configuration and this host.

use anyhow::bail;
use serde::Serialize;
use tollgate::{
    config::Config,
    control::{self, StartError},
    datapath::{
        DatapathError,
        preflight::{self, Verdict},
    },
};

use super::{ConfigFile, Global, output};

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

/// Checks, prints, and fails if something will not do.
pub fn run(global: &Global, file: &ConfigFile) -> anyhow::Result<()> {
    let config = file.load()?;
    let mut checks = vec![Line {
        name: "configuration".to_owned(),
        verdict: "good",
        found: format!("{}, {} services", file.file.display(), config.services.len()),
        mend: String::new(),
    }];
    checks.extend(config.warnings.iter().map(|warning| Line {
        name: "configuration".to_owned(),
        verdict: "warning",
        found: warning.to_string(),
        mend: String::new(),
    }));
    let host = preflight::checks(&config.bpffs, config.sessions, config.ports_of_nat());
    checks.extend(host.into_iter().map(|check| {
        let verdict = match check.verdict {
            Verdict::Good => "good",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        };
        let mend = if check.verdict == Verdict::Good { String::new() } else { check.mend.into_owned() };
        Line { name: check.name.to_owned(), verdict, found: check.found, mend }
    }));
    checks.extend(interfaces(&config)?);
    let ok = checks.iter().all(|line| line.verdict != "failed");
    output::print(global.output, &Report { ok, checks }, |report| {
        let row = |line: &Line| {
            let found = match line.mend.as_str() {
                "" => line.found.clone(),
                mend => format!("{}; {mend}", line.found),
            };
            vec![line.name.clone(), line.verdict.to_owned(), found]
        };
        output::columns(&["CHECK", "VERDICT", "FOUND"], &report.checks.iter().map(row).collect::<Vec<_>>())
    })?;
    if !ok {
        bail!("not everything will do: see the failed checks");
    }
    Ok(())
}

/// Whether the interfaces are there and free. What their drivers can is known only when the program is attached.
fn interfaces(config: &Config) -> anyhow::Result<Vec<Line>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let line = |name: String, result: Result<(), DatapathError>| Line {
        name: format!("interface {name}"),
        verdict: if result.is_ok() { "good" } else { "failed" },
        found: match result {
            Ok(()) => "there, and no other XDP program on it".to_owned(),
            Err(error) => error.to_string(),
        },
        mend: String::new(),
    };
    Ok(match runtime.block_on(control::check_interfaces(config)) {
        Ok(results) => results.into_iter().map(|(name, result)| line(name, result)).collect(),
        // Without bpffs, which is a line of its own, nobody can say whose program is on an interface.
        Err(StartError::Datapath(_)) => Vec::new(),
        Err(error) => return Err(error.into()),
    })
}
