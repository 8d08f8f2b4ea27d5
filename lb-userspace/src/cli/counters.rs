//! `tollgate counters`.

use tollgate::protocol::{Count, CounterReport, GetCounters};

use super::{
    Global,
    output::{self, columns},
};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Only counters of this service, by name or id
    #[arg(long, value_name = "S")]
    service: Option<String>,
}

/// Prints the counters of the XDP program.
pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    let report = global.client()?.ask(&GetCounters { service: args.service })?;
    output::print(global.output, &report, table)
}

fn table(report: &CounterReport) -> Vec<String> {
    let row = |service: &str, reason: &str, count: &Count| {
        vec![service.to_owned(), reason.to_owned(), count.packets.to_string(), count.bytes.to_string()]
    };
    let mut rows = Vec::new();
    for service in &report.services {
        let counted = service.reasons.iter().filter(|one| one.count.packets > 0);
        rows.extend(counted.map(|one| row(&service.service, &one.reason, &one.count)));
    }
    rows.push(row("-", "not_ours", &report.not_ours));
    for (reason, count) in
        [("unsupported", &report.too_many_vlan_tags), ("tables_changed", &report.tables_changed)]
    {
        if count.packets > 0 {
            rows.push(row("-", reason, count));
        }
    }
    columns(&["SERVICE", "REASON", "PACKETS", "BYTES"], &rows)
}
