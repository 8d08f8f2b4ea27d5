//! `docs/matrix.md`: packets, outcomes, and the test for each. The page is generated from the cases, and a test fails
//! if it differs.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use lb_tests::model::{case::Case, packet::Family, program::Verdict};

/// Declares a module's groups of cases. A row is the name of a test, a heading of docs/matrix.md and the cases: it
/// makes the test, and an entry of the module's `subjects()`. The test checks each case by itself, or by the function
/// that the row names.
macro_rules! case_groups {
    ($($(#[$doc:meta])* $test:ident: $about:literal => $cases:expr $(, checked by $check:path)?;)+) => {
        $(
            $(#[$doc])*
            #[test]
            fn $test() -> anyhow::Result<()> {
                let cases: Vec<lb_tests::model::case::Case> = $cases;
                case_groups!(@check $($check)?)(&cases)
            }
        )+

        /// The groups of cases of this module.
        pub fn subjects() -> Vec<crate::matrix::Subject> {
            vec![$(crate::matrix::Subject::new($about, concat!(module_path!(), "::", stringify!($test)), $cases)),+]
        }
    };
    (@check) => { crate::check_each };
    (@check $check:path) => { $check };
}
pub(crate) use case_groups;

/// A group of cases.
pub struct Subject {
    about: &'static str,
    /// The path of the test that runs them, with the crate.
    test: &'static str,
    cases: Vec<Case>,
}

impl Subject {
    /// Called by [`case_groups`].
    pub const fn new(about: &'static str, test: &'static str, cases: Vec<Case>) -> Self {
        Self { about, test, cases }
    }

    /// Its cases.
    pub fn into_cases(self) -> Vec<Case> {
        self.cases
    }
}

/// All subjects, in the order of the program's steps.
pub fn subjects() -> Vec<Subject> {
    let modules = [
        crate::parse::subjects(),
        crate::mac::subjects(),
        crate::token::subjects(),
        crate::cache::subjects(),
        crate::clock::subjects(),
        crate::tables::subjects(),
        crate::revocation::subjects(),
        crate::proof::subjects(),
        crate::limits::subjects(),
        crate::attacks::subjects(),
        crate::delivery::subjects(),
        crate::forwarding::subjects(),
        crate::jumbo::subjects(),
        crate::nat::subjects(),
        crate::too_big::subjects(),
        crate::icmp::subjects(),
        crate::observe::subjects(),
    ];
    modules.into_iter().flatten().collect()
}

/// The cases of all subjects.
pub fn cases() -> Vec<Case> {
    subjects().into_iter().flat_map(Subject::into_cases).collect()
}

/// Set to 1, this variable makes the test write the page instead of comparing it.
const UPDATE: &str = "UPDATE_MATRIX";

const INTRODUCTION: &str = "# Packets and outcomes

This page is generated from the test cases, each of which also compares every byte of the outgoing frame and every
counter: do not edit it. `UPDATE_MATRIX=1 cargo xtask test` regenerates it; the tests fail if it is out of date.

A cell names the reason that counts the packet, and its outcome. An empty cell means that there is no such packet in
this family, or that the row is about the other family. The tests are those of `tests/tests/program`.
";

#[test]
fn the_page_is_as_the_cases_are() -> Result<()> {
    let page = page()?;
    if std::env::var_os(UPDATE).is_some_and(|value| value == "1") {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/matrix.md");
        return std::fs::write(&path, page).with_context(|| path.display().to_string());
    }
    // The page at build time: on another kernel, the cases run without the source files.
    let there = include_str!("../../../docs/matrix.md");
    let differs = page.lines().zip(there.lines()).find(|(new, old)| new != old);
    ensure!(
        page == there,
        "docs/matrix.md differs from the cases from {differs:?} on: run with {UPDATE}=1 and review the difference"
    );
    Ok(())
}

fn page() -> Result<String> {
    let mut page = INTRODUCTION.to_owned();
    for Subject { about, test, cases } in subjects() {
        let (_, test) = test.split_once("::").context("a test is in a module")?;
        write!(page, "\n## {about}\n\nTest: `{test}`.\n\n")?;
        let rows = rows(&cases);
        let by_mode = rows.iter().any(|row| !row.modes.is_empty());
        let (modes, line) = if by_mode { (" `forward` |", "---|") } else { ("", "") };
        writeln!(page, "| packet |{modes} IPv4 | IPv6 |\n|---|{line}---|---|")?;
        for Row { name, modes, cells } in rows {
            let modes = if by_mode { format!(" {} |", modes.join(", ")) } else { String::new() };
            let [v4, v6] = cells.map(Option::unwrap_or_default);
            writeln!(page, "| {name} |{modes} {v4} | {v6} |")?;
        }
    }
    Ok(page)
}

/// A line of a table.
struct Row {
    name: String,
    modes: Vec<String>,
    /// By family.
    cells: [Option<String>; 2],
}

/// Cases that differ only in their family are one line. So are cases that differ in the mode at the end of their name.
fn rows(cases: &[Case]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut places = BTreeMap::<(String, String), usize>::new();
    for case in cases {
        let (name, mode) = case.name.split_once(": ").unwrap_or((&case.name, ""));
        let family = case.family().unwrap_or(Family::V4) as usize;
        let cell = cell(case);
        let place = *places.entry((name.to_owned(), cell.clone())).or_insert_with(|| {
            rows.push(Row { name: name.to_owned(), modes: Vec::new(), cells: [None, None] });
            rows.len() - 1
        });
        let row = &mut rows[place];
        row.cells[family] = Some(cell);
        if !mode.is_empty() && !row.modes.iter().any(|there| there == mode) {
            row.modes.push(mode.to_owned());
        }
    }
    // A packet with different outcomes in the two families is one line, too.
    let mut merged: Vec<Row> = Vec::new();
    for row in rows {
        let other = merged.iter_mut().find(|other| {
            let apart = other.cells.iter().zip(&row.cells).all(|(a, b)| a.is_none() || b.is_none());
            other.name == row.name && other.modes == row.modes && apart
        });
        match other {
            Some(other) => {
                for (cell, new) in other.cells.iter_mut().zip(row.cells) {
                    *cell = cell.take().or(new);
                }
            }
            None => merged.push(row),
        }
    }
    merged
}

fn cell(case: &Case) -> String {
    let fate = match case.expected.outcome.verdict {
        Verdict::Pass if case.expected.service == 0 => "passed on unchanged",
        Verdict::Pass => "to this host",
        Verdict::Drop => "dropped",
        Verdict::Transmit => "sent out of the same interface",
        Verdict::Redirect => "sent out of another interface",
    };
    format!("`{}`, {fate}", case.expected.reason.name())
}
