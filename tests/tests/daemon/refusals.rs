//! What the daemon refuses to start on: a clear error, the next thing to try, nothing changed.

use std::{fs, os::unix::fs::PermissionsExt as _, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use lb_common::maps::PROGRAM_PASS;
use lb_tests::daemon::{Daemon, said, service};
use nix::net::if_::if_nametoindex;
use tollgate::datapath::embedded_object;

use crate::lab::{L2, Lab};

/// Starts the daemon, which must end with status 1 and say all of these.
fn refuses(lab: &Lab, parts: &[&str]) -> Result<()> {
    let mut daemon = Daemon::spawn(&lab.place, &lab.topology.balancer)?;
    let status = daemon.ended()?;
    let log = daemon.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    for part in parts {
        ensure!(log.contains(part), "`{part}` is not in: {log}");
    }
    Ok(())
}

fn nothing_is_pinned(lab: &Lab) -> Result<()> {
    let version = lab.place.bpffs().join(format!("v{}", lb_common::maps::ABI_VERSION));
    let left: Vec<_> =
        fs::read_dir(&version).map_or_else(|_| Vec::new(), |entries| entries.flatten().collect());
    ensure!(left.is_empty(), "{left:?} is left");
    Ok(())
}

#[test]
fn a_wrong_configuration() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let wrong = "[[service]]\nid = 0\nname = \"game\"\naddress = \"10.77.0.100\"\nport = 7777\nforward = \"l2\"\nprot = 1\n";
    lab.place.configure(wrong)?;
    // All at once: file, line, fields.
    refuses(&lab, &["tollgate.toml", "id", "prot"])?;
    let config = lab.place.config();
    let output = lab.run(&["check", "-c", config.to_str().unwrap()])?;
    ensure!(!output.status.success() && said(&output).contains("prot"), "{}", said(&output));
    fs::remove_file(&config)?;
    refuses(&lab, &["tollgate.toml"])?;
    nothing_is_pinned(&lab)
}

#[test]
fn an_interface_that_is_not_there() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    lab.place.configure_on(&["eth0", "eth7"], &service(L2, 1))?;
    refuses(&lab, &["eth7"])?;
    nothing_is_pinned(&lab)
}

#[test]
fn somebody_elses_program() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    // On the second of two interfaces: the first must be free again afterwards.
    lab.topology.balancer.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "eth2"])?;
    lab.topology.balancer.ip(&["link", "set", "eth1", "up"])?;
    let foreign = lab.topology.balancer.enter(|| {
        let mut ebpf = Ebpf::load(embedded_object()?)?;
        let program: &mut Xdp = ebpf.program_mut(PROGRAM_PASS).context("the program")?.try_into()?;
        program.load()?;
        program.attach_to_if_index(if_nametoindex("eth1")?, XdpMode::Driver)?;
        anyhow::Ok(ebpf)
    })??;
    lab.place.configure_on(&["eth0", "eth1"], &service(L2, 1))?;
    refuses(&lab, &["eth1", "program"])?;
    nothing_is_pinned(&lab)?;
    let links = lab.topology.balancer.command("ip")?.args(["link", "show", "eth1"]).output()?;
    ensure!(said(&links).contains("xdp"), "the other program is gone: {}", said(&links));
    let links = lab.topology.balancer.command("ip")?.args(["link", "show", "eth0"]).output()?;
    ensure!(!said(&links).contains("xdp"), "half attached: {}", said(&links));
    drop(foreign);
    let _daemon = lab.start()?;
    Ok(())
}

#[test]
fn a_damaged_store() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    lab.start()?.terminate()?;
    let state = lab.place.path("store/state.json");
    let sound = fs::read(&state)?;
    for (what, content) in [
        ("cut", sound[..sound.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("changed", String::from_utf8_lossy(&sound).replacen("active", "staged", 1).into_bytes()),
    ] {
        fs::write(&state, &content)?;
        refuses(&lab, &["state.json", "damaged"]).with_context(|| what.to_owned())?;
        ensure!(fs::read(&state)? == content, "{what}: the damaged file was changed");
    }
    fs::write(&state, &sound)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o644))?;
    refuses(&lab, &["state.json", "chmod 600"])?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o600))?;
    let _daemon = lab.start()?;
    Ok(())
}

#[test]
fn without_rights() -> Result<()> {
    let lab = Lab::new(L2, 1)?;
    let config = lab.place.config();
    // Readable for everybody, as the test's directory is not by default.
    fs::set_permissions(config.parent().context("a directory")?, fs::Permissions::from_mode(0o755))?;
    let mut command = lab.place.tollgate(&lab.topology.balancer, &["run", "-c", config.to_str().unwrap()])?;
    command.uid(65_534).gid(65_534);
    // pre_exec functions run after uid and gid were set: enter the namespace as root instead, by a shell's exec.
    let output = std::process::Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", lab.topology.balancer.name()))
        .args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(command.get_program())
        .args(command.get_args())
        .output()?;
    let said = said(&output);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("CAP_BPF") || said.contains("root"), "{said}");
    nothing_is_pinned(&lab)
}
