//! Keys do not leak: into logs, core dumps, other processes, or freed memory.

use std::{
    fs::{self, File},
    os::unix::{fs::FileExt as _, process::ExitStatusExt as _},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::token::keys::MasterKey;
use lb_tests::testbed::{
    daemon::{Daemon, said, wait_for},
    user::{self, NAME, become_user},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tollgate::keyring::Keyset;

use crate::testbed::{L2, Testbed};

const PROOF: &str = "forward = \"l2\"\nkey_rotation = \"off\"\naccept = [\"bearer\", \"proof\"]";

/// The encodings of a key.
struct Spellings(Vec<Vec<u8>>);

impl Spellings {
    fn of(bytes: &[u8]) -> Self {
        // The form in which Debug writes a list of numbers.
        let list = format!("{:?}", &bytes[..8]);
        let list = list.trim_matches(['[', ']']).to_owned();
        let hex = hex::encode(bytes);
        Self(vec![bytes[..8].to_vec(), hex.to_uppercase()[..16].into(), hex[..16].into(), list.into()])
    }

    fn are_in(&self, text: &[u8]) -> bool {
        self.0.iter().any(|spelling| contains(text, spelling))
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn keyset(testbed: &Testbed) -> Result<(Vec<u8>, Keyset)> {
    let output = testbed.run(&["keys", "export", "--service", "game"])?;
    let keyset = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    Ok((output.stdout, keyset))
}

#[test]
fn logs_have_no_keys() -> Result<()> {
    let testbed = Testbed::new(PROOF, 1)?;
    let start = || {
        let mut command = testbed.instance.tollgate(&testbed.topology.balancer, &["run", "-c"])?;
        command.arg(testbed.instance.config()).env("TOLLGATE_LOG", "trace");
        Daemon::spawn_as(&testbed.instance, command)?.until_ready(&testbed.topology.balancer)
    };
    let daemon = start()?;
    testbed.json(&["keys", "rotate", "--wait"])?;
    let minted =
        testbed.json(&["token", "mint", "--service", "game", "--session", "7", "--type", "proof"])?;
    testbed.delivered(&testbed.token(1)?)?;
    let (file, keys) = keyset(&testbed)?;
    fs::write(testbed.instance.path("keyset.json"), file)?;
    let path = testbed.instance.path("keyset.json");
    testbed.json(&["keys", "import", path.to_str().context("a path in UTF-8")?])?;
    daemon.kill()?;
    let daemon = start()?;
    testbed.delivered(&testbed.token(2)?)?;
    testbed.json(&["keys", "revoke", &keys.keys[0].key_id.to_string()])?;
    daemon.terminate()?;

    let log = fs::read(testbed.instance.path("log"))?;
    ensure!(contains(&log, b"TRACE"), "nothing was traced");
    let session_key = hex::decode(minted["session_key"].as_str().context("a session key")?)?;
    let masters = keys.keys.iter().map(|key| key.master.as_bytes().to_vec());
    for secret in masters.chain([session_key]) {
        ensure!(!Spellings::of(&secret).are_in(&log), "a key is in the log");
    }
    let debug = format!("{keys:?} {:?}", MasterKey::from_bytes(*keys.keys[0].master.as_bytes()));
    ensure!(!Spellings::of(keys.keys[0].master.as_bytes()).are_in(debug.as_bytes()), "{debug}");
    Ok(())
}

#[test]
fn freed_memory_has_no_keys() -> Result<()> {
    let testbed = Testbed::new(PROOF, 1)?;
    let daemon = testbed.start()?;
    testbed.json(&["keys", "rotate", "--wait"])?;
    let (file, keys) = keyset(&testbed)?;
    fs::write(testbed.instance.path("keyset.json"), file)?;
    let path = testbed.instance.path("keyset.json");
    testbed.json(&["keys", "import", path.to_str().context("a path in UTF-8")?])?;
    testbed.json(&["token", "mint", "--service", "game", "--session", "7", "--type", "proof"])?;
    // The text for disk and socket is hexadecimal; keys in use are not.
    let memory = Memory::of(daemon.pid())?;
    let node = b"tollgate_";
    ensure!(memory.has(node), "this is not the daemon's memory");
    let (mut raw, mut written) = (0, 0);
    for key in &keys.keys {
        let hex = hex::encode(key.master.as_bytes());
        raw += u32::from(memory.has(key.master.as_bytes()));
        written += u32::from(memory.has(&hex.as_bytes()[..32]) || memory.has(&hex.as_bytes()[32..]));
    }
    ensure!(raw > 0, "the daemon's keys are not found in its memory: this test proves nothing");
    ensure!(written == 0, "{written} keys are in memory as they were sent or stored");
    Ok(())
}

/// All writable memory of a process.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mut regions = Vec::new();
        for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next().context("a range")?, fields.next().context("rights")?);
            if !rights.starts_with("rw") || rights.ends_with('s') {
                continue;
            }
            let (start, end) = range.split_once('-').context("a range")?;
            let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            let mut region = vec![0; usize::try_from(end - start)?];
            if memory.read_exact_at(&mut region, start).is_ok() {
                regions.push(region);
            }
        }
        Ok(Self(regions))
    }

    fn has(&self, part: &[u8]) -> bool {
        self.0.iter().any(|region| memmem(region, part))
    }
}

