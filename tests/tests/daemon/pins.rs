//! Pins that disappear under a running daemon, together with their BPF file system.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{reason::Reason, token::Header};
use lb_tests::testbed::{
    daemon::{Daemon, http, said, wait_for},
    topology::Family,
    user::NAME,
};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::testbed::{L2, Mounted, Testbed, over_both};

over_both!(
    a_file_system_that_is_unmounted_and_mounted_again,
    a_file_system_that_is_unmounted_under_another_user,
    a_file_system_that_is_covered,
    a_file_system_that_is_unmounted_in_the_hosts_namespace,
);

/// A directory for a BPF file system that belongs to the testbed.
fn private(testbed: &Testbed) -> Result<PathBuf> {
    let directory = testbed.instance.path("bpf");
    fs::create_dir(&directory)?;
    let text = fs::read_to_string(testbed.instance.config())?;
    let (before, after) =
        (format!("bpffs = {:?}", testbed.instance.bpffs()), format!("bpffs = {directory:?}"));
    ensure!(text.contains(&before), "{text}");
    fs::write(testbed.instance.config(), text.replace(&before, &after))?;
    Ok(directory)
}

fn mounted(at: &Path) -> Result<Mounted<'_>> {
    Mounted::new("bpf", at, "mode=0700")
}

/// Unmounts the file system. The daemon then reports it in the log, status and readiness, and keeps filtering.
fn unmount(testbed: &Testbed, at: &Path, mounted: Mounted) -> Result<()> {
    let refused = umount2(at, MntFlags::empty());
    ensure!(refused == Err(Errno::EBUSY), "not lazily, with a daemon on it: {refused:?}");
    mounted.detach()?;
    testbed.not_ready("filtering ends with this daemon")?;
    let (_, reason) = testbed.ready(Some("game"))?;
    ensure!(reason.contains("unmounted"), "{reason}");
    let (_, metrics) = http(&testbed.topology.balancer, "/metrics")?;
    ensure!(metrics.contains("tollgate_kernel_differences{} 1"), "{metrics}");
    let log = fs::read_to_string(testbed.instance.path("log"))?;
    ensure!(log.contains("filtering ends with this daemon") && log.contains("unmounted"), "{log}");
    testbed.refused(b"junk", Reason::NoToken)
}

/// A daemon that filters, whose BPF file system has been unmounted from this directory; and a valid token.
fn unmounted(testbed: &Testbed) -> Result<(PathBuf, Daemon, Header)> {
    let directory = private(testbed)?;
    let mounted = mounted(&directory)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    unmount(testbed, &directory, mounted)?;
    testbed.delivered(&token)?;
    Ok((directory, daemon, token))
}

fn a_file_system_that_is_unmounted_and_mounted_again(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let (directory, daemon, token) = unmounted(&testbed)?;

    let second = mounted(&directory)?;
    testbed.ready_again()?;
    ensure!(testbed.is_link_pinned(&directory, "eth0")?, "not pinned again");
    ensure!(daemon.log().contains("have been restored"), "{}", daemon.log());
    // The lock is on the new directory, too.
    let mut second_daemon = Daemon::spawn(&testbed.instance, &testbed.topology.balancer)?;
    second_daemon.ended()?;
    ensure!(second_daemon.log().contains("in use by"), "{}", second_daemon.log());
    let config = testbed.instance.config();
    let detached = testbed.run(&["detach", "-c", config.to_str().context("a path of text")?])?;
    ensure!(said(&detached).contains("in use by a running tollgate"), "{}", said(&detached));
    // Everything persists for the time without a daemon and for the next one.
    daemon.kill()?;
    testbed.delivered(&token)?;
    testbed.send(b"junk")?;
    testbed.nothing_arrived()?;
    let daemon = testbed.start()?;
    ensure!(!daemon.log().contains("starts empty"), "{}", daemon.log());
    ensure!(daemon.log().contains("without missing a packet"), "{}", daemon.log());
    let counters = testbed.counters()?;
    ensure!(counters[Reason::NoToken.name()] == 2, "{counters:?}");

    // The file system is unmounted again, and then the daemon ends.
    unmount(&testbed, &directory, second)?;
    daemon.terminate()?;
    let log = fs::read_to_string(testbed.instance.path("log"))?;
    ensure!(log.contains("NOTHING IS FILTERED on eth0"), "{log}");
    testbed.is_off()
}

