//! A store that does not continue from the kernel state: rolled back, missing, or a different one. The daemon refuses
//! it, and the kernel state stays unchanged. Once the store is accepted, revocations in the kernel stay in force.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::{Daemon, said, wait_for},
    topology::Family,
    user::NAME,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tollgate::{
    config::StoreLocation,
    datapath::{LastCommit, Pins},
    store::{self, Commit},
};

use crate::testbed::{L2, Testbed, over_both};

over_both!(a_store_that_was_rolled_back, a_store_that_vanished);

fn store_of(testbed: &Testbed) -> PathBuf {
    testbed.instance.path("store")
}

/// The commit in the store.
fn stored(testbed: &Testbed) -> Result<Commit> {
    Ok(store::inspect(&StoreLocation::File(store_of(testbed)))?.commit)
}

/// The commit that is recorded next to the pins.
fn remembered(testbed: &Testbed) -> Result<Commit> {
    let last = LastCommit::find(&Pins::new(testbed.instance.bpffs())?)?.context("a pin")?;
    last.read()?.context("a commit")
}

/// Copies the store, with owners and modes.
fn copy(from: PathBuf, to: PathBuf) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    let copied = Command::new("cp").arg("-a").args([from, to]).output()?;
    ensure!(copied.status.success(), "{}", said(&copied));
    Ok(())
}

fn back_up(testbed: &Testbed) -> Result<()> {
    copy(store_of(testbed), testbed.instance.path("backup"))
}

fn restore(testbed: &Testbed) -> Result<()> {
    copy(testbed.instance.path("backup"), store_of(testbed))
}

/// Runs a daemon, revokes session 7, and restores the store from before that.
fn roll_back(testbed: &Testbed) -> Result<()> {
    let daemon = testbed.start()?;
    back_up(testbed)?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.terminate()?;
    restore(testbed)
}

/// The daemon must end with status 1 and log all of these parts. Returns its log.
fn refuses(testbed: &Testbed, options: &[&str], parts: &[&str]) -> Result<String> {
    let mut daemon = Daemon::spawn_with(&testbed.instance, &testbed.topology.balancer, options)?;
    let status = daemon.ended()?;
    let log = daemon.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    for part in parts {
        ensure!(log.contains(part), "`{part}` is not in: {log}");
    }
    Ok(log)
}

/// The value of `--accept-store` in the error of a refused start.
fn offered(testbed: &Testbed) -> Result<String> {
    let log = refuses(testbed, &[], &["`--accept-store "])?;
    let (_, value) = log.split_once("`--accept-store ").context("the option")?;
    Ok(value.split_once('`').context("the end of the option")?.0.to_owned())
}

fn start_accepting(testbed: &Testbed, value: &str) -> Result<Daemon> {
    let options = ["--accept-store", value];
    Daemon::spawn_with(&testbed.instance, &testbed.topology.balancer, &options)?
        .until_ready(&testbed.topology.balancer)
}

/// Accepts the store as it is, with the option that the error of a refused start names.
fn accept(testbed: &Testbed) -> Result<Daemon> {
    start_accepting(testbed, &offered(testbed)?)
}

/// The line of `tollgate check` about the store.
fn checked(testbed: &Testbed) -> Result<(String, String)> {
    let config = testbed.instance.config();
    let output = testbed.run(&["check", "-o", "json", "-c", config.to_str().context("a path of text")?])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let lines = report["checks"].as_array().context("checks")?;
    let line = lines.iter().find(|line| line["name"] == "store").context("a line about the store")?;
    let text = |key: &str| line[key].as_str().map(str::to_owned).context("text");
    Ok((text("verdict")?, text("found")?))
}