/// `contains` for megabytes of data.
fn memmem(text: &[u8], part: &[u8]) -> bool {
    // SAFETY: both are read within their lengths.
    let found =
        unsafe { nix::libc::memmem(text.as_ptr().cast(), text.len(), part.as_ptr().cast(), part.len()) };
    !found.is_null()
}

#[test]
fn no_core_is_dumped() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let core = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    // Another program must dump core here; otherwise this test would prove nothing.
    let mut aborted = Command::new("prlimit");
    aborted
        .args(["--core=unlimited:unlimited", "sh", "-c", "kill -ABRT $$"])
        .current_dir(testbed.instance.path(""));
    let aborted = aborted.status()?;
    ensure!(aborted.core_dumped(), "nothing dumps core here (core_pattern {core}): {aborted}");
    for signal in [Signal::SIGABRT, Signal::SIGSEGV] {
        let mut command = testbed.topology.balancer.command("prlimit")?;
        command
            .args(["--core=unlimited:unlimited", &lb_tests::testbed::daemon::binary()?, "run", "-c"])
            .arg(testbed.instance.config())
            .current_dir(testbed.instance.path(""));
        let mut daemon =
            Daemon::spawn_as(&testbed.instance, command)?.until_ready(&testbed.topology.balancer)?;
        let pid = Pid::from_raw(daemon.pid().try_into()?);
        // The first SIGSEGV ends in the handler that detects stack overflows.
        wait_for("the daemon's end", || {
            kill(pid, signal)?;
            daemon.has_ended()
        })?;
        let status = daemon.ended()?;
        ensure!(status.signal() == Some(signal as i32), "{status}");
        ensure!(!status.core_dumped(), "{signal}: a core was dumped");
    }
    Ok(())
}

#[test]
fn other_processes_of_its_user_cannot_look_in() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(Some(NAME));
    let daemon = testbed.start()?;
    let uid = user::uid()?.as_raw();
    let opens = |pid: u32| {
        become_user(uid, &[uid], move || {
            let files = ["mem", "maps", "environ", "fd/0", "root/etc"];
            Ok(files.into_iter().filter(|file| File::open(format!("/proc/{pid}/{file}")).is_ok()).count())
        })
    };
    // A process of the same user that does not hide its memory.
    let mut other = Command::new("setpriv");
    let id = uid.to_string();
    other.args(["--reuid", &id, "--regid", &id, "--clear-groups", "sleep", "60"]);
    let mut other = other.spawn()?;
    let seen = wait_for("a process that can be looked into", || Ok(opens(other.id())? >= 3));
    other.kill()?;
    other.wait()?;
    seen?;
    ensure!(opens(daemon.pid())? == 0, "the daemon can be looked into");
    Ok(())
}
