//! The command line: JSON output, exit statuses, tokens with and without a daemon.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::{Daemon, said},
    topology::{Family, Network},
};

use crate::testbed::{L2, Testbed, minted_header, over_both};

over_both!(minted_tokens_are_valid, tokens_without_a_daemon);

#[test]
fn json_of_every_command() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    for args in [
        &["status"][..],
        &["counters"],
        &["counters", "--service", "game"],
        &["keys", "list"],
        &["keys", "rotate"],
        &["keys", "rotate", "--service", "42", "--wait"],
        &["keys", "export", "--service", "game"],
        &["backends", "list"],
        &["token", "mint", "--service", "game", "--session", "7"],
        &["services", "list"],
        &["services", "revoke-before", "game"],
        &["sessions", "revoke", "9", "--service", "game"],
        &["sessions", "list"],
        &["sessions", "list", "--revoked", "--service", "game"],
        &["clock"],
    ] {
        let value = testbed.json(args)?;
        ensure!(value.is_object() || value.is_array(), "{args:?}: {value}");
        let table = testbed.run(args)?;
        ensure!(table.status.success() && !table.stdout.is_empty(), "{args:?}: {}", said(&table));
    }
    let keyset = testbed.instance.path("keyset.json");
    fs::write(&keyset, testbed.run(&["keys", "export", "--service", "game"])?.stdout)?;
    let report = testbed.json(&["keys", "import", keyset.to_str().context("a path in UTF-8")?])?;
    ensure!(["added", "known", "skipped"].iter().all(|field| report[field].is_array()), "{report}");
    let active = testbed.issuer()?.active().0;
    ensure!(testbed.json(&["keys", "revoke", &active.to_string()])?["key_id"] == active);
    let minted = testbed.json(&["token", "mint", "--service", "game", "--session", "7"])?;
    let inspected = testbed.json(&["token", "inspect", minted["header"].as_str().context("a header")?])?;
    ensure!(inspected.is_object(), "{inspected}");
    let config = testbed.instance.config();
    let check = testbed.json(&["check", "-c", config.to_str().unwrap()])?;
    ensure!(check.is_object() || check.is_array(), "{check}");
    daemon.terminate()?;
    testbed.json(&["detach", "-c", config.to_str().unwrap()])?;
    Ok(())
}

#[test]
fn exit_statuses() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    for (args, status) in [
        (&["status"][..], 3),
        (&["counters"], 3),
        (&["backends", "list"], 3),
        (&["keys", "list"], 3),
        (&["keys", "rotate", "--wait"], 3),
        (&["keys", "revoke", "1"], 3),
        (&["keys", "export", "--service", "game"], 3),
        (&["token", "mint", "--service", "game", "--session", "7"], 3),
        (&["sessions", "list"], 3),
        (&["sessions", "revoke", "7", "--service", "game"], 3),
        (&["sessions", "unrevoke", "7", "--service", "game"], 3),
        (&["services", "list"], 3),
        (&["clock"], 3),
        (&["clock", "accept"], 3),
        (&["keys", "revoke", "none"], 2),
        (&["no-such-command"], 2),
        // `verbose` is not a log level.
        (&["--log", "verbose", "status"], 2),
        (&["--log", "tollgate=debug", "status"], 2),
        (&["token", "inspect", "not hex"], 1),
    ] {
        let output = testbed.run(args)?;
        ensure!(output.status.code() == Some(status), "{args:?}: {} {}", output.status, said(&output));
        ensure!(!output.stderr.is_empty(), "{args:?} fails without a message");
    }
    let _daemon = testbed.start()?;
    let output = testbed.run(&["token", "mint", "--service", "none", "--session", "7"])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("game"), "{}", said(&output));
    Ok(())
}

