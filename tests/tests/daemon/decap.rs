//! `tollgate decap` on a backend: encapsulated frames come in, real sockets get what was inside.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Child, ChildStderr, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    model::tunnel::{BACKEND_MAC, Kind, Tunnel, datagram},
    testbed::{
        cleanup::Run,
        netns::{Namespace, run},
    },
};
use nix::{
    ifaddrs::getifaddrs,
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
    unistd::Pid,
};

/// Patience with what should happen at once.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_backend_gets_what_was_inside() -> Result<()> {
    let testbed = Testbed::new("in")?;
    let mut decap = Tollgate::start(&testbed, &["--from", "10.9.0.0/24,fd00:9::/64", "-o", "json"])?;
    ensure!(decap.attached.contains("native"), "{}", decap.attached);

    let mut sent = Vec::new();
    for (outer, kind, inner) in [
        (4, Kind::Ipip, 4),
        (6, Kind::Ipip, 4),
        (6, Kind::Ipip, 6),
        (4, Kind::Gue { summed: true }, 4),
        (4, Kind::Gue { summed: false }, 4),
        (6, Kind::Gue { summed: true }, 4),
        (6, Kind::Gue { summed: true }, 6),
        (6, Kind::Gue { summed: false }, 6),
    ] {
        // Congestion on the way has the inner checksum changed.
        for (of_inner, class) in [(0, 0), (2, 3)] {
            let text = format!("v{inner} in v{outer} {kind:?}, {class}");
            let inner = testbed.datagram(inner, of_inner, text.as_bytes());
            testbed.send(&Tunnel { class, ..Tunnel::new(outer, kind, inner) }.bytes())?;
            sent.push(text);
        }
    }
    let mut received = testbed.receive(4)?;
    received.extend(testbed.receive(6)?);
    sent.sort();
    received.sort();
    ensure!(received == sent, "{received:#?}\nis not {sent:#?}");

    let report = decap.end(Signal::SIGTERM)?;
    ensure!(count(&report, "ipip")? == 6 && count(&report, "gue")? == 10, "{report}");
    ensure!(testbed.program().is_none(), "the program is still on: {:?}", testbed.program());
    Ok(())
}

/// A terminal that is closed sends SIGHUP.
#[test]
fn signals_that_do_not_end_it() -> Result<()> {
    let testbed = Testbed::new("hup")?;
    let mut decap = Tollgate::start(&testbed, &["--from", "10.9.0.7", "-o", "json"])?;
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE] {
        kill(Pid::from_raw(decap.child.id().cast_signed()), signal)?;
    }
    let mut log = String::new();
    while !["SIGHUP: ", "SIGUSR1: ", "SIGUSR2: "].iter().all(|signal| log.contains(signal)) {
        ensure!(decap.stderr.read_line(&mut log)? > 0, "it has ended: {log}");
    }
    testbed.send(&Tunnel::new(4, Kind::Ipip, testbed.datagram(4, 0, b"inner")).bytes())?;
    ensure!(testbed.receive(4)? == ["inner"]);
    let report = decap.end(Signal::SIGQUIT)?;
    ensure!(count(&report, "ipip")? == 1, "{report}");
    ensure!(testbed.program().is_none(), "the program is still on: {:?}", testbed.program());
    Ok(())
}

/// The kernel looks at the inner checksum: what was damaged on the way reaches nobody, also where the outer checksum was
/// not looked at. What comes next does.
#[test]
fn what_is_damaged_inside_reaches_nobody() -> Result<()> {
    let testbed = Testbed::new("bad")?;
    let mut decap = Tollgate::start(&testbed, &["--from", "10.9.0.7", "-o", "json"])?;
    let mut damaged = testbed.datagram(4, 0, b"damaged");
    *damaged.last_mut().context("it is not empty")? ^= 1;
    testbed.send(&Tunnel::new(4, Kind::Ipip, damaged).bytes())?;
    testbed.send(&Tunnel::new(4, Kind::Ipip, testbed.datagram(4, 0, b"whole")).bytes())?;
    let received = testbed.receive(4)?;
    ensure!(received == ["whole"], "{received:?}");
    let report = decap.end(Signal::SIGINT)?;
    ensure!(count(&report, "ipip")? == 2, "{report}");
    Ok(())
}

