//! The tests' own cleanup: at the end of a test, and by the next run after a run was killed.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::testbed::{
    cleanup::{FILES, NAMESPACES, Run},
    daemon::wait_for,
};

use crate::testbed::{L2, Testbed};

/// Files, namespaces and mounts whose names begin with `name`.
fn there_is(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for directory in [FILES, NAMESPACES] {
        let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.path().display().to_string()));
        found.extend(names.collect::<Result<Vec<_>>>()?);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(mounts.lines().map(str::to_owned));
    found.retain(|line| line.contains(name));
    Ok(found)
}

#[test]
fn a_test_leaves_nothing() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let name = testbed.name().to_owned();
    let daemon = testbed.start()?;
    testbed.delivered(&testbed.token(1)?)?;
    ensure!(there_is(&name)?.iter().any(|line| line.contains(" - bpf ")), "no BPF file system");
    drop((daemon, testbed));
    let left = there_is(&format!("{name}-"))?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    ensure!(!Path::new(FILES).join(&name).exists());
    Ok(())
}

/// If this variable is set, the test below is the run that is killed.
const KILLED: &str = "TOLLGATE_RUN_TO_BE_KILLED";

fn wait_to_be_killed() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    eprintln!("{} {}", testbed.name(), daemon.pid());
    loop {
        thread::park();
    }
}

/// In this mount namespace, and in one that ends with the killed process.
#[test]
fn a_killed_run_is_removed_by_the_next() -> Result<()> {
    if env::var_os(KILLED).is_some() {
        return wait_to_be_killed();
    }
    for wrapper in [&[][..], &["unshare", "--mount", "--propagation=unchanged"]] {
        let program = env::current_exe()?.display().to_string();
        let test = "cleanup::a_killed_run_is_removed_by_the_next";
        let words = [wrapper, &[&program, "--exact", test, "--nocapture"]].concat();
        let mut child = Command::new(words[0]);
        child.args(&words[1..]).env(KILLED, "1").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = Killed(child.spawn()?);
        let stderr = BufReader::new(child.0.stderr.take().context("it is a pipe")?);
        let started = stderr.lines().map_while(Result::ok).find(|line| line.starts_with("tgtest-"));
        let started = started.context("the run has not started")?;
        let (name, daemon) = started.split_once(' ').context("a name and a process")?;
        let daemon = Path::new("/proc").join(daemon);

        // A run that is alive is not removed.
        let _run = Run::start("tgtest")?;
        ensure!(daemon.exists() && Path::new(FILES).join(name).exists(), "a living run was removed");
        child.0.kill()?;
        child.0.wait()?;
        ensure!(daemon.exists(), "the daemon has ended with its parent");
        let _run = Run::start("tgtest")?;
        let left = there_is(name)?;
        ensure!(left.is_empty(), "{wrapper:?}: left behind: {left:#?}");
        wait_for("the daemon's end", || {
            // It stays a zombie if no process waits for orphans.
            let state = fs::read_to_string(daemon.join("stat")).unwrap_or_default();
            Ok(state.is_empty() || state.contains(") Z "))
        })?;
    }
    Ok(())
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Needed after an error; otherwise the process has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
