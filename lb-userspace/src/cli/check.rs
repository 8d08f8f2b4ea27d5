//! `tollgate check`: the configuration and this host.

use anyhow::bail;
use serde::Serialize;
use tollgate::datapath::preflight::{self, Verdict};

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
    checks.extend(preflight::checks(&config.bpffs, config.sessions).into_iter().map(|check| {
        let verdict = match check.verdict {
            Verdict::Good => "good",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        };
        let mend = if check.verdict == Verdict::Good { String::new() } else { check.mend.to_owned() };
        Line { name: check.name.to_owned(), verdict, found: check.found, mend }
    }));
    checks.extend(config.interfaces.iter().map(|name| interface(name)));
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

/// Whether an interface is there. What its driver can is known only when the program is attached.
fn interface(name: &str) -> Line {
    let index = nix::net::if_::if_nametoindex(name);
    let (verdict, found, mend) = match index {
        Ok(index) => ("good", format!("number {index}"), ""),
        Err(_) => {
            ("failed", "there is no such interface".to_owned(), "see `ip link`, and correct `interfaces`")
        }
    };
    Line { name: format!("interface {name}"), verdict, found, mend: mend.to_owned() }
}
