//! A store that does not continue from the kernel state: rolled back, vanished, or another one. The daemon refuses it, and the
//! kernel state stays as it was; once it is accepted, what the kernel has revoked stays revoked.

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

use crate::testbed::{L2, Lab, over_both};

over_both!(a_store_that_was_rolled_back, a_store_that_vanished);

fn store_of(lab: &Lab) -> PathBuf {
    lab.place.path("store")
}

/// What the store holds.
fn stored(lab: &Lab) -> Result<Commit> {
    Ok(store::inspect(&StoreLocation::File(store_of(lab)))?.commit)
}

/// What is remembered beside the pins.
fn remembered(lab: &Lab) -> Result<Commit> {
    let last = LastCommit::find(&Pins::new(lab.place.bpffs())?)?.context("a pin")?;
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

fn back_up(lab: &Lab) -> Result<()> {
    copy(store_of(lab), lab.place.path("backup"))
}

fn restore(lab: &Lab) -> Result<()> {
    copy(lab.place.path("backup"), store_of(lab))
}

/// The daemon ends with status 1, having said all of these. Returns its log.
fn refuses(lab: &Lab, options: &[&str], parts: &[&str]) -> Result<String> {
    let mut daemon = Daemon::spawn_with(&lab.place, &lab.topology.balancer, options)?;
    let status = daemon.ended()?;
    let log = daemon.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    for part in parts {
        ensure!(log.contains(part), "`{part}` is not in: {log}");
    }
    Ok(log)
}

/// The value of `--accept-store` that the error of a refused start names.
fn offered(lab: &Lab) -> Result<String> {
    let log = refuses(lab, &[], &["`--accept-store "])?;
    let (_, value) = log.split_once("`--accept-store ").context("the option")?;
    Ok(value.split_once('`').context("the end of the option")?.0.to_owned())
}

fn start_accepting(lab: &Lab, value: &str) -> Result<Daemon> {
    let options = ["--accept-store", value];
    Daemon::spawn_with(&lab.place, &lab.topology.balancer, &options)?.until_ready(&lab.topology.balancer)
}

/// Accepts the store as it is, as the error of a refused start says.
fn accept(lab: &Lab) -> Result<Daemon> {
    start_accepting(lab, &offered(lab)?)
}

/// The line of `tollgate check` about the store.
fn checked(lab: &Lab) -> Result<(String, String)> {
    let config = lab.place.config();
    let output = lab.run(&["check", "-o", "json", "-c", config.to_str().context("a path of text")?])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let lines = report["checks"].as_array().context("checks")?;
    let line = lines.iter().find(|line| line["name"] == "store").context("a line about the store")?;
    let text = |key: &str| line[key].as_str().map(str::to_owned).context("text");
    Ok((text("verdict")?, text("found")?))
}

fn a_store_that_was_rolled_back(family: Family) -> Result<()> {
    let lab = Lab::of(family, L2, 1)?;
    let daemon = lab.start()?;
    let (token, other) = (lab.token(7)?, lab.token(8)?);
    back_up(&lab)?;
    let before = stored(&lab)?.revision;
    ensure!(
        checked(&lab)?
            == ("good".to_owned(), format!("{}, in use by a running daemon", store_of(&lab).display()))
    );
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    lab.refused_token(&token, Reason::Revoked)?;
    daemon.terminate()?;
    copy(store_of(&lab), lab.place.path("newest"))?;
    let newest = stored(&lab)?;
    ensure!(remembered(&lab)? == newest && newest.revision == before + 1);
    ensure!(checked(&lab)?.0 == "good", "{:?}", checked(&lab)?);

    restore(&lab)?;
    let digest = &hex::encode(newest.digest)[..8];
    let value = format!("{before}:{}:{digest}", newest.revision);
    let (rolled_back, option) = (format!("at revision {before}, but"), format!("`--accept-store {value}`"));
    let parts = ["was rolled back", &rolled_back, "Filtering continues", &option];
    let another_store = format!("{}:{}:{digest}", before + 1, newest.revision);
    let another_memory = format!("{before}:{}:{digest}", newest.revision + 1);
    let another_content = format!("{before}:{}:{}", newest.revision, &hex::encode(stored(&lab)?.digest)[..8]);
    for other in [None, None, Some(&another_store), Some(&another_memory), Some(&another_content)] {
        let options = other.map_or_else(Vec::new, |other| vec!["--accept-store", other.as_str()]);
        refuses(&lab, &options, &parts)?;
        ensure!(remembered(&lab)? == newest, "a refusal changes nothing");
        ensure!(stored(&lab)?.revision == before);
    }
    let (verdict, found) = checked(&lab)?;
    ensure!(verdict == "failed" && parts.iter().all(|part| found.contains(part)), "{verdict}: {found}");
    // The kernel filters as before.
    lab.send(&[&token.to_bytes()[..], b"data"].concat())?;
    lab.delivered(&other)?;
    lab.nothing_arrived()?;

    copy(lab.place.path("newest"), store_of(&lab))?;
    let daemon = lab.start()?;
    ensure!(!daemon.log().contains("rolled back"), "{}", daemon.log());
    lab.refused_token(&token, Reason::Revoked)?;
    // The option does not stop a start with a store that continues.
    daemon.terminate()?;
    let daemon = start_accepting(&lab, &value)?;
    ensure!(daemon.log().contains("`--accept-store` had no effect"), "{}", daemon.log());
    lab.refused_token(&token, Reason::Revoked)
}

/// `--accept-store` that is left in the unit file: it accepts once, neither the same backup again nor a store that is missing.
#[test]
fn an_option_that_is_left_in_place_accepts_nothing_else() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    back_up(&lab)?;
    // The only change since: the accepted store has the same content as the one before.
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.terminate()?;
    restore(&lab)?;
    let again = |value: &str, what: &str| {
        let log = refuses(&lab, &["--accept-store", value], &[what]).context(value.to_owned())?;
        ensure!(!log.contains("it was accepted"), "{log}");
        Ok(())
    };
    let backup = offered(&lab)?;
    start_accepting(&lab, &backup)?.terminate()?;
    start_accepting(&lab, &backup)?.terminate()?;
    restore(&lab)?;
    again(&backup, "was rolled back")?;

    fs::remove_dir_all(store_of(&lab))?;
    again(&backup, "is empty")?;
    let empty = offered(&lab)?;
    start_accepting(&lab, &empty)?.terminate()?;
    let begun = stored(&lab)?;
    fs::remove_dir_all(store_of(&lab))?;
    again(&empty, "is empty")?;
    again(&backup, "is empty")?;
    ensure!(remembered(&lab)? == begun, "a refusal changes nothing");
    // The backup is of another store now.
    fs::remove_dir_all(store_of(&lab))?;
    restore(&lab)?;
    again(&backup, "is not the one")?;
    let other = offered(&lab)?;
    start_accepting(&lab, &other)?.terminate()?;
    restore(&lab)?;
    again(&other, "was rolled back")
}

