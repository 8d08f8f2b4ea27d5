//! The figures in README.md, docs/benchmarks.md and docs/security.md come from one recorded run of the benchmark,
//! `docs/benchmarks.json`. The test fails if a page differs from it.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

/// Set to 1, this variable makes the test write the figures into the pages instead of comparing them.
const UPDATE: &str = "UPDATE_FIGURES";

/// The output of `cargo xtask bench --json`.
#[derive(Deserialize)]
struct Run {
    machine: String,
    kernel: String,
    commit: String,
    rows: Vec<Row>,
    veth: Vec<Rate>,
}

/// One row of the benchmark, nanoseconds per packet.
#[derive(Deserialize)]
struct Row {
    name: String,
    median_ns: u64,
    min_ns: u64,
    /// Time of an empty XDP program, measured alternately with the row.
    empty_ns: u64,
    runs: usize,
}

impl Row {
    /// The cost of the program above that of an empty one, nanoseconds.
    fn net_ns(&self) -> u64 {
        self.median_ns.saturating_sub(self.empty_ns)
    }
}

/// A flood across a veth pair.
#[derive(Deserialize)]
struct Rate {
    name: String,
    packets_per_second: f64,
    empty_packets_per_second: f64,
    sent_to_empty_per_second: f64,
}

/// The description of each row. A row that is missing here or in the record is an error.
const ROWS: [(&str, &str); 35] = [
    ("not_ours", "a datagram that is for no service"),
    ("no_token", "a datagram for a service, without a token"),
    ("bad_header", "an invalid token header"),
    ("unknown_key", "a key ID that is not in the kernel"),
    ("expired", "an expired token"),
    ("bad_fast_tag", "a forged token: wrong fast tag"),
    ("bad_full_tag", "a valid fast tag and a wrong full tag: one HMAC"),
    ("cached_l2", "a cached token, forwarded by `l2`"),
    ("cached_l2_strip", "a cached token, `l2`, token header removed"),
    ("cached_l2_strip_v6", "a cached token, `l2`, token header removed, IPv6"),
    ("first_packet", "a new token: HMAC, unsealing, inserts into token cache and flow table"),
    ("live_1", "packets of 1 cached token"),
    ("live_1000", "packets of 1,000 cached tokens in random order"),
    ("live_100000", "packets of 100,000 cached tokens in random order"),
    ("live_1000000", "packets of 1,000,000 cached tokens in random order (cache of 2^20 entries)"),
    ("proof_cached_l2", "new PROOF packets of a cached token, forwarded by `l2`"),
    ("stale_proof", "a copied PROOF packet, sent more than 5 s later"),
    ("bad_proof", "a copied PROOF header with a forged proof"),
    ("replay", "a copied PROOF packet"),
    ("cached_local_v4", "a cached token, `local`"),
    ("cached_local_v6", "a cached token, `local`, IPv6"),
    ("cached_l2_v4", "a cached token, `l2`"),
    ("cached_l2_v6", "a cached token, `l2`, IPv6"),
    ("cached_l2_v4_1_tag", "a cached token, `l2`, one VLAN tag"),
    ("cached_l2_v4_2_tags", "a cached token, `l2`, two VLAN tags"),
    ("cached_ipip_v4", "a cached token, `ipip`"),
    ("cached_ipip_v6", "a cached token, `ipip`, IPv6"),
    ("cached_ipip_v4_in_v6", "a cached token, `ipip`, IPv4 inside IPv6"),
    ("cached_ipip_strip_v4", "a cached token, `ipip`, token header removed"),
    ("cached_gue_v4", "a cached token, `gue`"),
    ("cached_gue_v6", "a cached token, `gue`, IPv6"),
    ("cached_nat_v4", "a cached token, `nat`"),
    ("cached_nat_v6", "a cached token, `nat`, IPv6"),
    ("nat_reply_v4", "a backend's reply, `nat`"),
    ("nat_reply_v6", "a backend's reply, `nat`, IPv6"),
];

/// The cost of junk, in the order of the checks.
const JUNK: [(&str, &str); 9] = [
    ("no_token", "no token: another first byte, or too short"),
    ("bad_header", "an invalid token header"),
    ("unknown_key", "a key ID that is not in the kernel"),
    ("expired", "an expired token"),
    ("bad_fast_tag", "a forged header with a valid key ID"),
    ("stale_proof", "a copied PROOF packet, sent more than 5 s later"),
    ("bad_proof", "a copied PROOF header with a forged proof"),
    ("replay", "a copied PROOF packet"),
    ("bad_full_tag", "a forged full tag with a valid fast tag: only holders of the fast key can make it"),
];

