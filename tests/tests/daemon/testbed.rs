//! A topology and a daemon's instance for one test, and functions to send, receive and inspect.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    slice,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;
use lb_common::{maps::ABI_VERSION, reason::Reason, token::Header};
use lb_tests::testbed::{
    cleanup::{self, Run},
    daemon::{Daemon, Instance, PATIENCE, counters, http, service, wait_for},
    decap::Decap,
    forward::Forward,
    issuer::{Issuer, session},
    topology::{Family, INTERFACE, Plan, Topology},
};
use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde_json::Value;

/// Lifetime of a token, seconds.
pub const TTL: u32 = 300;

/// A service `game`, forwarded by l2 and stripped, without automatic rotation.
pub const L2: &str = "forward = \"l2\"\nkey_rotation = \"off\"";

/// A unique name.
pub fn new_name() -> Result<String> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    static RUN: OnceLock<Result<Run, String>> = OnceLock::new();
    let run = RUN.get_or_init(|| Run::start("tgtest").map_err(|error| format!("{error:#}")));
    let run = run.as_ref().map_err(|error| anyhow::Error::msg(error.clone()))?;
    Ok(format!("{}-{}", run.prefix(), MADE.fetch_add(1, Ordering::Relaxed)))
}

/// A balancer with clients, backends and a daemon's instance.
pub struct Testbed {
    name: String,
    pub family: Family,
    pub instance: Instance,
    pub topology: Topology,
    /// The application's sockets: at the backends or, with `local`, at the balancer.
    pub backends: Vec<UdpSocket>,
    client: UdpSocket,
}

impl Testbed {
    /// A testbed over IPv4 whose service has these fields and this many backends.
    pub fn new(fields: &str, backends: u8) -> Result<Self> {
        Self::of(Family::V4, fields, backends)
    }

    /// A testbed whose service has these fields, in this topology.
    pub fn of(family: Family, fields: &str, plan: impl Into<Plan>) -> Result<Self> {
        let name = new_name()?;
        let plan = plan.into();
        let topology = Topology::new(&name, plan)?;
        let instance = Instance::new(&name)?;
        let forward = fields.split("forward = \"").nth(1).and_then(|rest| rest.split('"').next());
        let forward = Forward::from_str(forward.context("a service with `forward`")?, false);
        let forward = forward.map_err(anyhow::Error::msg)?;
        instance.configure(&service(family, fields, &forward.backends(&topology, family)))?;
        let backends = forward.applications(&topology, family.service(), family)?;
        let client = topology.client_socket(family.service())?;
        Ok(Self { name, family, instance, topology, backends, client })
    }

    /// The configuration of a service with these fields and this many of the backends.
    pub fn service(&self, fields: &str, backends: usize) -> String {
        service(self.family, fields, &self.topology.plan.backend_addresses(self.family)[..backends])
    }

    /// The prefix of all names of this testbed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts the daemon and waits until it filters.
    pub fn start(&self) -> Result<Daemon> {
        Daemon::start(&self.instance, &self.topology.balancer)
    }

    /// Starts `tollgate decap` on all backends.
    pub fn decap(&self) -> Result<Vec<Decap>> {
        Decap::on_backends(&self.topology, &self.instance, &self.topology.tunnel_sources())
    }

    /// Removes the pins of a daemon that has ended, and waits until the kernel has detached the program.
    pub fn remove_pins(&self) -> Result<()> {
        fs::remove_dir_all(self.instance.bpffs())?;
        self.is_off()
    }

    /// Waits until the kernel has detached the program.
    pub fn is_off(&self) -> Result<()> {
        wait_for("the program to be off", || Ok(!self.topology.balancer.has_xdp(INTERFACE)?))
    }

    /// The pin of a map or a link.
    pub fn pin(&self, name: &str) -> PathBuf {
        self.instance.bpffs().join(format!("v{ABI_VERSION}")).join(name)
    }

    /// Whether the link of an interface is pinned, below a directory of pins.
    pub fn is_link_pinned(&self, bpffs: &Path, interface: &str) -> Result<bool> {
        let pins = bpffs.join(format!("v{ABI_VERSION}"));
        if !pins.exists() {
            return Ok(false);
        }
        let names = fs::read_dir(pins)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: Vec<String> = names.collect::<Result<_>>()?;
        Ok(names.iter().any(|name| name.starts_with("link-") && name.ends_with(&format!("-{interface}"))))
    }

    /// The answer of `/readyz` for one service or for all: status and body.
    pub fn ready(&self, service: Option<&str>) -> Result<(u16, String)> {
        let query = service.map(|name| format!("?service={name}")).unwrap_or_default();
        http(&self.topology.balancer, &format!("/readyz{query}"))
    }

