//! Conditions under which the daemon refuses to start: with a clear error and a hint, and without any change.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use lb_common::maps::PROGRAM_PASS;
use lb_tests::testbed::daemon::{Daemon, Instance, METRICS, binary, said};
use nix::net::if_::if_nametoindex;
use tollgate::datapath::embedded_object;

use crate::testbed::{L2, Testbed};

/// Starts the daemon, which must end with status 1 and log all of these parts.
fn refuses(testbed: &Testbed, parts: &[&str]) -> Result<()> {
    let mut daemon = Daemon::spawn(&testbed.instance, &testbed.topology.balancer)?;
    let status = daemon.ended()?;
    let log = daemon.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    for part in parts {
        ensure!(log.contains(part), "`{part}` is not in: {log}");
    }
    Ok(())
}

fn nothing_is_pinned(testbed: &Testbed) -> Result<()> {
    let version = testbed.instance.bpffs().join(format!("v{}", lb_common::maps::ABI_VERSION));
    let left: Vec<_> =
        fs::read_dir(&version).map_or_else(|_| Vec::new(), |entries| entries.flatten().collect());
    ensure!(left.is_empty(), "{left:?} is left");
    Ok(())
}

/// A configuration without services has lines 1 to 8; a service begins on line 9.
const SERVICE_AT: &str = "[[service]]\nid = 42\nname = \"game\"\naddress = \"10.77.0.100\"\nport = 7777\n";

#[test]
fn wrong_configurations() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let config = testbed.instance.config();
    let config = config.to_str().context("a path in UTF-8")?;
    for (services, line, parts) in [
        (format!("{SERVICE_AT}prot = 1\n"), 14, &["prot", "did you mean `port`"][..]),
        (format!("{SERVICE_AT}forward = \"l3\"\n"), 14, &["forward", "l3", "\"l2\""]),
        (format!("{SERVICE_AT}rate = {{}}\nforward = \"l2\"\n"), 14, &["rate", "names no class"]),
        (format!("{SERVICE_AT}max_ttl = \"soon\"\n"), 14, &["max_ttl", "soon"]),
        (SERVICE_AT.replace("42", "0"), 10, &["id", "0"]),
        (SERVICE_AT.replace("10.77.0.100", "fe80::1"), 12, &["address", "link-local"]),
        (SERVICE_AT.replace("7777", "77777"), 13, &["port", "77777"]),
        (format!("{SERVICE_AT}{SERVICE_AT}"), 15, &["id", "42"]),
        ("[[service]\n".to_owned(), 9, &[]),
    ] {
        testbed.instance.configure(&services)?;
        let mut daemon = Daemon::spawn(&testbed.instance, &testbed.topology.balancer)?;
        let status = daemon.ended()?;
        let log = daemon.log();
        let check = testbed.run(&["check", "-c", config])?;
        for (who, code, said) in [("run", status.code(), log), ("check", check.status.code(), said(&check))] {
            ensure!(code == Some(1), "{who}: {code:?} for\n{services}\n{said}");
            let place = format!("tollgate.toml:{line}:");
            ensure!(said.contains(&place), "{who}: `{place}` is not in: {said}");
            for part in parts {
                ensure!(said.contains(part), "{who}: `{part}` is not in: {said}");
            }
        }
    }
    fs::remove_file(config)?;
    refuses(&testbed, &["tollgate.toml", "no such file"])?;
    ensure!(!testbed.instance.bpffs().exists(), "something is pinned");
    Ok(())
}

#[test]
fn without_a_bpf_file_system() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let config = testbed.instance.config();
    let (pins, plain) = (
        testbed.instance.bpffs().display().to_string(),
        testbed.instance.path("plain").display().to_string(),
    );
    fs::write(&config, fs::read_to_string(&config)?.replace(&pins, &plain))?;
    let expected =
        [plain.as_str(), "not on a BPF file system", "`mount -t bpf bpf /sys/fs/bpf`", "set `bpffs`"];
    refuses(&testbed, &expected)?;
    let check = testbed.run(&["check", "-c", config.to_str().context("a path in UTF-8")?])?;
    let found = said(&check);
    ensure!(check.status.code() == Some(1), "{}: {found}", check.status);
    for part in expected {
        ensure!(found.contains(part), "`{part}` is not in: {found}");
    }
    ensure!(!testbed.instance.path("plain").exists(), "something was made");
    Ok(())
}

