//! A store on a disk that is full or does not respond: a change that cannot be stored is reported and not made, and
//! stored state is not lost.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
    process::Stdio,
};

use anyhow::{Result, ensure};
use lb_common::reason::Reason;
use lb_tests::testbed::daemon::{http, said, wait_for};
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::testbed::{Flow, L2, Mounted, Testbed};

/// Block size of the file system, bytes.
const BLOCK: usize = 4096;

/// Leaves this many blocks free.
fn fill(store: &Path, free: usize) -> Result<()> {
    let mut filler = File::create(store.join("filler"))?;
    let mut blocks: usize = 0;
    loop {
        match filler.write_all(&[0; BLOCK]) {
            Ok(()) => blocks += 1,
            Err(error) if error.kind() == ErrorKind::StorageFull => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filler.set_len((blocks.saturating_sub(free) * BLOCK) as u64)?)
}

#[test]
fn what_cannot_be_stored_is_not_done() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let store = testbed.instance.path("store");
    fs::create_dir(&store)?;
    let _mounted = Mounted::new("tmpfs", &store, "size=256k,mode=0700")?;
    let daemon = testbed.start()?;
    let (token, revoked) = (testbed.token(7)?, testbed.token(9)?);
    testbed.delivered(&token)?;
    testbed.json(&["sessions", "revoke", "9", "--service", "game"])?;
    let known = || {
        let lists = [&["keys", "list"][..], &["sessions", "list", "--revoked"], &["services", "list"]];
        lists.into_iter().map(|list| testbed.json(list)).collect::<Result<Vec<_>>>()
    };
    let before = known()?;
    let key = testbed.issuer()?.active().0.to_string();
    let header = hex::encode(token.to_bytes());
    let many: Vec<String> = (1000..1400).map(|session: u32| session.to_string()).collect();
    let many: Vec<&str> = ["sessions", "revoke", "--service", "game"]
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .collect();

    let fails = |args: &[&str]| {
        let output = testbed.run(args)?;
        let loud = output.status.code() == Some(1) && said(&output).contains("free some space and try again");
        ensure!(loud, "{args:?}: {} {}", output.status, said(&output));
        ensure!(known()? == before, "{args:?} has changed something: {:?}", known()?);
        for file in fs::read_dir(&store)? {
            let file = file?.path();
            ensure!(file.extension().is_none_or(|end| end != "tmp"), "{} is left", file.display());
        }
        Ok(())
    };
    // The copy of the previous state fits, and the new state does not.
    fill(&store, 3)?;
    fails(&many)?;
    fill(&store, 0)?;
    for args in [
        &["keys", "rotate"][..],
        &["keys", "rotate", "--wait"],
        &["keys", "revoke", &key],
        &["sessions", "revoke", "7", "--service", "game"],
        &["token", "revoke", &header],
        &["services", "revoke-before", "game"],
    ] {
        fails(args)?;
    }
    let as_before = || {
        testbed.delivered(&token)?;
        testbed.refused_token(&revoked, Reason::Revoked)?;
        testbed.delivered(&testbed.mint(&[])?)?;
        ensure!(testbed.json(&["status"])?["ready"] == true);
        ensure!(known()? == before, "{:?}", known()?);
        anyhow::Ok(())
    };
    as_before()?;
    daemon.kill()?;
    let daemon = testbed.start()?;
    as_before()?;

    fs::remove_file(store.join("filler"))?;
    testbed.json(&["keys", "rotate", "--wait"])?;
    testbed.json(&many)?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    testbed.refused_token(&token, Reason::Revoked)?;
    daemon.kill()?;
    let _daemon = testbed.start()?;
    testbed.refused_token(&token, Reason::Revoked)?;
    testbed.delivered(&testbed.token(1)?)?;
    Ok(())
}

/// A FIFO instead of the state file: opening it blocks, as on a disk that has failed.
#[test]
fn a_disk_that_does_not_answer_is_said() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    let (state, aside) = (testbed.instance.path("store/state.json"), testbed.instance.path("store/aside"));
    let owner = fs::metadata(&state)?;
    fs::rename(&state, &aside)?;
    mkfifo(&state, Mode::S_IRUSR | Mode::S_IWUSR)?;
    chown(&state, Some(owner.uid()), Some(owner.gid()))?;
    let mut waiting = testbed.instance.tollgate(&testbed.topology.balancer, &["keys", "rotate"])?;
    let mut waiting = waiting.stderr(Stdio::null()).spawn()?;
    let flow = Flow::start(&testbed, vec![token])?;
    let ready = || http(&testbed.topology.balancer, "/readyz");
    let noticed = wait_for("the daemon to notice", || Ok(ready()?.0 == 503));
    let why = ready()?.1;
    // The store now reads other bytes than it wrote: it reports an error, and the daemon keeps running.
    let fifo = File::options().write(true).open(&state)?;
    fs::rename(&aside, &state)?;
    drop(fifo);
    let status = waiting.wait()?;
    noticed?;
    ensure!(why.contains("disk of the store") && daemon.log().contains("disk of the store"), "{why}");
    ensure!(status.code() == Some(1), "{status}");
    wait_for("readiness", || Ok(ready()?.0 == 200))?;
    testbed.json(&["keys", "rotate", "--wait"])?;
    ensure!(flow.finish()? > 100, "no traffic");
    Ok(())
}
