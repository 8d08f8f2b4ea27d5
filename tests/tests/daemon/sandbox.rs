//! The privileges that the daemon drops. It must still work: as root, as its own user, and as a service manager starts
//! it, with three capabilities.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::{
    daemon::{Daemon, Instance, binary, http, said},
    topology::Family,
    user::{self, NAME, STRANGER, become_user, statuses},
};

use crate::testbed::{Flow, L2, Mounted, Testbed, new_name, over_both};

over_both!(as_a_user_of_its_own, as_root);

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
const THREE: &str = "000000c000001000";
const NONE: &str = "0000000000000000";

fn is_confined(daemon: &Daemon, uid: u32) -> Result<()> {
    let ids = format!("{uid} {uid} {uid} {uid}");
    for (field, expected) in [
        ("Uid", ids.as_str()),
        ("CapInh", NONE),
        ("CapPrm", THREE),
        ("CapEff", THREE),
        ("CapBnd", THREE),
        ("CapAmb", NONE),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        for found in statuses(daemon.pid(), field)? {
            ensure!(found == expected, "{field} is {found}, not {expected}");
        }
    }
    Ok(())
}

/// Traffic, a rotation, revocations, metrics, a crash and a restart; afterwards, everything is removed.
fn does_its_work(testbed: &Testbed, uid: u32) -> Result<()> {
    let daemon = testbed.start()?;
    is_confined(&daemon, uid)?;
    testbed.delivered(&testbed.token(1)?)?;
    testbed.refused(b"junk", Reason::NoToken)?;
    let before = testbed.token(1)?;
    testbed.json(&["keys", "rotate", "--wait"])?;
    let revoked = testbed.token(9)?;
    testbed.json(&["sessions", "revoke", "9", "--service", "game"])?;
    testbed.refused_token(&revoked, Reason::Revoked)?;
    let (status, page) = http(&testbed.topology.balancer, "/metrics")?;
    ensure!(status == 200 && page.contains("tollgate_revocations{kind=\"session\"} 1"), "{page}");
    // A commit has created threads for its fsync.
    is_confined(&daemon, uid)?;
    let flow = Flow::start(testbed, vec![before, testbed.token(2)?])?;
    daemon.kill()?;
    let daemon = testbed.start()?;
    ensure!(daemon.log().contains("program replaced"), "{}", daemon.log());
    ensure!(daemon.terminate()?.success());
    let daemon = testbed.start()?;
    flow.finish()?;
    ensure!(testbed.json(&["status"])?["ready"] == true);
    testbed.refused_token(&revoked, Reason::Revoked)?;
    daemon.terminate()?;
    let config = testbed.instance.config();
    testbed.json(&["detach", "-c", config.to_str().context("a path in UTF-8")?])?;
    ensure!(!testbed.instance.bpffs().exists(), "pins are left");
    Ok(())
}

fn as_a_user_of_its_own(family: Family) -> Result<()> {
    let mut testbed = Testbed::of(family, L2, 1)?;
    testbed.instance.set_user(Some(NAME));
    does_its_work(&testbed, user::uid()?.as_raw())
}

fn as_root(family: Family) -> Result<()> {
    let mut testbed = Testbed::of(family, L2, 1)?;
    testbed.instance.set_user(None);
    does_its_work(&testbed, 0)
}

#[test]
fn what_was_roots_becomes_the_users() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(None);
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    daemon.terminate()?;
    testbed.instance.set_user(Some(NAME));
    let daemon = testbed.start()?;
    ensure!(daemon.log().contains("program replaced"), "{}", daemon.log());
    testbed.delivered(&token)?;
    let pins = testbed.instance.bpffs().join(format!("v{}", lb_common::maps::ABI_VERSION));
    for directory in [testbed.instance.path("store"), pins] {
        let found = fs::metadata(&directory)?;
        let (owner, mode) = (found.uid(), found.mode() & 0o777);
        ensure!((owner, mode) == (user::uid()?.as_raw(), 0o700), "{}: {owner} {mode:o}", directory.display());
        for entry in fs::read_dir(&directory)? {
            ensure!(entry?.metadata()?.uid() == owner);
        }
        let closed = become_user(STRANGER, &[STRANGER], || Ok(fs::read_dir(&directory).is_err()))?;
        ensure!(closed, "{} can be listed", directory.display());
    }
    Ok(())
}