/// Results are on standard output, errors on standard error; `check` alone reports its failures as a result.
#[test]
fn what_json_says_of_failures() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let config = testbed.instance.config();
    let config = config.to_str().context("a path in UTF-8")?;
    for args in [
        &["status"][..],
        &["counters"],
        &["keys", "rotate", "--wait"],
        &["keys", "revoke", "1"],
        &["token", "mint", "--service", "game", "--session", "7"],
        &["token", "inspect", "not hex"],
        &["backends", "list"],
        &["sessions", "list"],
        &["services", "list"],
        &["clock"],
        &["detach", "-c", "/nowhere.toml"],
        &["run", "-c", "/nowhere.toml"],
        &["decap", "-i", "none", "--from", "10.0.0.1"],
    ] {
        let output = testbed.run(&[args, &["-o", "json"]].concat())?;
        ensure!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {}", said(&output));
        ensure!(output.stderr.starts_with(b"tollgate: "), "{args:?}: {}", said(&output));
    }
    let text = fs::read_to_string(config)?;
    let check = |args: &[&str]| {
        let output = testbed.run(&[&["check", "-o", "json", "-c"][..], args].concat())?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{args:?}: no JSON: {}", said(&output)))?;
        ensure!(output.status.code() == Some(1) && report["ok"] == false, "{}", said(&output));
        ensure!(!output.stderr.is_empty(), "it fails without a message");
        anyhow::Ok(report["checks"].as_array().context("checks")?.clone())
    };
    fs::write(config, text.replace("id = 42", "id = 0\nprot = 1"))?;
    let checks = check(&[config])?;
    ensure!(checks.len() == 2, "{checks:?}");
    for (line, field) in checks.iter().zip(["`service.id` = 0", "`service.prot`"]) {
        ensure!(line["name"] == "configuration" && line["verdict"] == "failed", "{line}");
        ensure!(line["found"].as_str().is_some_and(|found| found.contains(field)), "{field}: {line}");
        ensure!(line["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{line}");
    }
    fs::write(config, "[[service]\n")?;
    ensure!(check(&[config])?.len() == 1);
    let checks = check(&["/nowhere.toml"])?;
    ensure!(checks[0]["found"].as_str().is_some_and(|found| found.contains("no such file")), "{checks:?}");
    Ok(())
}

/// With few file descriptors, a command works or names the limit to raise.
#[test]
fn with_few_descriptors() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let config = testbed.instance.config();
    let config = config.to_str().context("a path in UTF-8")?;
    let with = |limit: &str, args: &[&str]| {
        let command = testbed.instance.tollgate(&testbed.topology.balancer, args)?;
        let mut limited = testbed.topology.balancer.command("prlimit")?;
        limited.arg(format!("--nofile={limit}")).arg(command.get_program()).args(command.get_args());
        // A command that does not fail is stopped.
        Ok::<_, anyhow::Error>(limited)
    };
    for limit in ["8", "12", "16", "31", "32", "64", "127"] {
        for args in [
            &["status"][..],
            &["check", "-c", config],
            &["check", "-c", config, "-o", "json"],
            &["run", "-c", config],
            &["detach", "-c", config],
            &["token", "inspect", "00"],
            &["decap", "-i", "none", "--from", "10.0.0.1"],
        ] {
            let output = with(limit, args)?.output()?;
            let text = said(&output);
            ensure!(!text.contains("panicked") && !text.contains("backtrace"), "{limit} {args:?}: {text}");
            let told = text.contains("RLIMIT_NOFILE") && text.contains("ulimit -n");
            let is_short = limit.parse::<u32>()? < 32 || ["check", "run"].contains(&args[0]);
            ensure!(told || !is_short, "{limit} {args:?}: {text}");
            ensure!(
                !output.status.success() || args[0] == "detach" || args[0] == "token",
                "{limit} {args:?}: {text}"
            );
            if args.contains(&"json") {
                let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
                ensure!(report["ok"] == false, "{limit}: {report}");
            }
        }
    }
    // A low soft limit is raised.
    let mut command = with("8:1024", &["run", "-c", config])?;
    command.args(["--log", "debug"]);
    let daemon = Daemon::spawn_as(&testbed.instance, command)?.until_ready(&testbed.topology.balancer)?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid()))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files")).context("the limit")?;
    ensure!(files.split_whitespace().nth(3) == Some("1024"), "{files}");
    daemon.terminate()?;
    // With the daemon's minimum it starts, and warns that the limit is low.
    let daemon = Daemon::spawn_as(&testbed.instance, with("128", &["run", "-c", config])?)?;
    let daemon = daemon.until_ready(&testbed.topology.balancer)?;
    ensure!(daemon.log().contains("may open 128 files"), "{}", daemon.log());
    testbed.json(&["keys", "rotate", "--wait"])?;
    Ok(())
}