fn a_store_that_was_rolled_back(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let (token, other) = (testbed.token(7)?, testbed.token(8)?);
    back_up(&testbed)?;
    let before = stored(&testbed)?.revision;
    ensure!(
        checked(&testbed)?
            == ("ok".to_owned(), format!("{}, in use by a running daemon", store_of(&testbed).display()))
    );
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    testbed.refused_token(&token, Reason::Revoked)?;
    daemon.terminate()?;
    copy(store_of(&testbed), testbed.instance.path("newest"))?;
    let newest = stored(&testbed)?;
    ensure!(remembered(&testbed)? == newest && newest.revision == before + 1);
    ensure!(checked(&testbed)?.0 == "ok", "{:?}", checked(&testbed)?);

    restore(&testbed)?;
    let digest = &hex::encode(newest.digest)[..8];
    let value = format!("{before}:{}:{digest}", newest.revision);
    let (rolled_back, option) = (format!("at revision {before}, but"), format!("`--accept-store {value}`"));
    let parts = ["was rolled back", &rolled_back, "Filtering continues", &option];
    let another_store = format!("{}:{}:{digest}", before + 1, newest.revision);
    let another_memory = format!("{before}:{}:{digest}", newest.revision + 1);
    let another_content =
        format!("{before}:{}:{}", newest.revision, &hex::encode(stored(&testbed)?.digest)[..8]);
    for other in [None, None, Some(&another_store), Some(&another_memory), Some(&another_content)] {
        let options = other.map_or_else(Vec::new, |other| vec!["--accept-store", other.as_str()]);
        refuses(&testbed, &options, &parts)?;
        ensure!(remembered(&testbed)? == newest, "a refusal changes nothing");
        ensure!(stored(&testbed)?.revision == before);
    }
    let (verdict, found) = checked(&testbed)?;
    ensure!(verdict == "failed" && parts.iter().all(|part| found.contains(part)), "{verdict}: {found}");
    // The kernel filters as before.
    testbed.send(&[&token.to_bytes()[..], b"data"].concat())?;
    testbed.delivered(&other)?;
    testbed.nothing_arrived()?;

    copy(testbed.instance.path("newest"), store_of(&testbed))?;
    let daemon = testbed.start()?;
    ensure!(!daemon.log().contains("rolled back"), "{}", daemon.log());
    testbed.refused_token(&token, Reason::Revoked)?;
    // The option does not prevent a start with a store that continues.
    daemon.terminate()?;
    let daemon = start_accepting(&testbed, &value)?;
    ensure!(daemon.log().contains("`--accept-store` had no effect"), "{}", daemon.log());
    testbed.refused_token(&token, Reason::Revoked)
}

/// `--accept-store` stays in the unit file: it accepts once, and neither the same backup again nor a missing store.
#[test]
fn an_option_that_is_left_in_place_accepts_nothing_else() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    // One change: the accepted store has the same content as the one before it.
    roll_back(&testbed)?;
    let again = |value: &str, what: &str| {
        let log = refuses(&testbed, &["--accept-store", value], &[what]).context(value.to_owned())?;
        ensure!(!log.contains("it was accepted"), "{log}");
        Ok(())
    };
    let backup = offered(&testbed)?;
    start_accepting(&testbed, &backup)?.terminate()?;
    start_accepting(&testbed, &backup)?.terminate()?;
    restore(&testbed)?;
    again(&backup, "was rolled back")?;

    fs::remove_dir_all(store_of(&testbed))?;
    again(&backup, "is empty")?;
    let empty = offered(&testbed)?;
    start_accepting(&testbed, &empty)?.terminate()?;
    let begun = stored(&testbed)?;
    fs::remove_dir_all(store_of(&testbed))?;
    again(&empty, "is empty")?;
    again(&backup, "is empty")?;
    ensure!(remembered(&testbed)? == begun, "a refusal changes nothing");
    // The backup belongs to another store now.
    fs::remove_dir_all(store_of(&testbed))?;
    restore(&testbed)?;
    again(&backup, "is not the one")?;
    let other = offered(&testbed)?;
    start_accepting(&testbed, &other)?.terminate()?;
    restore(&testbed)?;
    again(&other, "was rolled back")
}