/// What was revoked since the copy was made: by name, by age and by key.
#[test]
fn an_accepted_store_lifts_no_revocation() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let first = lab.issuer()?.active().0;
    let by_first = lab.token(8)?;
    lab.json(&["keys", "rotate", "--wait"])?;
    let (token, other, single) = (lab.token(7)?, lab.token(8)?, lab.token(9)?);
    lab.delivered(&by_first)?;
    lab.delivered(&single)?;
    back_up(&lab)?;
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    let named = lab.json(&["token", "revoke", &hex::encode(single.to_bytes())])?;
    lab.json(&["keys", "revoke", &first.to_string()])?;
    daemon.terminate()?;
    restore(&lab)?;
    refuses(&lab, &[], &["was rolled back"])?;
    let daemon = accept(&lab)?;
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
    lab.refused_token(&token, Reason::Revoked)?;
    lab.refused_token(&single, Reason::Revoked)?;
    lab.refused_token(&by_first, Reason::InactiveKey)?;
    lab.delivered(&other)?;
    // They are in the store again.
    daemon.kill()?;
    let daemon = lab.start()?;
    let listed = lab.json(&["sessions", "list", "--revoked"])?;
    ensure!(listed.as_array().is_some_and(|listed| listed.len() == 2), "{listed}");
    lab.refused_token(&token, Reason::Revoked)?;
    lab.refused_token(&single, Reason::Revoked)?;
    lab.refused_token(&by_first, Reason::InactiveKey)?;

    back_up(&lab)?;
    lab.json(&["services", "revoke-before", "game"])?;
    lab.refused_token(&other, Reason::Revoked)?;
    daemon.kill()?;
    restore(&lab)?;
    let daemon = accept(&lab)?;
    ensure!(daemon.log().contains("what service 42 issued before"), "{}", daemon.log());
    lab.refused_token(&other, Reason::Revoked)?;
    lab.json(&["sessions", "unrevoke", "7", "--service", "game"])?;
    lab.delivered(&lab.mint(&[])?)?;
    Ok(())
}

