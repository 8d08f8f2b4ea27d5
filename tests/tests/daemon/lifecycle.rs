//! Start, stop, crash, restart: packets are forwarded throughout.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    panic::resume_unwind,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    maps::{COUNTERS, STATEFUL},
    reason::Reason,
};
use lb_tests::testbed::{
    daemon::{Daemon, PATIENCE, http, said, wait_for},
    issuer::session,
    topology::Family,
    user::{NAME, STRANGER},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    callers::says,
    testbed::{Flow, L2, TTL, Testbed, over_both},
};

over_both!(
    a_restart_loses_nothing,
    crashes_at_any_moment_of_the_start_lose_nothing,
    without_a_daemon_it_filters_on,
    a_second_daemon_is_refused,
    detach_removes_everything,
    another_size_of_the_token_cache_begins_empty,
    ready_only_while_it_filters,
    a_restart_takes_another_configuration,
    an_interface_that_goes_and_comes_back,
    sigint_is_as_good_as_sigterm,
    pins_removed_while_it_runs,
    pins_removed_that_cannot_come_back,
    a_daemon_that_is_stopped,
    another_interface_under_the_same_name,
);

fn a_restart_loses_nothing(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let flow = Flow::start(&testbed, vec![testbed.token(1)?, testbed.token(2)?])?;
    let status = daemon.terminate()?;
    ensure!(status.success(), "SIGTERM: {status}");
    let daemon = testbed.start()?;
    daemon.kill()?;
    let _daemon = testbed.start()?;
    let sent = flow.finish()?;
    ensure!(sent > 100, "{sent} datagrams are no traffic");
    // Counters continue from their previous values.
    let counted = testbed.counters()?[Reason::Forwarded.name()];
    ensure!(counted == u64::from(sent), "{counted} counted, {sent} sent");
    Ok(())
}

fn crashes_at_any_moment_of_the_start_lose_nothing(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let flow = Flow::start(&testbed, vec![testbed.token(1)?])?;
    daemon.kill()?;
    let before = flow.passed();
    testbed.start()?.kill()?;
    let step = (flow.passed() - before) / 12 + 1;
    // The daemon is killed later each time, counted from its start, until it was ready twice.
    let (mut crashes, mut ready) = (0, 0);
    while ready < 2 {
        ensure!(crashes < 100, "a start takes {} datagrams and more", crashes * step);
        let daemon = Daemon::spawn(&testbed.instance, &testbed.topology.balancer)?;
        flow.pass(crashes * step)?;
        ready += u32::from(daemon.log().contains("ready"));
        daemon.kill()?;
        crashes += 1;
    }
    let _daemon = testbed.start()?;
    let sent = flow.finish()?;
    let counters = testbed.counters()?;
    ensure!(
        counters == BTreeMap::from([(Reason::Forwarded.name().to_owned(), u64::from(sent))]),
        "{sent} sent, {counters:?}"
    );
    testbed.refused(b"junk", Reason::NoToken)
}

fn without_a_daemon_it_filters_on(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    daemon.terminate()?;
    testbed.delivered(&token)?;
    let mut forged = token.to_bytes();
    forged[63] ^= 1;
    testbed.send(&forged)?;
    testbed.send(b"junk")?;
    // The first change is stored when both requests have been received, the second is not.
    testbed.delivered(&token)?;
    let _daemon = testbed.start()?;
    let counters = testbed.counters()?;
    ensure!(
        counters[Reason::BadFastTag.name()] == 1 && counters[Reason::NoToken.name()] == 1,
        "{counters:?}"
    );
    Ok(())
}

fn a_second_daemon_is_refused(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let _first = testbed.start()?;
    let mut second = Daemon::spawn(&testbed.instance, &testbed.topology.balancer)?;
    let status = second.ended()?;
    ensure!(status.code() == Some(1), "{status}");
    ensure!(second.log().contains("in use by process"), "{}", second.log());
    // The first daemon is not affected.
    testbed.delivered(&testbed.token(1)?)?;
    Ok(())
}