/// The rows of README.md.
const SUMMARY: [(&str, &str); 6] = [
    ("no_token", "no token: dropped"),
    ("bad_fast_tag", "a forged token: dropped"),
    ("cached_l2", "a cached token: forwarded"),
    ("cached_ipip_v4", "a cached token: forwarded through an IPIP tunnel"),
    ("proof_cached_l2", "a cached token with a proof in each packet: forwarded"),
    ("first_packet", "the first packet of a token: verified by HMAC-SHA-256, forwarded"),
];

const BEGIN: &str =
    "<!-- figures: from docs/benchmarks.json, written by `UPDATE_FIGURES=1 cargo test --test figures` -->\n";
const END: &str = "<!-- end of figures -->";

#[test]
fn pages_show_the_recorded_figures() -> Result<()> {
    let run: Run = serde_json::from_str(&read("docs/benchmarks.json")?).context("docs/benchmarks.json")?;
    for (page, figures) in [
        ("README.md", summary(&run)?),
        ("docs/benchmarks.md", table(&run)?),
        ("docs/security.md", junk(&run)?),
    ] {
        let text = read(page)?;
        let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{page} has no line {BEGIN}"))?;
        let (_, after) = rest.split_once(END).with_context(|| format!("{page} has no line {END}"))?;
        let wanted = format!("{before}{BEGIN}{figures}{END}{after}");
        if std::env::var_os(UPDATE).is_some_and(|value| value == "1") {
            std::fs::write(path(page), wanted).with_context(|| page.to_owned())?;
            continue;
        }
        let differs = wanted.lines().zip(text.lines()).find(|(recorded, shown)| recorded != shown);
        ensure!(
            text == wanted,
            "{page} differs from docs/benchmarks.json, first at {differs:?}: run this test with {UPDATE}=1"
        );
    }
    Ok(())
}

fn path(page: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(page)
}

fn read(page: &str) -> Result<String> {
    std::fs::read_to_string(path(page)).with_context(|| page.to_owned())
}

/// A recorded row.
fn row<'a>(run: &'a Run, name: &str) -> Result<&'a Row> {
    run.rows
        .iter()
        .find(|row| row.name == name)
        .with_context(|| format!("docs/benchmarks.json has no row {name}"))
}

/// The machine, kernel and commit of the figures.
fn provenance(run: &Run) -> Result<String> {
    let Run { machine, kernel, commit, rows, .. } = run;
    let runs = rows.first().context("docs/benchmarks.json has no rows")?.runs;
    ensure!(!commit.ends_with("-dirty"), "the figures are of a tree with uncommitted changes: {commit}");
    Ok(format!("{machine}; Linux {kernel}; commit `{commit}`; medians of {runs} samples"))
}

fn summary(run: &Run) -> Result<String> {
    let mut text = String::from("| datagram with | ns per packet above an empty XDP program |\n|---|---|\n");
    for (name, about) in SUMMARY {
        writeln!(text, "| {about} | {} |", row(run, name)?.net_ns())?;
    }
    write!(text, "\n{}.\n", provenance(run)?)?;
    Ok(text)
}

fn junk(run: &Run) -> Result<String> {
    let mut text = String::from("| reason | packet | ns |\n|---|---|---|\n");
    for (name, about) in JUNK {
        writeln!(text, "| `{name}` | {about} | {} |", row(run, name)?.net_ns())?;
    }
    Ok(text)
}

fn table(run: &Run) -> Result<String> {
    let mut text = format!(
        "{}.\n\n| row | packet | median | min | empty | **net** |\n|---|---|---|---|---|---|\n",
        provenance(run)?
    );
    for row in &run.rows {
        let Some((_, about)) = ROWS.iter().find(|(name, _)| *name == row.name) else {
            bail!("ROWS has no description of {}", row.name);
        };
        let Row { name, median_ns, min_ns, empty_ns, .. } = row;
        writeln!(
            text,
            "| `{name}` | {about} | {median_ns} | {min_ns} | {empty_ns} | **{}** |",
            row.net_ns()
        )?;
    }
    for (name, _) in ROWS {
        row(run, name)?;
    }
    for Rate { name, packets_per_second, empty_packets_per_second, sent_to_empty_per_second } in &run.veth {
        let [tollgate, empty, sent] =
            [packets_per_second, empty_packets_per_second, sent_to_empty_per_second].map(|rate| rate / 1e6);
        write!(
            text,
            "\nFlood across a veth pair (`{name}`), frames without skbs, one receiving CPU: Tollgate handles\n\
             {tollgate:.2} million packets per second. A program that drops everything handles {empty:.2} million\n\
             of {sent:.2} million sent.\n"
        )?;
    }
    Ok(text)
}