    /// Waits until `/readyz` is 503 with this reason.
    pub fn not_ready(&self, reason: &str) -> Result<()> {
        let mut seen = String::new();
        wait_for("503", || {
            let (status, body) = self.ready(None)?;
            seen = format!("{status} {body}");
            Ok(status == 503 && body.contains(reason))
        })
        .with_context(|| format!("no `{reason}` in: {seen}"))
    }

    /// Waits until `/readyz` is 200.
    pub fn ready_again(&self) -> Result<()> {
        let mut seen = String::new();
        wait_for("200", || {
            let (status, body) = self.ready(None)?;
            seen = format!("{status} {body}");
            Ok(status == 200)
        })
        .with_context(|| seen)
    }

    /// `tollgate ARGS -o json`.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        self.instance.json(&self.topology.balancer, args)
    }

    /// `tollgate ARGS`.
    pub fn run(&self, args: &[&str]) -> Result<std::process::Output> {
        self.instance.run(&self.topology.balancer, args)
    }

    /// Packets of the service by reason.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        counters(&self.instance, &self.topology.balancer, "game")
    }

    /// An issuer with the current keyset.
    pub fn issuer(&self) -> Result<Issuer> {
        Issuer::new(&self.instance, &self.topology.balancer, "game")
    }

    /// A token of a session, signed with the current keyset.
    pub fn token(&self, session_id: u64) -> Result<Header> {
        Ok(self.issuer()?.token(session(session_id, 0), TTL))
    }

    /// A token of session 7 that the daemon mints.
    pub fn mint(&self, args: &[&str]) -> Result<Header> {
        let mint = ["token", "mint", "--service", "game", "--session", "7"];
        minted_header(&self.json(&[&mint[..], args].concat())?)
    }

    /// Sends a datagram.
    pub fn send(&self, datagram: &[u8]) -> Result<()> {
        self.client.send(datagram)?;
        Ok(())
    }

    /// Sends a token with unique data, which must arrive stripped; returns the backend's id.
    pub fn delivered(&self, token: &Header) -> Result<usize> {
        let data = fastrand::u128(..).to_be_bytes();
        self.send(&[&token.to_bytes()[..], &data].concat())?;
        self.arrives(&data)
    }

    /// Waits for exactly this datagram at any backend; returns the backend's id.
    pub fn arrives(&self, data: &[u8]) -> Result<usize> {
        let arrived = receive(&self.backends).with_context(|| format!("counted: {:?}", self.counters()))?;
        let Datagram { index, bytes, .. } = arrived;
        ensure!(bytes == data, "backend {} got something else: {}", index + 1, hex::encode(bytes));
        Ok(index + 1)
    }

    /// Sends a question with a token, and an answer from the backend that received it; returns the backend's id.
    pub fn answered(&self, token: &Header) -> Result<usize> {
        self.send(&[&token.to_bytes()[..], b"question"].concat())?;
        let Datagram { index, bytes, from } =
            receive(&self.backends).with_context(|| format!("counted: {:?}", self.counters()))?;
        ensure!(bytes == b"question", "backend {} got something else: {}", index + 1, hex::encode(bytes));
        self.backends[index].send_to(b"answer", from)?;
        // The client's socket accepts datagrams from the service's address only.
        let answer = receive(slice::from_ref(&self.client)).context("no answer")?;
        ensure!(answer.bytes == b"answer", "another answer: {}", hex::encode(answer.bytes));
        Ok(index + 1)
    }

    /// Sends a datagram that must be counted under a reason, and must not arrive anywhere.
    pub fn refused(&self, datagram: &[u8], reason: Reason) -> Result<()> {
        let of = |counters: &BTreeMap<String, u64>| counters.get(reason.name()).copied().unwrap_or(0);
        let before = self.counters()?;
        self.send(datagram)?;
        wait_for(reason.name(), || Ok(self.counters()? != before))?;
        let after = self.counters()?;
        let mut expected = before.clone();
        *expected.entry(reason.name().to_owned()).or_default() += 1;
        ensure!(after == expected, "{}: {} before, {after:?} after", reason.name(), of(&before));
        self.nothing_arrived()
    }

    /// Like [`Testbed::refused`], for a token with data after it.
    pub fn refused_token(&self, token: &Header, reason: Reason) -> Result<()> {
        self.refused(&[&token.to_bytes()[..], b"data"].concat(), reason)
    }

    /// Fails if a backend's socket has received a datagram or receives one within the read timeout of 50 ms: a packet
    /// that was counted as dropped by mistake may still be in flight.
    pub fn nothing_arrived(&self) -> Result<()> {
        let mut buffer = [0; 2048];
        for socket in &self.backends {
            if let Ok(len) = socket.recv(&mut buffer) {
                bail!("a backend got {}", hex::encode(&buffer[..len]));
            }
        }
        Ok(())
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        cleanup::hold_if_interrupted();
        // The output is shown if the test fails.
        println!("the daemon's log:\n{}", fs::read_to_string(self.instance.path("log")).unwrap_or_default());
    }
}