fn detach_removes_everything(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let config = testbed.instance.config();
    let detach = ["detach", "-c", config.to_str().unwrap()];
    let output = testbed.run(&detach)?;
    ensure!(output.status.code() == Some(1), "detached under a running daemon: {}", said(&output));
    daemon.terminate()?;
    let output = testbed.run(&detach)?;
    ensure!(output.status.success(), "{}", said(&output));
    let pins = fs::read_dir(testbed.instance.bpffs()).map_or(0, Iterator::count);
    ensure!(pins == 0, "{pins} pins are left");
    // Nothing is filtered any more: junk reaches a socket of the balancer.
    let socket = testbed.topology.local_socket(testbed.family.service())?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = [0; 64];
    // The kernel detaches a program some time after the last reference to its link is closed.
    let deadline = Instant::now() + PATIENCE;
    let len = loop {
        testbed.send(b"junk")?;
        match socket.recv(&mut buffer) {
            Ok(len) => break len,
            Err(error) => ensure!(Instant::now() < deadline, "still filtered: {error}"),
        }
    };
    ensure!(buffer[..len] == *b"junk");
    // A second time succeeds as well.
    ensure!(testbed.run(&detach)?.status.success());
    Ok(())
}

fn another_size_of_the_token_cache_begins_empty(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    daemon.terminate()?;
    let text = fs::read_to_string(testbed.instance.config())?;
    fs::write(testbed.instance.config(), text.replace("sessions = 4096", "sessions = 8192"))?;
    let daemon = testbed.start()?;
    ensure!(daemon.log().contains("starts empty, because its size has changed"), "{}", daemon.log());
    ensure!(testbed.json(&["status"])?["token_cache_capacity"] == 8192);
    testbed.delivered(&token)?;
    Ok(())
}

fn ready_only_while_it_filters(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let (status, _) = http(&testbed.topology.balancer, "/healthz")?;
    ensure!(status == 200, "/healthz: {status}");
    let status = testbed.json(&["status"])?;
    ensure!(status["ready"] == true && status["interfaces"][0]["mode"] == "native", "{status}");
    daemon.terminate()?;
    ensure!(http(&testbed.topology.balancer, "/readyz").is_err());
    Ok(())
}

fn a_restart_takes_another_configuration(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 2)?;
    let daemon = testbed.start()?;
    let to_second = testbed.issuer()?.token(session(1, 2), TTL);
    ensure!(testbed.delivered(&to_second)? == 2);
    daemon.terminate()?;
    testbed.instance.configure(&testbed.service(L2, 1))?;
    let daemon = testbed.start()?;
    testbed.refused_token(&to_second, Reason::NoBackend)?;
    testbed.delivered(&testbed.token(1)?)?;
    daemon.kill()?;
    testbed.instance.configure(&testbed.service("forward = \"l2\"\nstrip = false\nmode = \"observe\"", 2))?;
    let _daemon = testbed.start()?;
    testbed.send(&to_second.to_bytes())?;
    ensure!(testbed.arrives(&to_second.to_bytes())? == 2);
    testbed.send(b"observed")?;
    testbed.arrives(b"observed")?;
    let counters = testbed.counters()?;
    let expected = [Reason::Forwarded, Reason::NoBackend, Reason::NoToken].map(Reason::name);
    ensure!(counters.keys().eq(&BTreeSet::from(expected)), "{counters:?}");
    ensure!(counters[Reason::Forwarded.name()] == 3, "counters continue: {counters:?}");
    Ok(())
}

fn an_interface_that_goes_and_comes_back(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let balancer = &testbed.topology.balancer;
    let add = || {
        balancer.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "eth2"])?;
        ["eth1", "eth2"].iter().try_for_each(|end| balancer.ip(&["link", "set", end, "up"]))
    };
    add()?;
    testbed.instance.configure_on(&["eth0", "eth1"], &testbed.service(L2, 1))?;
    let daemon = testbed.start()?;
    balancer.ip(&["link", "delete", "eth1"])?;
    let ready = || http(balancer, "/readyz");
    wait_for("the daemon to notice", || Ok(ready()?.0 == 503))?;
    let (_, why) = ready()?;
    ensure!(why.contains("eth1"), "{why}");
    ensure!(testbed.json(&["status"])?["ready"] == false);
    testbed.delivered(&testbed.token(1)?)?;
    add()?;
    wait_for("the program on the new interface", || Ok(ready()?.0 == 200))?;
    ensure!(balancer.has_xdp("eth1")?);
    ensure!(daemon.log().contains("attached again"), "{}", daemon.log());
    Ok(())
}

fn sigint_is_as_good_as_sigterm(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let daemon = testbed.start()?;
        let token = testbed.token(1)?;
        let status = daemon.stop(signal)?;
        ensure!(status.success(), "{signal}: {status}");
        ensure!(!testbed.instance.path("control.sock").exists(), "the control socket is left");
        let log = fs::read_to_string(testbed.instance.path("log"))?;
        ensure!(log.contains("the XDP program stays attached to eth0"), "{log}");
        let detach = format!("`tollgate detach -c {}`", testbed.instance.config().display());
        ensure!(log.contains(&detach), "the log does not name {detach}:\n{log}");
        ensure!(log.contains(&format!("{signal}: ending")), "{log}");
        testbed.delivered(&token)?;
    }
    Ok(())
}