/// Another user cannot create the directory again: the daemon reports this, and filters as long as it runs.
fn a_file_system_that_is_unmounted_under_another_user(family: Family) -> Result<()> {
    let mut testbed = Testbed::of(family, L2, 1)?;
    testbed.instance.set_user(Some(NAME));
    let (directory, daemon, token) = unmounted(&testbed)?;
    let _second = mounted(&directory)?;
    // If only root can access the mount point, the daemon cannot see the new file system by its path.
    testbed.not_ready("filtering ends with this daemon")?;
    daemon.terminate()?;
    let log = fs::read_to_string(testbed.instance.path("log"))?;
    ensure!(log.contains("NOTHING IS FILTERED on eth0") && !log.contains("stays attached"), "{log}");
    testbed.is_off()?;
    let _daemon = testbed.start()?;
    testbed.refused(b"junk", Reason::NoToken)?;
    testbed.delivered(&token)?;
    Ok(())
}

/// Another file system is mounted over it, at the path that the next daemon opens.
fn a_file_system_that_is_covered(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let directory = private(&testbed)?;
    let _first = mounted(&directory)?;
    let daemon = testbed.start()?;
    testbed.delivered(&testbed.token(1)?)?;
    let _second = mounted(&directory)?;
    wait_for("other pins", || testbed.is_link_pinned(&directory, "eth0"))?;
    testbed.ready_again()?;
    daemon.kill()?;
    let daemon = testbed.start().context("with the pins of the second")?;
    ensure!(daemon.log().contains("without missing a packet"), "{}", daemon.log());
    testbed.refused(b"junk", Reason::NoToken)
}

/// In a unit with its own mount namespace (`ReadWritePaths=`), a mount on top of the host's stays when that is
/// unmounted. It ends with the daemon.
fn a_file_system_that_is_unmounted_in_the_hosts_namespace(family: Family) -> Result<()> {
    for user in [None, Some(NAME)] {
        let testbed = Testbed::of(family, L2, 1)?;
        let directory = private(&testbed)?;
        let first = mounted(&directory)?;
        let remount = |at: &Path, flags| mount(None::<&str>, at, None::<&str>, flags, None::<&str>);
        remount(&directory, MsFlags::MS_SHARED)?;
        let mut command = testbed.instance.tollgate(&testbed.topology.balancer, &["run", "-c"])?;
        command.arg(testbed.instance.config());
        command.args(user.map(|user| ["--user", user]).into_iter().flatten());
        let unit = directory.clone();
        // SAFETY: unshare and mount are system calls, which may be made between fork and exec.
        unsafe {
            command.pre_exec(move || {
                unshare(CloneFlags::CLONE_NEWNS)?;
                remount(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_SLAVE)?;
                mount(Some(&unit), &unit, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                Ok(())
            });
        }
        let daemon = Daemon::spawn_as(&testbed.instance, command)?.until_ready(&testbed.topology.balancer)?;
        let token = testbed.token(1)?;
        testbed.delivered(&token)?;
        first.detach()?;
        testbed.not_ready("unmounted in the host's mount namespace")?;
        testbed.refused(b"junk", Reason::NoToken)?;
        testbed.delivered(&token)?;
        daemon.terminate()?;
        let log = fs::read_to_string(testbed.instance.path("log"))?;
        ensure!(log.contains("NOTHING IS FILTERED on eth0") && !log.contains("stays attached"), "{log}");
        testbed.is_off()?;
    }
    Ok(())
}