#[test]
fn an_interface_that_is_not_there() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    testbed.instance.configure_on(&["eth0", "eth7"], &testbed.service(L2, 1))?;
    refuses(&testbed, &["eth7"])?;
    nothing_is_pinned(&testbed)
}

#[test]
fn somebody_elses_program() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    // On the second of two interfaces: the first must be released again afterwards.
    testbed.topology.balancer.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "eth2"])?;
    for end in ["eth1", "eth2"] {
        testbed.topology.balancer.ip(&["link", "set", end, "up"])?;
    }
    let foreign = testbed.topology.balancer.enter(|| {
        let mut ebpf = Ebpf::load(embedded_object()?)?;
        let program: &mut Xdp = ebpf.program_mut(PROGRAM_PASS).context("the program")?.try_into()?;
        program.load()?;
        program.attach_to_if_index(if_nametoindex("eth1")?, XdpMode::Driver)?;
        anyhow::Ok(ebpf)
    })??;
    testbed.instance.configure_on(&["eth0", "eth1"], &testbed.service(L2, 1))?;
    refuses(&testbed, &["eth1", "program"])?;
    nothing_is_pinned(&testbed)?;
    ensure!(testbed.topology.balancer.has_xdp("eth1")?, "the other program is gone");
    ensure!(!testbed.topology.balancer.has_xdp("eth0")?, "half attached");
    drop(foreign);
    let _daemon = testbed.start()?;
    Ok(())
}

#[test]
fn a_damaged_store() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    testbed.start()?.terminate()?;
    let state = testbed.instance.path("store/state.json");
    let sound = fs::read(&state)?;
    for (what, content) in [
        ("cut", sound[..sound.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("changed", String::from_utf8_lossy(&sound).replacen("active", "staged", 1).into_bytes()),
    ] {
        fs::write(&state, &content)?;
        refuses(&testbed, &["state.json", "damaged"]).with_context(|| what.to_owned())?;
        ensure!(fs::read(&state)? == content, "{what}: the damaged file was changed");
    }
    fs::write(&state, &sound)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o644))?;
    refuses(&testbed, &["state.json", "chmod 600"])?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o600))?;
    let _daemon = testbed.start()?;
    Ok(())
}

#[test]
fn stores_that_cannot_be_used() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let daemon = testbed.start()?;
    testbed.json(&["keys", "rotate"])?;
    daemon.terminate()?;
    let (store, state) = (testbed.instance.path("store"), testbed.instance.path("store/state.json"));
    let sound = fs::read(&state)?;

    let newer = String::from_utf8_lossy(&sound).replacen("\"format\":4", "\"format\":5", 1);
    fs::write(&state, &newer)?;
    refuses(&testbed, &["state.json", "format 5", "newer"])?;
    ensure!(fs::read(&state)? == newer.as_bytes(), "the newer file was changed");
    fs::write(&state, &sound)?;

    fs::set_permissions(&store, fs::Permissions::from_mode(0o777))?;
    refuses(&testbed, &["store", "chmod 700"])?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700))?;

    let aside = testbed.instance.path("aside");
    fs::rename(&store, &aside)?;
    fs::write(&store, "a file where a directory should be")?;
    refuses(&testbed, &["store", "move it away"])?;
    fs::remove_file(&store)?;
    fs::rename(&aside, &store)?;

    // Generating new keys without an error would refuse all tokens.
    fs::rename(&state, &aside)?;
    refuses(&testbed, &["state.json", "missing", ".prev"])?;
    fs::create_dir(&state)?;
    refuses(&testbed, &["state.json"])?;
    fs::remove_dir(&state)?;
    fs::rename(&aside, &state)?;
    // The program has filtered all the time, and all keys still exist.
    let _daemon = testbed.start()?;
    testbed.delivered(&testbed.token(1)?)?;
    Ok(())
}