/// Revocations since the copy was made: by name, by time of issue and by key.
#[test]
fn an_accepted_store_lifts_no_revocation() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    let first = testbed.issuer()?.active().0;
    let by_first = testbed.token(8)?;
    testbed.json(&["keys", "rotate", "--wait"])?;
    let (token, other, single) = (testbed.token(7)?, testbed.token(8)?, testbed.token(9)?);
    testbed.delivered(&by_first)?;
    testbed.delivered(&single)?;
    back_up(&testbed)?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    let named = testbed.json(&["token", "revoke", &hex::encode(single.to_bytes())])?;
    testbed.json(&["keys", "revoke", &first.to_string()])?;
    daemon.terminate()?;
    restore(&testbed)?;
    refuses(&testbed, &[], &["was rolled back"])?;
    let daemon = accept(&testbed)?;
    let log = daemon.log();
    let nonce = named["nonce"].as_str().context("a nonce")?;
    for part in [
        "it was accepted",
        "session 7 of service 42 stays revoked",
        &format!("token {nonce} of service 42 stays revoked"),
        &format!("key {first} is revoked"),
    ] {
        ensure!(log.contains(part), "`{part}` is not in: {log}");
    }
    testbed.refused_token(&token, Reason::Revoked)?;
    testbed.refused_token(&single, Reason::Revoked)?;
    testbed.refused_token(&by_first, Reason::InactiveKey)?;
    testbed.delivered(&other)?;
    // They are in the store again.
    daemon.kill()?;
    let daemon = testbed.start()?;
    let listed = testbed.json(&["sessions", "list", "--revoked"])?;
    ensure!(listed["items"].as_array().is_some_and(|listed| listed.len() == 2), "{listed}");
    testbed.refused_token(&token, Reason::Revoked)?;
    testbed.refused_token(&single, Reason::Revoked)?;
    testbed.refused_token(&by_first, Reason::InactiveKey)?;

    back_up(&testbed)?;
    testbed.json(&["services", "revoke-before", "game"])?;
    testbed.refused_token(&other, Reason::Revoked)?;
    daemon.kill()?;
    restore(&testbed)?;
    let daemon = accept(&testbed)?;
    ensure!(daemon.log().contains("what service 42 issued before"), "{}", daemon.log());
    testbed.refused_token(&other, Reason::Revoked)?;
    testbed.json(&["sessions", "unrevoke", "7", "--service", "game"])?;
    testbed.delivered(&testbed.mint(&[])?)?;
    Ok(())
}

fn a_store_that_vanished(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(7)?;
    let issuer = testbed.issuer()?;
    daemon.terminate()?;
    let (newest, state) = (stored(&testbed)?, store_of(&testbed).join("state.json"));
    fs::rename(store_of(&testbed), testbed.instance.path("aside"))?;
    let id = newest.store.to_string();
    let parts = ["is empty", "Is its file system mounted?", &id, "--accept-store 0:"];
    let (verdict, found) = checked(&testbed)?;
    ensure!(verdict == "failed" && parts.iter().all(|part| found.contains(part)), "{verdict}: {found}");
    ensure!(!store_of(&testbed).exists(), "a check creates nothing");
    refuses(&testbed, &[], &parts)?;
    ensure!(!state.exists(), "no new key");
    testbed.delivered(&token)?;
    fs::remove_dir_all(store_of(&testbed))?;
    fs::rename(testbed.instance.path("aside"), store_of(&testbed))?;
    let daemon = testbed.start()?;
    testbed.delivered(&token)?;
    daemon.terminate()?;

    // With the option, the daemon starts with an empty store, and logs the consequences.
    fs::rename(store_of(&testbed), testbed.instance.path("aside"))?;
    let daemon = accept(&testbed)?;
    let ended = format!("keys {} verified until now and are not in the store", issuer.active().0);
    ensure!(daemon.log().contains(&ended), "{}", daemon.log());
    testbed.delivered(&testbed.token(7)?)?;
    daemon.kill()?;
    let daemon = testbed.start()?;
    daemon.terminate()?;

    // The first store is now a different one, regardless of its revision.
    fs::remove_dir_all(store_of(&testbed))?;
    fs::rename(testbed.instance.path("aside"), store_of(&testbed))?;
    refuses(&testbed, &[], &["is not the one that this host's kernel state was made from", &id])?;
    Ok(())
}

/// Restoring the previous copy is a rollback, too: the error of the next start names the option.
#[test]
fn a_damaged_store_is_recovered_as_its_error_says() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(7)?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.terminate()?;
    let (state, newest) = (store_of(&testbed).join("state.json"), stored(&testbed)?.revision);
    let back = format!("revision {}", newest - 1);
    let parts = ["cp -p", &back, "its error names the `--accept-store` option that accepts it"];
    let sound = fs::read(&state)?;
    fs::write(&state, &sound[..sound.len() / 2])?;
    let (verdict, found) = checked(&testbed)?;
    ensure!(verdict == "failed" && found.contains("is damaged"), "{verdict}: {found}");
    refuses(&testbed, &[], &[&["is damaged"], &parts[..]].concat())?;
    fs::remove_file(&state)?;
    refuses(&testbed, &[], &[&["is missing"], &parts[..]].concat())?;
    let copied = Command::new("cp").arg("-p").args([state.with_extension("json.prev"), state]).output()?;
    ensure!(copied.status.success(), "{}", said(&copied));
    refuses(&testbed, &[], &["was rolled back"])?;
    let _daemon = accept(&testbed)?;
    testbed.refused_token(&token, Reason::Revoked)
}

