//! The figures, as text and as JSON.

use serde::Serialize;

use crate::{rows, veth::Rate};

/// All figures, and where they were measured.
#[derive(Serialize)]
pub struct Report {
    machine: String,
    kernel: String,
    commit: String,
    rows: Vec<Row>,
    veth: Vec<Rate>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    median_ns: u64,
    min_ns: u64,
    empty_ns: u64,
    runs: usize,
    #[serde(skip)]
    goal: Option<u64>,
}

impl Report {
    /// Creates a report from measurements.
    pub fn new(rows: Vec<rows::Row>, veth: Vec<Rate>) -> Self {
        let row = |row: rows::Row| Row {
            name: row.name,
            min_ns: row.samples.iter().copied().min().unwrap_or_default(),
            runs: row.samples.len(),
            median_ns: median(row.samples),
            empty_ns: median(row.empty),
            goal: row.goal,
        };
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cpus = cpu.lines().filter(|line| line.starts_with("processor")).count();
        Self {
            machine: format!(
                "{cpus} CPUs, {}",
                model.map_or("of a model that it does not tell", |(_, name)| name)
            ),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: std::env::var("TOLLGATE_COMMIT").unwrap_or_else(|_| "unknown".to_owned()),
            rows: rows.into_iter().map(row).collect(),
            veth,
        }
    }

    /// The figures as docs/benchmarks.md describes them, and the rates.
    ///
    /// # Errors
    /// Never for integers and names.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// A table on standard output.
    pub fn print(&self) {
        let Self { machine, kernel, commit, .. } = self;
        println!("{machine}; Linux {kernel}; commit {commit}\n");
        println!("nanoseconds per packet   median    min  empty    net   goal");
        for Row { name, median_ns, min_ns, empty_ns, runs: _, goal } in &self.rows {
            let net = median_ns.saturating_sub(*empty_ns);
            let verdict = match goal {
                None => String::new(),
                Some(goal) if net <= *goal => format!("{goal:>7}   reached"),
                Some(goal) => format!("{goal:>7}   missed by {}", net - goal),
            };
            println!("{name:<22} {median_ns:>8} {min_ns:>6} {empty_ns:>6} {net:>6}{verdict}");
        }
        println!("\npackets across a veth pair, frames without skbs, one receiving CPU");
        for rate in &self.veth {
            let [tollgate, empty, sent] =
                [rate.packets_per_second, rate.empty_packets_per_second, rate.sent_to_empty_per_second]
                    .map(|per_second| per_second / 1e6);
            println!(
                "{:<22} {tollgate:.2} M/s; a program that drops all: {empty:.2} of {sent:.2} M/s sent",
                rate.name
            );
        }
        println!("\nmedians of {} runs, the empty program's in turns with each row's", self.runs());
    }

    fn runs(&self) -> usize {
        self.rows.first().map_or(0, |row| row.runs)
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