fn a_store_that_vanished(family: Family) -> Result<()> {
    let lab = Lab::of(family, L2, 1)?;
    let daemon = lab.start()?;
    let token = lab.token(7)?;
    let issuer = lab.issuer()?;
    daemon.terminate()?;
    let (newest, state) = (stored(&lab)?, store_of(&lab).join("state.json"));
    fs::rename(store_of(&lab), lab.place.path("aside"))?;
    let id = newest.store.to_string();
    let parts = ["is empty", "Is its file system mounted?", &id, "--accept-store 0:"];
    let (verdict, found) = checked(&lab)?;
    ensure!(verdict == "failed" && parts.iter().all(|part| found.contains(part)), "{verdict}: {found}");
    ensure!(!store_of(&lab).exists(), "checking makes nothing");
    refuses(&lab, &[], &parts)?;
    ensure!(!state.exists(), "no new key");
    lab.delivered(&token)?;
    fs::remove_dir_all(store_of(&lab))?;
    fs::rename(lab.place.path("aside"), store_of(&lab))?;
    let daemon = lab.start()?;
    lab.delivered(&token)?;
    daemon.terminate()?;

    // With the option it begins anew, and says what that ends.
    fs::rename(store_of(&lab), lab.place.path("aside"))?;
    let daemon = accept(&lab)?;
    let ended = format!("keys {} verified until now and are not in the store", issuer.active().0);
    ensure!(daemon.log().contains(&ended), "{}", daemon.log());
    lab.delivered(&lab.token(7)?)?;
    daemon.kill()?;
    let daemon = lab.start()?;
    daemon.terminate()?;

    // The first one is another store now, whatever its revision.
    fs::remove_dir_all(store_of(&lab))?;
    fs::rename(lab.place.path("aside"), store_of(&lab))?;
    refuses(&lab, &[], &["is not the one that this host's kernel state was made from", &id])?;
    Ok(())
}

/// Going back to the copy before is a rollback as well: after the copy, the error of the start names the option.
#[test]
fn a_damaged_store_is_recovered_as_its_error_says() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    let token = lab.token(7)?;
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.terminate()?;
    let (state, newest) = (store_of(&lab).join("state.json"), stored(&lab)?.revision);
    let back = format!("revision {}", newest - 1);
    let parts = ["cp -p", &back, "its error names the `--accept-store` option that accepts it"];
    let sound = fs::read(&state)?;
    fs::write(&state, &sound[..sound.len() / 2])?;
    let (verdict, found) = checked(&lab)?;
    ensure!(verdict == "failed" && found.contains("is damaged"), "{verdict}: {found}");
    refuses(&lab, &[], &[&["is damaged"], &parts[..]].concat())?;
    fs::remove_file(&state)?;
    refuses(&lab, &[], &[&["is missing"], &parts[..]].concat())?;
    let copied = Command::new("cp").arg("-p").args([state.with_extension("json.prev"), state]).output()?;
    ensure!(copied.status.success(), "{}", said(&copied));
    refuses(&lab, &[], &["was rolled back"])?;
    let _daemon = accept(&lab)?;
    lab.refused_token(&token, Reason::Revoked)
}