#[test]
fn places_that_are_taken() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let control = testbed.instance.path("control.sock");
    fs::write(&control, "not a socket")?;
    refuses(&testbed, &["control.sock", "not a socket"])?;
    ensure!(fs::read(&control)? == b"not a socket", "another program's file was changed");
    fs::remove_file(&control)?;

    let taken = testbed.topology.balancer.enter(|| TcpListener::bind(METRICS))??;
    refuses(&testbed, &["127.0.0.1:9477", "`metrics`"])?;
    nothing_is_pinned(&testbed)?;
    drop(taken);
    let _daemon = testbed.start()?;
    Ok(())
}

/// The kernel's default range, also of a new namespace, is 32768 to 60999.
#[test]
fn nat_ports_that_the_host_gives_to_its_own_sockets() -> Result<()> {
    let testbed = Testbed::new("forward = \"nat\"\nkey_rotation = \"off\"", 1)?;
    let text = fs::read_to_string(testbed.instance.config())?;
    fs::write(testbed.instance.config(), format!("nat_ports = \"32760-32768\"\n{text}"))?;
    refuses(&testbed, &["32768-60999", "ip_local_reserved_ports=32760-32768"])?;
    nothing_is_pinned(&testbed)?;
    testbed.topology.balancer.sysctl("net.ipv4.ip_local_reserved_ports", "32768")?;
    let _daemon = testbed.start()?;
    Ok(())
}

#[test]
fn an_interface_of_another_tollgate() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    // With its own store, socket and pins, so that only the interface conflicts.
    let other = Instance::new(&format!("{}-other", testbed.name()))?;
    other.configure(&testbed.service(L2, 1))?;
    let text = fs::read_to_string(other.config())?;
    fs::write(other.config(), text.replace("127.0.0.1:9477", "127.0.0.1:9478"))?;
    let mut second = Daemon::spawn(&other, &testbed.topology.balancer)?;
    let status = second.ended()?;
    let log = second.log();
    ensure!(status.code() == Some(1) && log.contains("eth0"), "{status}: {log}");
    ensure!(log.contains("it carries another XDP program"), "{log}");
    testbed.delivered(&token)?;
    Ok(())
}

#[test]
fn a_second_interface_that_will_not_do() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    // The loopback interface passes all checks, but has no native XDP.
    testbed.instance.configure_on(&["eth0", "lo"], &testbed.service(L2, 1))?;
    let text = fs::read_to_string(testbed.instance.config())?;
    fs::write(testbed.instance.config(), format!("xdp_mode = \"native\"\n{text}"))?;
    refuses(&testbed, &["`lo`", "generic"])?;
    nothing_is_pinned(&testbed)?;
    ensure!(!testbed.topology.balancer.has_xdp("eth0")?, "half attached");
    Ok(())
}

#[test]
fn a_pinned_map_of_another_layout() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    testbed.start()?.terminate()?;
    let pins = testbed.instance.bpffs().join(format!("v{}", lb_common::maps::ABI_VERSION));
    fs::remove_file(pins.join(lb_common::maps::COUNTERS))?;
    fs::rename(pins.join(lb_common::maps::CONTROL), pins.join(lb_common::maps::COUNTERS))?;
    refuses(&testbed, &[lb_common::maps::COUNTERS, "tollgate detach"])?;
    let config = testbed.instance.config();
    testbed.json(&["detach", "-c", config.to_str().context("a path in UTF-8")?])?;
    let _daemon = testbed.start()?;
    testbed.delivered(&testbed.token(1)?)?;
    Ok(())
}

#[test]
fn without_rights() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let config = testbed.instance.config();
    // World-readable, which the test's directory is not by default.
    fs::set_permissions(config.parent().context("a directory")?, fs::Permissions::from_mode(0o755))?;
    let output = testbed
        .topology
        .balancer
        .command("setpriv")?
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(binary()?)
        .args(["run", "-c", config.to_str().context("a path in UTF-8")?])
        .output()?;
    let said = said(&output);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("CAP_BPF") || said.contains("root"), "{said}");
    nothing_is_pinned(&testbed)
}
