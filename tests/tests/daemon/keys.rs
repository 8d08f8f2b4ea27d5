//! Keys: rotation under traffic, revocation, export and import.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use lb_common::{maps::KEY_SLOTS, reason::Reason};
use lb_tests::testbed::{
    daemon::{http, said, wait_for},
    topology::Family,
};
use nix::{errno::Errno, libc};

use crate::testbed::{Flow, L2, Testbed, over_both};

over_both!(
    rotations_lose_nothing,
    crashes_at_any_moment_of_a_rotation_lose_nothing,
    a_revoked_key_ends_with_the_next_packet,
    revocation_survives_a_crash,
    keys_survive_without_pins,
    two_nodes_share_a_keyset,
    old_tokens_live_until_they_expire,
    a_key_signs_only_once_the_kernel_has_it,
);

fn rotations_lose_nothing(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let _daemon = testbed.start()?;
    let first = testbed.issuer()?.active();
    let mut tokens = vec![testbed.token(1)?];
    for _ in 0..3 {
        // Tokens of every key so far are sent all the time.
        let flow = Flow::start(&testbed, tokens.clone())?;
        let rotated = testbed.json(&["keys", "rotate", "--service", "game", "--wait"])?;
        ensure!(rotated["items"][0]["state"] == "active", "{rotated}");
        let issuer = testbed.issuer()?;
        ensure!(rotated["items"][0]["key_id"] == issuer.active().0, "{rotated}");
        tokens.push(testbed.token(1)?);
        ensure!(flow.finish()? > 0, "no traffic");
    }
    for token in &tokens {
        testbed.delivered(token)?;
    }
    let keys = testbed.json(&["keys", "list"])?;
    let keys = keys["items"].as_array().context("a list")?;
    ensure!(keys.len() == 4, "{keys:?}");
    let of_first = keys.iter().find(|key| key["key_id"] == first.0).context("the first key is listed")?;
    ensure!(of_first["state"] == "retiring" && of_first["installed"] == true, "{of_first}");
    ensure!(keys.iter().filter(|key| key["state"] == "active").count() == 1, "{keys:?}");
    Ok(())
}

fn crashes_at_any_moment_of_a_rotation_lose_nothing(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let mut daemon = testbed.start()?;
    let mut tokens = vec![testbed.token(1)?];
    let flow = Flow::start(&testbed, tokens.clone())?;
    let before = flow.passed();
    testbed.json(&["keys", "rotate"])?;
    let step = (flow.passed() - before) / 8 + 1;
    flow.finish()?;
    // The daemon is killed later each time, counted from the start of the command, until two rotations were completed.
    let (mut crashes, mut rotated) = (0, 0);
    while rotated < 2 {
        ensure!(crashes < 100, "a rotation takes {} datagrams and more", crashes * step);
        let key_before = testbed.issuer()?.active();
        let flow = Flow::start(&testbed, tokens.clone())?;
        let mut rotate = testbed.instance.tollgate(&testbed.topology.balancer, &["keys", "rotate"])?;
        let mut rotate = rotate.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        flow.pass(crashes * step)?;
        daemon.kill()?;
        let answered = rotate.wait()?.success();
        daemon = testbed.start()?;
        let keys = testbed.json(&["keys", "list"])?;
        let active =
            keys["items"].as_array().into_iter().flatten().filter(|key| key["state"] == "active").count();
        ensure!(active == 1, "after crash {crashes}: {keys}");
        // A change whose request succeeded stays in force.
        wait_for("the rotation that was promised", || {
            Ok(!answered || testbed.issuer()?.active() != key_before)
        })?;
        rotated += u32::from(testbed.issuer()?.active() != key_before);
        tokens.push(testbed.token(1)?);
        flow.finish()?;
        crashes += 1;
    }
    for token in &tokens {
        testbed.delivered(token)?;
    }
    Ok(())
}