fn send_signal(daemon: &Daemon, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(daemon.pid().try_into()?), signal)?)
}

#[test]
fn signals_that_do_not_end_it_are_logged() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let mut daemon = testbed.start()?;
    for (signal, text) in [
        (Signal::SIGHUP, "SIGHUP: a running daemon does not reload its configuration; restart it"),
        (Signal::SIGUSR1, "SIGUSR1: this signal has no meaning here"),
        (Signal::SIGUSR2, "SIGUSR2: this signal has no meaning here"),
        // The second SIGHUP is logged like the first.
        (Signal::SIGHUP, "SIGHUP"),
    ] {
        let before = daemon.log().matches(text).count();
        send_signal(&daemon, signal)?;
        wait_for(text, || {
            ensure!(!daemon.has_ended()?, "{signal} ended the daemon: {}", daemon.log());
            Ok(daemon.log().matches(text).count() == before + 1)
        })?;
    }
    send_signal(&daemon, Signal::SIGPIPE)?;
    testbed.delivered(&testbed.token(1)?)?;
    ensure!(testbed.json(&["status"])?["ready"] == true && !daemon.has_ended()?);
    ensure!(daemon.terminate()?.success());
    Ok(())
}

/// The reader of the log's pipe has ended, as with a closed terminal: a failed log write does not end the daemon.
#[test]
fn a_log_that_nobody_reads_does_not_end_it() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let mut command = testbed.instance.tollgate(&testbed.topology.balancer, &["run", "-c"])?;
    let mut child = command.arg(testbed.instance.config()).stderr(Stdio::piped()).spawn()?;
    drop(child.stderr.take());
    let ready = wait_for("readiness", || {
        ensure!(child.try_wait()?.is_none(), "it ended before it was ready");
        Ok(http(&testbed.topology.balancer, "/readyz").is_ok_and(|(status, _)| status == 200))
    });
    let rotated = ready.and_then(|()| testbed.json(&["keys", "rotate", "--wait"]));
    let delivered = rotated.and_then(|_| testbed.delivered(&testbed.token(1)?));
    let alive = child.try_wait()?.is_none();
    // Its last log lines cannot be written either.
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGTERM)?;
    let status = child.wait()?;
    delivered?;
    ensure!(alive && status.success(), "{status}");
    Ok(())
}

/// Pending answers have two seconds. A second signal ends the daemon at once.
#[test]
fn a_second_sigterm_ends_it_at_once() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let mut daemon = testbed.start()?;
    let mut unfinished = UnixStream::connect(testbed.instance.path("control.sock"))?;
    let head = "POST /v1/keys/rotate HTTP/1.1\r\nHost: tollgate\r\nContent-Type: application/json\r\n\
                Content-Length: 9\r\n\r\n";
    unfinished.write_all(head.as_bytes())?;
    // This connection was accepted after the pending request.
    testbed.json(&["status"])?;
    let first = Instant::now();
    send_signal(&daemon, Signal::SIGTERM)?;
    wait_for("the first to be taken", || Ok(daemon.log().contains("SIGTERM: ending")))?;
    ensure!(!daemon.has_ended()?, "it does not wait for the answer");
    send_signal(&daemon, Signal::SIGTERM)?;
    let status = daemon.ended()?;
    ensure!(status.success(), "{status}");
    ensure!(first.elapsed() < Duration::from_millis(1500), "{:?}", first.elapsed());
    ensure!(!testbed.instance.path("control.sock").exists(), "the control socket is left");
    Ok(())
}

/// The loss of replay windows and counters is reported.
#[test]
fn a_map_that_was_removed_is_missed() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    testbed.start()?.terminate()?;
    for map in [STATEFUL, COUNTERS] {
        fs::remove_file(testbed.pin(map))?;
    }
    let daemon = testbed.start()?;
    let log = daemon.log();
    ensure!(
        log.contains("replay windows and limits start anew") && log.contains("counters start at zero"),
        "{log}"
    );
    ensure!(log.matches("starts empty").count() == 2, "{log}");
    Ok(())
}

/// A user who cannot see the pins gets an error, not a report that there are none.
#[test]
fn detach_by_a_stranger_fails() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    daemon.terminate()?;
    let config = testbed.instance.config();
    let detach = ["detach", "-c", config.to_str().context("a path of text")?];
    let (status, text) = says(&testbed, STRANGER, &[STRANGER], &detach)?;
    ensure!(status == Some(1) && text.contains("run as root"), "{text}");
    let daemon = testbed.start()?;
    ensure!(daemon.log().contains("program replaced without missing a packet"), "{}", daemon.log());
    Ok(())
}