#[test]
fn nobody_elses_packet_is_opened() -> Result<()> {
    let testbed = Testbed::new("foreign")?;
    let stack = testbed.backend.enter(|| raw_socket("eth0"))??;
    let mut decap = Tollgate::start(&testbed, &["--from", "10.9.0.8,fd00:9::/64", "-o", "json"])?;
    let foreign = Tunnel::new(4, Kind::Gue { summed: true }, testbed.datagram(4, 0, b"foreign")).bytes();
    testbed.send(&foreign)?;
    testbed.send(&Tunnel::new(6, Kind::Ipip, testbed.datagram(4, 0, b"known")).bytes())?;
    let received = testbed.receive(4)?;
    ensure!(received == ["known"], "{received:?}");
    // It came to the host's stack as it was.
    let deadline = Instant::now() + PATIENCE;
    let mut frame = [0; 2048];
    loop {
        ensure!(Instant::now() < deadline, "the stack never saw it");
        match recv(stack.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(len) if frame[..len] == foreign => break,
            Ok(_) | Err(nix::Error::EAGAIN) => {}
            Err(error) => return Err(error).context("a packet socket"),
        }
    }
    let report = decap.end(Signal::SIGTERM)?;
    ensure!(count(&report, "foreign")? == 1 && count(&report, "gue")? == 0, "{report}");
    Ok(())
}

#[test]
fn errors_say_what_to_try() -> Result<()> {
    let testbed = Testbed::new("err")?;
    let mut first = Tollgate::start(&testbed, &["--from", "10.9.0.7"])?;
    for (args, status, expected) in [
        (&["-i", "eth0", "--from", "10.9.0.7"][..], 1, "another XDP program is on it"),
        (&["-i", "eth9", "--from", "10.9.0.7"], 1, "there is no interface `eth9`"),
        (&["-i", "lo", "--from", "10.9.0.7"], 1, "has no MAC address"),
        (&["-i", "eth0"], 2, "--from"),
        (&["-i", "eth0", "--from", "10.9.0.7/24"], 2, "more bits than"),
        (&["-i", "eth0", "--from", "lb-1"], 2, "no IP address"),
    ] {
        let output = testbed.command()?.arg("decap").args(args).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(status), "{args:?}: {}: {stderr}", output.status);
        ensure!(stderr.contains(expected), "{args:?}: {stderr}");
    }
    let many = (1..=17).map(|host| format!("10.9.0.{host}")).collect::<Vec<_>>().join(",");
    let output = testbed.command()?.args(["decap", "-i", "eth0", "--from", &many]).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && stderr.contains("room for 16"), "{stderr}");
    // The first one is still there, and ends by itself with its interface.
    testbed.backend.ip(&["link", "delete", "eth0"])?;
    let (status, stderr) = first.wait()?;
    ensure!(status == Some(1) && stderr.contains("`eth0` is gone"), "{status:?}: {stderr}");
    Ok(())
}

/// A balancer's end and a backend's of one wire.
struct Testbed {
    balancer: Namespace,
    backend: Namespace,
    wire: OwnedFd,
    sockets: [UdpSocket; 2],
}