fn a_revoked_key_ends_with_the_next_packet(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let old = testbed.issuer()?.active().0;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    testbed.delivered(&token)?; // from the token cache
    let revoked = testbed.json(&["keys", "revoke", &old.to_string()])?;
    ensure!(revoked["key_id"] == old, "{revoked}");
    testbed.refused_token(&token, Reason::InactiveKey)?;
    // The service has a key that signs again.
    wait_for("a new key", || Ok(testbed.issuer().is_ok_and(|issuer| issuer.active().0 != old)))?;
    testbed.delivered(&testbed.token(1)?)?;
    let again = testbed.run(&["keys", "revoke", &old.to_string()])?;
    ensure!(again.status.success() && said(&again).contains("was already revoked"), "{}", said(&again));
    ensure!(daemon.log().matches("key revoked").count() == 1, "{}", daemon.log());
    let output = testbed.run(&["keys", "revoke", "1"])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("keys list"), "{}", said(&output));
    Ok(())
}

fn revocation_survives_a_crash(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    let key = testbed.issuer()?.active().0.to_string();
    testbed.json(&["keys", "revoke", &key])?;
    daemon.kill()?;
    testbed.remove_pins()?;
    let _daemon = testbed.start()?;
    testbed.send(&token.to_bytes())?;
    wait_for("the refusal", || Ok(!testbed.counters()?.is_empty()))?;
    let counters = testbed.counters()?;
    let refused = [Reason::InactiveKey, Reason::UnknownKey].map(|reason| counters.get(reason.name()));
    ensure!(refused.into_iter().flatten().sum::<u64>() == 1, "{counters:?}");
    Ok(())
}

fn keys_survive_without_pins(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    daemon.kill()?;
    testbed.remove_pins()?;
    let _daemon = testbed.start()?;
    testbed.delivered(&token)?;
    Ok(())
}

#[test]
fn rotation_by_itself() -> Result<()> {
    let testbed = Testbed::new("forward = \"l2\"\nmax_ttl = \"2s\"\nkey_rotation = \"3s\"", 1)?;
    let _daemon = testbed.start()?;
    let first = testbed.issuer()?.active();
    wait_for("a rotation", || Ok(testbed.issuer()?.active() != first))
}

fn two_nodes_share_a_keyset(family: Family) -> Result<()> {
    let (one, other) = (Testbed::of(family, L2, 1)?, Testbed::of(family, L2, 1)?);
    let (_first, _second) = (one.start()?, other.start()?);
    let token = one.token(1)?;
    other.refused_token(&token, Reason::UnknownKey)?;

    let exported = one.run(&["keys", "export", "--service", "game"])?;
    let file = other.instance.path("keyset.json");
    fs::write(&file, &exported.stdout)?;
    let file = file.to_str().context("a path in UTF-8")?;
    let report = other.json(&["keys", "import", file])?;
    ensure!(report["added"].as_array().is_some_and(|added| added.len() == 1), "{report}");
    other.delivered(&token)?;
    let again = other.json(&["keys", "import", file])?;
    ensure!(again["added"].as_array().is_some_and(Vec::is_empty), "{again}");

    fs::write(other.instance.path("broken.json"), &exported.stdout[..40])?;
    let output = other.run(&["keys", "import", other.instance.path("broken.json").to_str().unwrap()])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("keys export"), "{}", said(&output));
    Ok(())
}