/// Junk is dropped and a token passes, in any state.
fn filters(testbed: &Testbed) -> Result<()> {
    wait_for("the program on the interface", || {
        Ok(http(&testbed.topology.balancer, "/readyz").is_ok_and(|(status, _)| status == 200))
    })?;
    testbed.refused(b"junk", Reason::NoToken)?;
    testbed.delivered(&testbed.token(1)?)?;
    Ok(())
}

fn pins_removed_while_it_runs(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    fs::remove_dir_all(testbed.instance.bpffs())?;
    wait_for("another pin", || testbed.is_link_pinned(testbed.instance.bpffs(), "eth0"))?;
    filters(&testbed)?;
    let counted = testbed.counters()?;
    // The next daemon uses the restored pins and their maps.
    daemon.kill()?;
    let daemon = testbed.start()?;
    ensure!(testbed.counters()? == counted && !daemon.log().contains("starts empty"), "{}", daemon.log());
    filters(&testbed)
}

fn pins_removed_that_cannot_come_back(family: Family) -> Result<()> {
    let mut testbed = Testbed::of(family, L2, 1)?;
    // The daemon cannot create the directory again.
    testbed.instance.set_user(Some(NAME));
    let daemon = testbed.start()?;
    fs::remove_dir_all(testbed.instance.bpffs())?;
    testbed.not_ready("filtering ends with this daemon")?;
    // The daemon itself holds the link.
    testbed.refused(b"junk", Reason::NoToken)?;
    daemon.terminate()?;
    let log = fs::read_to_string(testbed.instance.path("log"))?;
    ensure!(log.contains("NOTHING IS FILTERED on eth0") && !log.contains("stays attached"), "{log}");
    testbed.is_off()?;
    let _daemon = testbed.start()?;
    filters(&testbed)
}

fn another_interface_under_the_same_name(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let balancer = &testbed.topology.balancer;
    balancer.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "peer1"])?;
    for end in ["eth1", "peer1"] {
        balancer.ip(&["link", "set", end, "up"])?;
    }
    testbed.instance.configure_on(&["eth0", "eth1"], &testbed.service(L2, 1))?;
    let daemon = testbed.start()?;
    balancer.ip(&["link", "set", "eth1", "down"])?;
    balancer.ip(&["link", "set", "eth1", "name", "old1"])?;
    balancer.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "peer2"])?;
    for end in ["eth1", "peer2", "old1"] {
        balancer.ip(&["link", "set", end, "up"])?;
    }
    // On both interfaces: the previous one may still have traffic.
    let attached = || {
        let status = testbed.json(&["status"])?;
        let interfaces = status["interfaces"].as_array().context("interfaces")?;
        let all = interfaces.iter().all(|interface| interface["attached"] == true);
        let names: Vec<_> = interfaces.iter().filter_map(|interface| interface["name"].as_str()).collect();
        Ok(all && names == ["eth0", "eth1", "old1"])
    };
    wait_for("the program on the new interface", attached)?;
    daemon.kill()?;
    let _daemon = testbed.start()?;
    ensure!(attached()?, "not on both after a restart: {}", testbed.json(&["status"])?);
    Ok(())
}

fn a_daemon_that_is_stopped(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, L2, 1)?;
    let daemon = testbed.start()?;
    let token = testbed.token(1)?;
    let pid = Pid::from_raw(daemon.pid().try_into()?);
    kill(pid, Signal::SIGSTOP)?;
    let flow = Flow::start(&testbed, vec![token])?;
    let says = |args: &[&str]| -> Result<()> {
        let output = testbed.run(args)?;
        let hint = format!("`kill -CONT {pid}`");
        ensure!(
            output.status.code() == Some(1) && said(&output).contains(&hint),
            "{args:?}: {}",
            said(&output)
        );
        Ok(())
    };
    thread::scope(|scope| {
        let commands = [
            &["status"][..],
            &["sessions", "revoke", "7", "--service", "game"],
            &["keys", "rotate", "--wait"],
        ]
        .map(|args| scope.spawn(move || says(args)));
        commands
            .into_iter()
            .try_for_each(|command| command.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    ensure!(flow.finish()? > 100, "no traffic");
    testbed.send(b"junk")?;
    testbed.delivered(&token)?;
    kill(pid, Signal::SIGCONT)?;
    filters(&testbed)?;
    testbed.json(&["keys", "rotate", "--wait"])?;
    Ok(())
}