#[test]
fn nobody_elses_files_are_handed_over() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(None);
    testbed.start()?.terminate()?;
    testbed.instance.set_user(Some(NAME));
    let (store, secret) = (testbed.instance.path("store"), testbed.instance.path("secret"));
    fs::write(&secret, "root's")?;

    let refused = |parts: &[&str]| {
        let mut daemon = Daemon::spawn(&testbed.instance, &testbed.topology.balancer)?;
        let status = daemon.ended()?;
        let log = daemon.log();
        ensure!(status.code() == Some(1) && parts.iter().all(|part| log.contains(part)), "{status}: {log}");
        anyhow::Ok(())
    };
    symlink(&secret, store.join("link"))?;
    refused(&["store/link", "not a regular file"])?;
    fs::remove_file(store.join("link"))?;
    fs::hard_link(&secret, store.join("link"))?;
    refused(&["store/link", "not a regular file"])?;
    fs::remove_file(store.join("link"))?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777))?;
    refused(&["store", "chmod go-w"])?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700))?;
    chown(&store, Some(STRANGER), None)?;
    refused(&["store", "belongs to user 61183"])?;
    chown(&store, Some(0), None)?;
    ensure!(fs::metadata(&secret)?.uid() == 0, "a file of root's was given away");

    // In a directory of the user, nothing is changed.
    testbed.start()?.terminate()?;
    symlink(&secret, store.join("link"))?;
    let _daemon = testbed.start()?;
    ensure!(fs::metadata(&secret)?.uid() == 0, "a file of root's was given away");
    Ok(())
}

#[test]
fn users_that_are_none() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(Some("nobody-has-this"));
    let mut daemon = Daemon::spawn(&testbed.instance, &testbed.topology.balancer)?;
    ensure!(daemon.ended()?.code() == Some(1) && daemon.log().contains("useradd"), "{}", daemon.log());
    ensure!(!testbed.instance.bpffs().exists(), "something is pinned");
    Ok(())
}

#[test]
fn with_three_capabilities_from_the_start() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(None);
    let uid = user::uid()?;
    let own = testbed.instance.path("own");
    for name in ["own", "own/bpf", "own/store"] {
        fs::create_dir(testbed.instance.path(name))?;
        chown(testbed.instance.path(name), Some(uid.as_raw()), Some(uid.as_raw()))?;
    }
    // On most systems, only root can access a BPF file system, so this user has its own.
    let bpf = own.join("bpf");
    let _mounted = Mounted::new("bpf", &bpf, "")?;
    chown(&bpf, Some(uid.as_raw()), Some(uid.as_raw()))?;
    let config = fs::read_to_string(testbed.instance.config())?
        .replace(
            &testbed.instance.path("store").display().to_string(),
            &own.join("store").display().to_string(),
        )
        .replace(
            &testbed.instance.path("control.sock").display().to_string(),
            &own.join("sock").display().to_string(),
        )
        .replace(
            &testbed.instance.bpffs().display().to_string(),
            &bpf.join("tollgate").display().to_string(),
        );
    fs::write(testbed.instance.config(), config)?;
    let start = || {
        const CAPS: &str = "+bpf,+net_admin,+perfmon";
        let mut command = testbed.topology.balancer.command("setpriv")?;
        command
            .args(["--reuid", NAME, "--regid", NAME, "--clear-groups"])
            .args(["--inh-caps", &format!("-all,{CAPS}"), "--ambient-caps", CAPS])
            .args(["--bounding-set", &format!("-all,{CAPS}"), &binary()?, "run", "-c"])
            .arg(testbed.instance.config());
        Daemon::spawn_as(&testbed.instance, command)?.until_ready(&testbed.topology.balancer)
    };
    let sock = own.join("sock");
    let sock = sock.to_str().context("a path in UTF-8")?;
    let daemon = start()?;
    is_confined(&daemon, uid.as_raw())?;
    let minted = ["--control", sock, "token", "mint", "--service", "game", "--session", "7"];
    let token = crate::testbed::minted_header(&serde_json::from_slice(
        &testbed.topology.balancer.command(&binary()?)?.args(minted).args(["-o", "json"]).output()?.stdout,
    )?)?;
    testbed.delivered(&token)?;
    ensure!(daemon.terminate()?.success());
    let daemon = start()?;
    testbed.delivered(&token)?;
    ensure!(daemon.terminate()?.success() && !own.join("sock").exists());
    let detached =
        testbed.run(&["detach", "-c", testbed.instance.config().to_str().context("a path in UTF-8")?])?;
    ensure!(detached.status.success(), "{}", said(&detached));
    Ok(())
}

#[test]
fn systemd_takes_the_unit() -> Result<()> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd/tollgate.service");
    let text = fs::read_to_string(&unit)?;
    let instance = Instance::new(&new_name()?)?;
    let unit = instance.path("tollgate.service");
    fs::write(&unit, text.replace("/usr/local/sbin/tollgate", &binary()?))?;
    let program = env::var("SYSTEMD_ANALYZE").context("SYSTEMD_ANALYZE does not name systemd-analyze")?;
    let analyze = |args: &[&str]| {
        Command::new(&program).args(args).arg(&unit).output().context("cannot start systemd-analyze")
    };
    let verified = analyze(&["verify"])?;
    ensure!(verified.status.success() && said(&verified).trim().is_empty(), "{}", said(&verified));
    // In tenths. The remaining exposure is the start as root, and the capabilities.
    let security = analyze(&["security", "--offline=true", "--threshold=35"])?;
    ensure!(security.status.success(), "{}", said(&security));
    Ok(())
}