fn minted_tokens_are_valid(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 2)?;
    let _daemon = testbed.start()?;
    let mint = ["token", "mint", "--service", "game", "--session", "18446744073709551615"];
    let minted = testbed.json(&mint)?;
    ensure!(minted["type"] == "bearer", "{minted}");
    testbed.delivered(&minted_header(&minted)?)?;
    let pinned = testbed.json(&[&mint[..], &["--backend", "2", "--ttl", "60s"]].concat())?;
    ensure!(testbed.delivered(&minted_header(&pinned)?)? == 2);
    let bound = testbed.json(&[&mint[..], &["--bind", &Network::Front.prefix(family, 0)]].concat())?;
    testbed.delivered(&minted_header(&bound)?)?;
    let elsewhere = match family {
        Family::V4 => "192.0.2.7",
        Family::V6 => "2001:db8::7",
    };
    let elsewhere = testbed.json(&[&mint[..], &["--bind", elsewhere]].concat())?;
    testbed.refused_token(&minted_header(&elsewhere)?, Reason::BadFastTag)?;
    let proof = testbed.run(&[&mint[..], &["--type", "proof"]].concat())?;
    ensure!(proof.status.code() == Some(1) && said(&proof).contains("`accept`"), "{}", said(&proof));
    for (args, expected) in [
        (["--ttl", "0s"], "a second or longer"),
        (["--ttl", "500ms"], "a second or longer"),
        (["--bind-port", "0"], "no client sends from port 0"),
    ] {
        let refused = testbed.run(&[&mint[..], &args].concat())?;
        ensure!(refused.status.code() == Some(1) && said(&refused).contains(expected), "{}", said(&refused));
    }
    let too_long = testbed.run(&[&mint[..], &["--ttl", "2h"]].concat())?;
    ensure!(too_long.status.code() == Some(1) && said(&too_long).contains("max_ttl"), "{}", said(&too_long));
    Ok(())
}

fn tokens_without_a_daemon(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let keyset = testbed.instance.path("keyset.json");
    fs::write(&keyset, testbed.run(&["keys", "export", "--service", "game"])?.stdout)?;
    daemon.terminate()?;
    let keyset = keyset.to_str().context("a path in UTF-8")?;
    let mint = ["token", "mint", "--service", "game", "--session", "7", "--keyset", keyset];
    let minted = testbed.json(&mint)?;
    testbed.delivered(&minted_header(&minted)?)?;
    let text = minted["header"].as_str().context("a header")?;
    let inspected = testbed.json(&["token", "inspect", text, "--keyset", keyset])?;
    ensure!(inspected.to_string().contains("\"7\""), "the session is a string: {inspected}");
    // The last digit of the full tag is changed.
    let last = if text.ends_with('0') { "1" } else { "0" };
    let damaged = [&text[..text.len() - 1], last].concat();
    let inspected = testbed.run(&["token", "inspect", &damaged, "--keyset", keyset])?;
    ensure!(said(&inspected).contains("bad_fast_tag"), "{}", said(&inspected));
    let nothing = testbed.run(&["token", "inspect", "", "--keyset", keyset])?;
    ensure!(
        nothing.status.code() == Some(1) && said(&nothing).contains("token is empty"),
        "{}",
        said(&nothing)
    );
    Ok(())
}