/// A file system that is unmounted at the end of the test.
pub struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// Mounts a file system of this type at a directory, with mount(8)'s options.
    pub fn new(kind: &str, at: &'a Path, options: &str) -> Result<Self> {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("cannot mount {kind} at {}", at.display()))?;
        Ok(Self(at))
    }
}

impl Mounted<'_> {
    /// Unmounts it now, even if it is in use (MNT_DETACH).
    pub fn detach(self) -> Result<()> {
        umount2(self.0, MntFlags::MNT_DETACH)?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0, MntFlags::MNT_DETACH) {
            eprintln!("{} is still mounted: {error}", self.0.display());
        }
    }
}

/// A test over IPv4 and over IPv6.
macro_rules! over_both {
    ($($test:ident),* $(,)?) => {$(
        mod $test {
            use lb_tests::testbed::topology::Family;

            #[test]
            fn v4() -> anyhow::Result<()> {
                super::$test(Family::V4)
            }

            #[test]
            fn v6() -> anyhow::Result<()> {
                super::$test(Family::V6)
            }
        }
    )*};
}
pub(crate) use over_both;

/// A datagram that has arrived.
pub struct Datagram {
    /// Index of the socket that received it.
    pub index: usize,
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
}

/// Waits for the next datagram at any of these sockets.
pub fn receive(sockets: &[UdpSocket]) -> Result<Datagram> {
    let mut polled: Vec<_> =
        sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut polled, PollTimeout::try_from(PATIENCE)?)?;
    let index = polled.iter().position(|one| one.any() == Some(true)).context("nothing has arrived")?;
    let mut bytes = vec![0; 65_536];
    let (len, from) = sockets[index].recv_from(&mut bytes)?;
    bytes.truncate(len);
    Ok(Datagram { index, from, bytes })
}

/// Sets an option of a socket whose value is a number.
pub fn set_option(
    socket: &UdpSocket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value outlives the call.
    Errno::result(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len)
    })?;
    Ok(())
}

/// The header that `token mint -o json` has printed.
pub fn minted_header(minted: &Value) -> Result<Header> {
    let bytes = hex::decode(minted["header"].as_str().context("a header")?)?;
    Header::from_payload(&bytes).map_err(|reason| anyhow::anyhow!("{}", reason.name()))
}

/// A continuous flow of valid datagrams, each of which must arrive.
pub struct Flow {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: JoinHandle<Result<()>>,
}

impl Flow {
    /// Sends datagrams with these tokens, alternately, each after the previous one has arrived. The testbed must have
    /// one backend.
    pub fn start(testbed: &Testbed, tokens: Vec<Header>) -> Result<Self> {
        let client = testbed.topology.client_socket(testbed.family.service())?;
        let backend = testbed.backends.first().context("a backend")?.try_clone()?;
        backend.set_read_timeout(Some(Duration::from_secs(2)))?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopping, sending) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            for token in tokens.iter().cycle() {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                let number = sending.load(Ordering::Relaxed);
                client.send(&[&token.to_bytes()[..], &number.to_be_bytes()].concat())?;
                let len = backend.recv(&mut buffer).with_context(|| format!("datagram {number} is lost"))?;
                ensure!(
                    buffer[..len] == number.to_be_bytes(),
                    "datagram {number} came as {:?}",
                    &buffer[..len]
                );
                sending.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { stop, sent, thread })
    }

    /// Waits until this many more datagrams have arrived.
    pub fn pass(&self, count: u32) -> Result<()> {
        let enough = self.passed() + count;
        let deadline = Instant::now() + PATIENCE;
        while self.passed() < enough {
            ensure!(!self.thread.is_finished() && Instant::now() < deadline, "the flow has ended");
            thread::yield_now();
        }
        Ok(())
    }

    /// Datagrams that have arrived so far.
    pub fn passed(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the flow; returns how many datagrams were sent and have arrived.
    pub fn finish(self) -> Result<u32> {
        let Self { stop, sent, thread } = self;
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(sent.load(Ordering::Relaxed))
    }
}
