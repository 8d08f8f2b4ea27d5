//! Compares the output of every command with its description in docs/api.md.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::testbed::{L2, Testbed};

const PAGE: &str = include_str!("../../../docs/api.md");

/// The rows of the tables below a heading.
fn rows(heading: &str) -> Result<Vec<Vec<&'static str>>> {
    let (_, section) =
        PAGE.split_once(&format!("\n{heading}\n")).with_context(|| format!("no `{heading}`"))?;
    let lines = section.lines().take_while(|line| !line.starts_with('#'));
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    Ok(lines.filter(|line| line.starts_with("| `")).map(cells).collect())
}

fn in_backticks(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or_default()
}

/// Commands and the types of their output.
fn commands() -> Result<BTreeMap<&'static str, &'static str>> {
    let requests = rows("## Requests")?.into_iter().map(|row| (in_backticks(row[0]), row[3]));
    let local = rows("## Commands that ask no daemon")?.into_iter().map(|row| (in_backticks(row[0]), row[1]));
    Ok(requests.chain(local).collect())
}

/// The command of the page that an output belongs to.
fn command_of(args: &[&str]) -> Result<(&'static str, &'static str)> {
    let line = format!("tollgate {}", args.join(" "));
    let commands = commands()?.into_iter().filter(|(command, _)| line.starts_with(command));
    commands.max_by_key(|(command, _)| command.len()).with_context(|| format!("no command `{line}`"))
}

/// Checks the output of a command: all its keys are in the page, and all keys that the page does not call absent are in
/// the output.
pub fn check(args: &[&str], output: &Value) -> Result<()> {
    let (command, kind) = command_of(args)?;
    is_of(output, kind).with_context(|| format!("{command}: {output}"))
}

fn is_of(value: &Value, kind: &str) -> Result<()> {
    let mut refused = Vec::new();
    for kind in kind.split(" or ") {
        match is_of_one(value, kind) {
            Ok(()) => return Ok(()),
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    bail!("{}", refused.join("; "))
}

fn is_of_one(value: &Value, kind: &str) -> Result<()> {
    if let Some(items) = kind.strip_prefix("[`List`](#list) of ") {
        has_keys(value, "List")?;
        return is_of(&value["items"], &format!("list of {items}"));
    }
    if let Some(items) = kind.strip_prefix("list of ") {
        let list = value.as_array().with_context(|| format!("{value} is not a list"))?;
        return list.iter().try_for_each(|item| is_of(item, items));
    }
    let is_right = match kind {
        "list" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "absent" => false,
        link => {
            let name = in_backticks(link);
            return match value {
                Value::String(value) => {
                    let values = rows(&format!("### `{name}`"))?;
                    let is_known = values.iter().any(|row| in_backticks(row[0]) == value);
                    ensure!(is_known, "{value} is no {name}");
                    Ok(())
                }
                _ => has_keys(value, name),
            };
        }
    };
    ensure!(is_right, "{value} is not: {kind}");
    Ok(())
}

fn has_keys(value: &Value, name: &str) -> Result<()> {
    let object = value.as_object().with_context(|| format!("{value} is not an object"))?;
    let keys = rows(&format!("### `{name}`"))?;
    let known: BTreeSet<_> = keys.iter().map(|row| in_backticks(row[0])).collect();
    let unknown: Vec<_> = object.keys().filter(|key| !known.contains(key.as_str())).collect();
    ensure!(unknown.is_empty(), "{name} has keys that are not in docs/api.md: {unknown:?}");
    for row in keys {
        let key = in_backticks(row[0]);
        match object.get(key) {
            Some(value) => is_of(value, row[1]).with_context(|| format!("{name}.{key}"))?,
            None => ensure!(row[1].ends_with("or absent"), "{name} has no `{key}`"),
        }
    }
    Ok(())
}

/// Each command of the page, except those that other tests check: `clock accept` needs a clock that was set back, and
/// `decap` needs the host of a backend.
#[test]
fn every_command_prints_what_the_page_says() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    let issuer = testbed.issuer()?;
    let keyset = testbed.instance.path("keyset.json");
    std::fs::write(&keyset, testbed.run(&["keys", "export", "--service", "game"])?.stdout)?;
    let keyset = keyset.to_str().context("a path in UTF-8")?;
    let config = testbed.instance.config();
    let config = config.to_str().context("a path in UTF-8")?;
    testbed.delivered(&testbed.token(1)?)?;
    let minted = testbed.json(&["token", "mint", "--service", "game", "--session", "7"])?;
    let header = minted["header"].as_str().context("a header")?;
    let active = issuer.active().0.to_string();
    let mut checked = BTreeSet::from(["tollgate clock accept", "tollgate decap", "tollgate detach"]);
    for args in [
        &["status"][..],
        &["counters"],
        &["counters", "--service", "game"],
        &["keys", "list"],
        &["keys", "export", "--service", "game"],
        &["keys", "import", keyset],
        &["backends", "list"],
        &["services", "list"],
        &["sessions", "list"],
        &["token", "mint", "--service", "game", "--session", "7"],
        &["token", "inspect", header],
        &["token", "inspect", "00"],
        &["token", "revoke", header],
        &["sessions", "revoke", "9", "--service", "game"],
        &["sessions", "list", "--revoked", "--service", "game"],
        &["sessions", "unrevoke", "9", "--service", "game"],
        &["token", "unrevoke", header],
        &["keys", "rotate"],
        &["keys", "rotate", "--service", "42", "--wait"],
        &["keys", "revoke", &active],
        &["services", "revoke-before", "game"],
        &["clock"],
        &["check", "-c", config],
    ] {
        check(args, &testbed.json(args)?)?;
        checked.insert(command_of(args)?.0);
    }
    let all: BTreeSet<_> = commands()?.into_keys().collect();
    ensure!(checked == all, "not checked: {:?}", all.difference(&checked));
    daemon.terminate()?;
    let detach = ["detach", "-c", config];
    check(&detach, &testbed.json(&detach)?)
}