impl Testbed {
    /// Packets must be complete on the veth: checksums are not left to a card.
    fn new(name: &str) -> Result<Self> {
        static RUN: OnceLock<Result<Run, String>> = OnceLock::new();
        let names = RUN.get_or_init(|| Run::start("tgdecap").map_err(|error| format!("{error:#}")));
        let names = names.as_ref().map_err(|error| anyhow::Error::msg(error.clone()))?;
        let prefix = format!("{}-{name}", names.prefix());
        let balancer = Namespace::new(&format!("{prefix}-lb"))?;
        let backend = Namespace::new(&format!("{prefix}-be"))?;
        let mac = BACKEND_MAC.map(|byte| format!("{byte:02x}")).join(":");
        balancer.ip(&[
            "link",
            "add",
            "wire",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "address",
            &mac,
            "netns",
            backend.name(),
        ])?;
        for (namespace, interface) in [(&balancer, "wire"), (&backend, "eth0")] {
            run(namespace.command("ethtool")?.args(["-K", interface, "tx", "off", "rx", "off"]))?;
            namespace.ip(&["link", "set", interface, "up"])?;
        }
        // As docs/operations.md has it for a backend.
        backend.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        backend.sysctl("net.ipv4.conf.eth0.rp_filter", "0")?;
        backend.ip(&["address", "add", "10.8.0.1/24", "dev", "eth0"])?;
        backend.ip(&["address", "add", "fd00:8::1/64", "dev", "eth0", "nodad"])?;
        backend.ip(&["address", "add", "203.0.113.10/32", "dev", "lo"])?;
        backend.ip(&["address", "add", "2001:db8::10/128", "dev", "lo", "nodad"])?;
        backend.ip(&["route", "add", "default", "via", "10.8.0.2"])?;
        backend.ip(&["-6", "route", "add", "default", "via", "fd00:8::2"])?;
        let wire = balancer.enter(|| raw_socket("wire"))??;
        let bound = |address: &str| {
            backend.enter(|| -> Result<UdpSocket> {
                let socket = UdpSocket::bind(address)?;
                socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                Ok(socket)
            })?
        };
        let sockets = [bound("203.0.113.10:7777")?, bound("[2001:db8::10]:7777")?];
        Ok(Self { balancer, backend, wire, sockets })
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.wire.as_raw_fd(), frame, MsgFlags::empty())
            .with_context(|| format!("a frame out of {}", self.balancer.name()))?;
        ensure!(sent == frame.len(), "{sent} bytes were sent");
        Ok(())
    }

    /// A datagram to the service, from a client whom nobody else knows.
    fn datagram(&self, version: u8, class: u8, payload: &[u8]) -> Vec<u8> {
        let (from, to) = match version {
            4 => ("198.51.100.9:40000", "203.0.113.10:7777"),
            _ => ("[2001:db8:9::9]:40000", "[2001:db8::10]:7777"),
        };
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        datagram(address(from), address(to), class, payload)
    }

    /// What the service's socket got, until nothing comes any more.
    fn receive(&self, version: u8) -> Result<Vec<String>> {
        let socket = &self.sockets[usize::from(version == 6)];
        let mut all = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            match socket.recv(&mut buffer) {
                Ok(len) => all.push(String::from_utf8_lossy(&buffer[..len]).into_owned()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(all),
                Err(error) => return Err(error).context("the service's socket"),
            }
        }
    }

    /// The XDP program on the backend's interface, as `ip` shows it.
    fn program(&self) -> Option<String> {
        let output = self.backend.command("ip").ok()?.args(["link", "show", "eth0"]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("xdp").then_some(text)
    }

    fn command(&self) -> Result<Command> {
        let tollgate =
            std::env::var("TOLLGATE_BIN").context("TOLLGATE_BIN is not set: cargo xtask test sets it")?;
        self.backend.command(&tollgate)
    }
}

/// Sends and receives whole frames on an interface.
fn raw_socket(interface: &str) -> Result<OwnedFd> {
    let mut addresses = getifaddrs()?;
    let address = addresses.find_map(|found| {
        let is_it = found.interface_name == interface;
        found.address.filter(|_| is_it)?.as_link_addr().copied()
    });
    let address = address.with_context(|| format!("{interface} has no link address"))?;
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll)?;
    bind(raw.as_raw_fd(), &address)?;
    setsockopt(&raw, ReceiveTimeout, &TimeVal::new(0, 100_000))?;
    Ok(raw)
}

/// The command, once it is attached.
struct Tollgate {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// What it said then.
    attached: String,
}

impl Tollgate {
    fn start(testbed: &Testbed, args: &[&str]) -> Result<Self> {
        let mut child = testbed
            .command()?
            .args(["decap", "--interface", "eth0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().context("it is a pipe")?);
        let mut attached = String::new();
        while !attached.contains("taking off") {
            attached.clear();
            if stderr.read_line(&mut attached)? == 0 {
                bail!("it ended: {:?}", child.wait()?);
            }
        }
        Ok(Self { child, stderr, attached })
    }

    /// Ends it; returns its report.
    fn end(&mut self, signal: Signal) -> Result<serde_json::Value> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        let mut stdout = String::new();
        self.child.stdout.take().context("it is a pipe")?.read_to_string(&mut stdout)?;
        let (status, stderr) = self.wait()?;
        ensure!(status == Some(0), "{status:?}: {stderr}");
        serde_json::from_str(&stdout).with_context(|| format!("no JSON: {stdout}"))
    }

    /// Its exit status and what it said until then.
    fn wait(&mut self) -> Result<(Option<i32>, String)> {
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr)?;
        Ok((self.child.wait()?.code(), stderr))
    }
}

impl Drop for Tollgate {
    fn drop(&mut self) {
        // After an error; else it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn count(report: &serde_json::Value, outcome: &str) -> Result<u64> {
    let all = report["outcomes"].as_array().context("the report has no outcomes")?;
    let found = all.iter().find(|count| count["outcome"] == outcome);
    found.and_then(|count| count["packets"].as_u64()).with_context(|| format!("no {outcome} in {report}"))
}
