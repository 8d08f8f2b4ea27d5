//! A store whose disk is full: what cannot be stored is said and not done, and nothing that was stored is lost.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::Path,
};

use anyhow::{Result, ensure};
use lb_common::reason::Reason;
use lb_tests::daemon::said;

use crate::lab::{L2, Lab, Mounted};

/// Of the file system, bytes.
const BLOCK: usize = 4096;

/// Leaves so many blocks free.
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
    let lab = Lab::new(L2, 1)?;
    let store = lab.place.path("store");
    fs::create_dir(&store)?;
    let _mounted = Mounted::new("tmpfs", &store, "size=256k,mode=0700")?;
    let daemon = lab.start()?;
    let (token, revoked) = (lab.token(7)?, lab.token(9)?);
    lab.delivered(&token)?;
    lab.json(&["sessions", "revoke", "9", "--service", "game"])?;
    let known = || {
        let lists = [&["keys", "list"][..], &["sessions", "list", "--revoked"], &["services", "list"]];
        lists.into_iter().map(|list| lab.json(list)).collect::<Result<Vec<_>>>()
    };
    let before = known()?;
    let key = lab.issuer()?.active().0.to_string();
    let header = hex::encode(token.to_bytes());
    let many: Vec<String> = (1000..1400).map(|session: u32| session.to_string()).collect();
    let many: Vec<&str> = ["sessions", "revoke", "--service", "game"]
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .collect();

    let fails = |args: &[&str]| {
        let output = lab.run(args)?;
        let loud = output.status.code() == Some(1) && said(&output).contains("free some space and try again");
        ensure!(loud, "{args:?}: {} {}", output.status, said(&output));
        ensure!(known()? == before, "{args:?} has changed something: {:?}", known()?);
        for file in fs::read_dir(&store)? {
            let file = file?.path();
            ensure!(file.extension().is_none_or(|end| end != "tmp"), "{} is left", file.display());
        }
        Ok(())
    };
    // The copy of the state before fits, and the new state does not.
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
        lab.delivered(&token)?;
        lab.refused_token(&revoked, Reason::Revoked)?;
        lab.delivered(&lab.mint(&[])?)?;
        ensure!(lab.json(&["status"])?["ready"] == true);
        ensure!(known()? == before, "{:?}", known()?);
        anyhow::Ok(())
    };
    as_before()?;
    daemon.kill()?;
    let daemon = lab.start()?;
    as_before()?;

    fs::remove_file(store.join("filler"))?;
    lab.json(&["keys", "rotate", "--wait"])?;
    lab.json(&many)?;
    lab.json(&["sessions", "revoke", "7", "--service", "game"])?;
    lab.refused_token(&token, Reason::Revoked)?;
    daemon.kill()?;
    let _daemon = lab.start()?;
    lab.refused_token(&token, Reason::Revoked)?;
    lab.delivered(&lab.token(1)?)?;
    Ok(())
}