/// The recorded commit is removed with the pins. From then on, there is no kernel state that the store could be behind.
#[test]
fn without_pins_a_store_is_taken_as_it_is() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    roll_back(&testbed)?;
    refuses(&testbed, &[], &["was rolled back"])?;
    // Only the pin of the commit is removed: the commit is unknown, and the log says so.
    fs::remove_file(testbed.pin(LastCommit::NAME))?;
    let daemon = testbed.start()?;
    ensure!(daemon.log().contains("it is not known which commit"), "{}", daemon.log());
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    // A pin that is removed while the daemon runs is restored, with its content.
    fs::remove_file(testbed.pin(LastCommit::NAME))?;
    wait_for("the pin", || Ok(testbed.pin(LastCommit::NAME).exists()))?;
    daemon.terminate()?;
    restore(&testbed)?;
    refuses(&testbed, &[], &["was rolled back"])?;
    let config = testbed.instance.config();
    let detached = testbed.run(&["detach", "-c", config.to_str().context("a path of text")?])?;
    ensure!(detached.status.success(), "{}", said(&detached));
    let daemon = testbed.start()?;
    ensure!(!daemon.log().contains("rolled back"), "{}", daemon.log());
    Ok(())
}

/// A store that was written by a version before format 4.
#[test]
fn a_store_without_an_id() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    testbed.start()?.terminate()?;
    testbed.remove_pins()?;
    let state = store_of(&testbed).join("state.json");
    let text = fs::read_to_string(&state)?;
    let (_, content) = text.split_once("\"content\":").context("its content")?;
    let content = content.trim_end().strip_suffix('}').context("its end")?;
    let content = content.replace(&format!("\"store_id\":\"{}\",", stored(&testbed)?.store), "");
    let sum = hex::encode(Sha256::digest(&content));
    fs::write(&state, format!("{{\"format\":3,\"sha256\":\"{sum}\",\"content\":{content}}}\n"))?;
    let before = stored(&testbed)?;
    ensure!(before.store == store::StoreId::NONE, "{before:?}");
    testbed.start()?.kill()?;
    ensure!(remembered(&testbed)? == before);
    back_up(&testbed)?;
    let daemon = testbed.start()?;
    testbed.json(&["keys", "rotate"])?;
    daemon.kill()?;
    ensure!(remembered(&testbed)?.store != store::StoreId::NONE);
    testbed.start()?.kill()?;
    restore(&testbed)?;
    refuses(&testbed, &[], &["without an ID", "is not the one"])?;
    Ok(())
}

/// `check` as root reads the store of the daemon's user. A daemon with its own user refuses a rollback, too.
#[test]
fn as_a_user_of_its_own() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(Some(NAME));
    let daemon = testbed.start()?;
    back_up(&testbed)?;
    let token = testbed.token(7)?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.terminate()?;
    ensure!(checked(&testbed)?.0 == "ok", "{:?}", checked(&testbed)?);
    restore(&testbed)?;
    ensure!(checked(&testbed)?.0 == "failed", "{:?}", checked(&testbed)?);
    refuses(&testbed, &[], &["was rolled back"])?;
    let _daemon = accept(&testbed)?;
    testbed.refused_token(&token, Reason::Revoked)
}

/// At whatever moment the daemon is killed, the recorded commit includes every answered change, and nothing that is not
/// in the store.
#[test]
fn a_crash_is_no_rollback() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let mut random = fastrand::Rng::with_seed(20_260_703);
    let mut daemon = testbed.start()?;
    for crash in 0..12 {
        for session in 0..random.u64(0..3) {
            testbed.json(&[
                "sessions",
                "revoke",
                &(1000 * crash + session).to_string(),
                "--service",
                "game",
            ])?;
        }
        let answered = stored(&testbed)?.revision;
        let session = (1000 * crash + 999).to_string();
        let args = ["sessions", "revoke", &session, "--service", "game"];
        let mut revoke = testbed.instance.tollgate(&testbed.topology.balancer, &args)?;
        let mut revoke = revoke.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // Within a command, which takes about this many iterations.
        for _ in 0..random.u32(0..20_000) {
            std::thread::yield_now();
        }
        daemon.kill()?;
        revoke.wait()?;
        let (stored, remembered) = (stored(&testbed)?, remembered(&testbed)?);
        ensure!(remembered.store == stored.store, "crash {crash}: {remembered:?}, {stored:?}");
        ensure!(
            (answered..=stored.revision).contains(&remembered.revision),
            "crash {crash}: {answered} answered, {remembered:?} remembered, {stored:?} stored"
        );
        daemon = testbed.start()?;
    }
    Ok(())
}