/// The memory goes with the pins: from then on there is no kernel state that the store could be behind.
#[test]
fn without_pins_a_store_is_taken_as_it_is() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let daemon = lab.start()?;
    back_up(&lab)?;
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.terminate()?;
    restore(&lab)?;
    refuses(&lab, &[], &["was rolled back"])?;
    // Its pin alone: it cannot be told any more, which is said.
    fs::remove_file(lab.pin(LastCommit::NAME))?;
    let daemon = lab.start()?;
    ensure!(daemon.log().contains("it is not known which commit"), "{}", daemon.log());
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    // A pin that is removed while the daemon runs comes back, and what is in it, too.
    fs::remove_file(lab.pin(LastCommit::NAME))?;
    wait_for("the pin", || Ok(lab.pin(LastCommit::NAME).exists()))?;
    daemon.terminate()?;
    restore(&lab)?;
    refuses(&lab, &[], &["was rolled back"])?;
    let config = lab.place.config();
    let detached = lab.run(&["detach", "-c", config.to_str().context("a path of text")?])?;
    ensure!(detached.status.success(), "{}", said(&detached));
    let daemon = lab.start()?;
    ensure!(!daemon.log().contains("rolled back"), "{}", daemon.log());
    Ok(())
}

/// A version before format 4 wrote it.
#[test]
fn a_store_without_an_id() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    lab.start()?.terminate()?;
    lab.remove_pins()?;
    let state = store_of(&lab).join("state.json");
    let text = fs::read_to_string(&state)?;
    let (_, content) = text.split_once("\"content\":").context("its content")?;
    let content = content.trim_end().strip_suffix('}').context("its end")?;
    let content = content.replace(&format!("\"store_id\":\"{}\",", stored(&lab)?.store), "");
    let sum = hex::encode(Sha256::digest(&content));
    fs::write(&state, format!("{{\"format\":3,\"sha256\":\"{sum}\",\"content\":{content}}}\n"))?;
    let before = stored(&lab)?;
    ensure!(before.store == store::StoreId::NONE, "{before:?}");
    lab.start()?.kill()?;
    ensure!(remembered(&lab)? == before);
    back_up(&lab)?;
    let daemon = lab.start()?;
    lab.json(&["keys", "rotate"])?;
    daemon.kill()?;
    ensure!(remembered(&lab)?.store != store::StoreId::NONE);
    lab.start()?.kill()?;
    restore(&lab)?;
    refuses(&lab, &[], &["without an ID", "is not the one"])?;
    Ok(())
}

/// Root's `check` reads the store of the daemon's user; a user of its own refuses a rollback, too.
#[test]
fn as_a_user_of_its_own() -> Result<()> {
    let mut lab = Lab::new(L2, 1)?;
    lab.place.set_user(Some(NAME));
    let daemon = lab.start()?;
    back_up(&lab)?;
    let token = lab.token(7)?;
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    daemon.terminate()?;
    ensure!(checked(&lab)?.0 == "good", "{:?}", checked(&lab)?);
    restore(&lab)?;
    ensure!(checked(&lab)?.0 == "failed", "{:?}", checked(&lab)?);
    refuses(&lab, &[], &["was rolled back"])?;
    let _daemon = accept(&lab)?;
    lab.refused_token(&token, Reason::Revoked)
}

/// Whenever the daemon is killed: the memory has what was answered, and nothing that the store has not.
#[test]
fn a_crash_is_no_rollback() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let mut random = fastrand::Rng::with_seed(20_260_703);
    let mut daemon = lab.start()?;
    for crash in 0..12 {
        for session in 0..random.u64(0..3) {
            lab.json(&["sessions", "revoke", &(1000 * crash + session).to_string(), "--service", "game"])?;
        }
        let answered = stored(&lab)?.revision;
        let session = (1000 * crash + 999).to_string();
        let args = ["sessions", "revoke", &session, "--service", "game"];
        let mut revoke = lab.place.tollgate(&lab.topology.balancer, &args)?;
        let mut revoke = revoke.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // Somewhere in a command that takes about as many turns.
        for _ in 0..random.u32(0..20_000) {
            std::thread::yield_now();
        }
        daemon.kill()?;
        revoke.wait()?;
        let (stored, remembered) = (stored(&lab)?, remembered(&lab)?);
        ensure!(remembered.store == stored.store, "crash {crash}: {remembered:?}, {stored:?}");
        ensure!(
            (answered..=stored.revision).contains(&remembered.revision),
            "crash {crash}: {answered} answered, {remembered:?} remembered, {stored:?} stored"
        );
        daemon = lab.start()?;
    }
    Ok(())
}