fn old_tokens_live_until_they_expire(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, "forward = \"l2\"\nmax_ttl = \"2s\"\nkey_rotation = \"off\"", 1)?;
    let _daemon = testbed.start()?;
    let key = |id: u32| {
        let keys = testbed.json(&["keys", "list"])?;
        anyhow::Ok(keys["items"].as_array().into_iter().flatten().find(|key| key["key_id"] == id).cloned())
    };
    // Only the daemon signs with the first key; the second was exported to an issuer for a day.
    let token = testbed.mint(&["--ttl", "2s"])?;
    let first = token.key_id().0;
    testbed.json(&["keys", "rotate", "--wait"])?;
    testbed.delivered(&token)?;
    let second = testbed.issuer()?.active().0;
    testbed.json(&["keys", "rotate", "--wait"])?;

    let refused = |reasons: &[Reason]| {
        testbed.send(&token.to_bytes())?;
        let counters = testbed.counters()?;
        Ok(reasons.iter().any(|reason| counters.contains_key(reason.name())))
    };
    wait_for("the token's end", || refused(&[Reason::Expired]))?;
    let installed = key(first)?.is_some_and(|key| key["installed"] == true);
    ensure!(installed, "the key ended before what it has signed could have");
    wait_for("the key's end", || refused(&[Reason::InactiveKey, Reason::UnknownKey]))?;
    wait_for("the key to leave the list", || Ok(key(first)?.is_none()))?;
    let second = key(second)?.context("the exported key is listed")?;
    ensure!(second["state"] == "retiring" && second["installed"] == true, "{second}");
    Ok(())
}

/// Makes the kernel refuse every later write of a pinned map (bpf(2), BPF_MAP_FREEZE).
fn freeze(pin: &Path) -> Result<()> {
    const BPF_MAP_FREEZE: libc::c_long = 22;
    let map = MapData::from_pin(pin)?;
    // `union bpf_attr`: `map_fd`, then zeros.
    let attributes = [map.fd().as_fd().as_raw_fd(), 0, 0, 0];
    let (at, len) = (attributes.as_ptr(), size_of_val(&attributes));
    // SAFETY: the kernel reads this many bytes at that address, and the map is open.
    Errno::result(unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_FREEZE, at, len) })?;
    Ok(())
}

/// The invariant of key rotation. The kernel accepts no key here, so all issuers sign with the old key until a kernel
/// verifies with the next one.
fn a_key_signs_only_once_the_kernel_has_it(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let first = testbed.issuer()?.active();
    freeze(&testbed.pin(KEY_SLOTS))?;
    let rotated = testbed.run(&["keys", "rotate"])?;
    ensure!(rotated.status.code() == Some(1), "{}", said(&rotated));
    ensure!(said(&rotated).contains("stored, but not applied to the kernel yet"), "{}", said(&rotated));

    let staged = || {
        let keys = testbed.json(&["keys", "list"])?;
        let keys = keys["items"].as_array().context("a list")?;
        ensure!(keys.len() == 2, "{keys:?}");
        let of = |id: u32| keys.iter().find(|key| key["key_id"] == id).context("the first key is listed");
        ensure!(of(first.0)?["state"] == "active" && of(first.0)?["installed"] == true, "{keys:?}");
        let other = keys.iter().find(|key| key["key_id"] != first.0).context("the second key is listed")?;
        ensure!(other["state"] == "staged" && other["installed"] == false, "{keys:?}");
        other["key_id"].as_u64().context("a number")
    };
    let second = staged()?;
    // The loop has tried again, and failed.
    let (status, mut said_of_it) = (503, String::new());
    wait_for("the loop to say that the kernel has no such key", || {
        let (found, body) = http(&testbed.topology.balancer, "/readyz")?;
        said_of_it = body;
        Ok(found == status && said_of_it.contains(&second.to_string()))
    })
    .with_context(|| format!("/readyz says {said_of_it}"))?;
    ensure!(staged()? == second, "another key was made");
    ensure!(testbed.issuer()?.active() == first, "an issuer is told to sign with a key that no kernel has");
    let minted = testbed.mint(&[])?;
    ensure!(minted.key_id() == first, "the daemon signed with key {}", minted.key_id().0);
    testbed.delivered(&minted)?;
    testbed.delivered(&testbed.token(1)?)?;

    // A new map accepts both keys.
    daemon.kill()?;
    testbed.remove_pins()?;
    let _daemon = testbed.start()?;
    wait_for("the second key to sign", || Ok(u64::from(testbed.issuer()?.active().0) == second))?;
    testbed.delivered(&testbed.token(1)?)?;
    testbed.delivered(&minted).map(drop)
}
