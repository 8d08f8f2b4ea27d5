//! The tables of docs/configuration.md and docs/metrics.md are generated from the code: this test fails if they differ.

use std::{fmt::Display, path::Path};

use anyhow::{Context as _, Result, ensure};
use tollgate::{
    api::{Metric, MetricKind},
    config::{Backend, Config, FieldDoc, Service},
};

/// Set to 1, this variable makes the tests write the tables into the pages instead of comparing them.
const UPDATE: &str = "UPDATE_TABLES";

/// Compares the tables of a page with these rows; a table is found by its first heading.
fn compare(page: &str, tables: &[(&str, Vec<String>)]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&path).with_context(|| page.to_owned())?;
    let mut wanted = text.clone();
    for (heading, rows) in tables {
        let start = format!("\n| {heading} | ");
        let at =
            wanted.find(&start).with_context(|| format!("{page} has no table that begins with {heading}"))?
                + 1;
        let (before, rest) = wanted.split_at(at);
        let head: String = rest.split_inclusive('\n').take(2).collect();
        let after: String = rest.split_inclusive('\n').skip_while(|line| line.starts_with('|')).collect();
        wanted = format!("{before}{head}{}{after}", rows.concat());
    }
    if std::env::var_os(UPDATE).is_some_and(|value| value == "1") {
        return std::fs::write(&path, wanted).with_context(|| page.to_owned());
    }
    let differs = wanted.lines().zip(text.lines()).find(|(made, shown)| made != shown);
    ensure!(
        wanted == text,
        "{page} differs from the code, from {differs:?} on: run this test with {UPDATE}=1"
    );
    Ok(())
}

fn row(cells: [&dyn Display; 3]) -> String {
    let [first, second, third] = cells;
    format!("| {first} | {second} | {third} |\n")
}

#[test]
fn configuration() -> Result<()> {
    let rows = |fields: &[FieldDoc]| {
        let row = |field: &FieldDoc| row([&format!("`{}`", field.name), &field.absent, &field.meaning]);
        fields.iter().map(row).collect()
    };
    let tables = [
        ("field", rows(Config::FIELDS)),
        ("`[[service]]`", rows(Service::FIELDS)),
        ("`[[service.backend]]`", rows(Backend::FIELDS)),
    ];
    compare("configuration.md", &tables)
}

#[test]
fn metrics() -> Result<()> {
    let row = |metric: &Metric| {
        let Metric { name, kind, labels, help, details } = metric;
        let suffix = if *kind == MetricKind::Counter { "_total" } else { "" };
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let meaning = if details.is_empty() { format!("{help}.") } else { format!("{help}. {details}.") };
        row([&format!("`{name}{suffix}`"), &labels.join(", "), &meaning])
    };
    compare("metrics.md", &[("metric", Metric::ALL.iter().map(row).collect())])
}
