//! A client, a balancer and backends, each in a namespace of its own, on one bridge:
//!
//! ```text
//!   client 10.77.0.2      lb 10.77.0.1, service 10.77.0.100      backends 10.77.0.11, .12, …
//!        └───────────────────────┴────── bridge ──────────────────────────┘
//! ```
//!
//! Backends have the service's address on their loopback and do not answer ARP for it: direct server return.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode, links::FdLink},
};
use lb_common::maps::PROGRAM_PASS;
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt::RcvBufForce},
};
use tollgate::datapath::embedded_object;

use crate::{
    leftovers::{self, PINS},
    netns::{Namespace, run},
};

/// Where the service is reached.
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 7777);
/// Each host's interface on the bridge.
pub const INTERFACE: &str = "eth0";
/// Room for what a backend's application has not read yet.
const RECEIVE_BUFFER: usize = 64 << 20;

/// The hosts. Backend number `i` of `backends` has the id `i + 1`.
pub struct Topology {
    /// Who sends.
    pub client: Namespace,
    /// Where the daemon runs.
    pub balancer: Namespace,
    /// Who receives.
    pub backends: Vec<Namespace>,
    switch: Namespace,
    /// The program that lets the bridge's end of the balancer's veth receive what XDP sends.
    _pass: Pinned,
}

/// A pin, gone with this value.
struct Pinned(PathBuf);

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && !leftovers::interrupted()
        {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

impl Topology {
    /// Makes all of it. Names begin with `prefix`, which is to be unique on this machine.
    ///
    /// # Errors
    /// If something cannot be made. Then nothing is left.
    pub fn new(prefix: &str, backends: u8) -> Result<Self> {
        let namespace = |role: &str| Namespace::new(&format!("{prefix}-{role}"));
        let switch = namespace("switch")?;
        switch.ip(&["link", "add", "bridge", "type", "bridge"])?;
        switch.ip(&["link", "set", "bridge", "up"])?;

        let client = namespace("client")?;
        plug(&switch, &client, "client", "10.77.0.2/24")?;
        let balancer = namespace("lb")?;
        plug(&switch, &balancer, "lb", "10.77.0.1/24")?;
        balancer.ip(&["address", "add", &format!("{}/32", SERVICE.ip()), "dev", INTERFACE])?;
        let mut made = Vec::new();
        for number in 1..=backends {
            let role = format!("backend{number}");
            let backend = namespace(&role)?;
            backend.sysctl("net.ipv4.conf.all.arp_ignore", "1")?;
            backend.sysctl("net.ipv4.conf.all.arp_announce", "2")?;
            backend.ip(&["address", "add", &format!("{}/32", SERVICE.ip()), "dev", "lo"])?;
            plug(&switch, &backend, &role, &format!("{}/24", backend_address(number)))?;
            made.push(backend);
        }
        let pass = pass(&switch, "lb", &Path::new(PINS).join(format!("{prefix}-pass")))?;
        Ok(Self { client, balancer, backends: made, switch, _pass: pass })
    }

    /// Takes a host off the bridge, or puts it back. `role` as in the namespace's name.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn plug(&self, role: &str, plugged: bool) -> Result<()> {
        self.switch.ip(&["link", "set", role, if plugged { "up" } else { "down" }])
    }

    /// A socket at the client.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn client_socket(&self) -> Result<UdpSocket> {
        self.client.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(SERVICE)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            anyhow::Ok(socket)
        })?
    }

    /// A socket at the service's address on a backend, with room for bursts. Reading waits 50 ms.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn backend_socket(&self, index: usize) -> Result<UdpSocket> {
        service_socket(&self.backends[index])
    }

    /// A socket at the service's address on the balancer itself.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn local_socket(&self) -> Result<UdpSocket> {
        service_socket(&self.balancer)
    }
}

/// The address of a backend by its number, 1 and up.
pub fn backend_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

fn service_socket(namespace: &Namespace) -> Result<UdpSocket> {
    namespace.enter(|| {
        let socket = UdpSocket::bind(SERVICE)?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        anyhow::Ok(socket)
    })?
}

/// A veth pair from a host to the bridge, whose end there has the role's name.
fn plug(switch: &Namespace, host: &Namespace, role: &str, address: &str) -> Result<()> {
    switch.ip(&["link", "add", role, "type", "veth", "peer", "name", INTERFACE, "netns", host.name()])?;
    switch.ip(&["link", "set", role, "master", "bridge", "up"])?;
    host.ip(&["address", "add", address, "dev", INTERFACE])?;
    // Where checksums are left to a network card, XDP would see packets without them; a veth is no card.
    run(host.command("ethtool")?.args(["-K", INTERFACE, "tx", "off"]))?;
    host.ip(&["link", "set", INTERFACE, "up"])
}

/// A veth receives what XDP sends out of its peer only while it has an XDP program itself. It is pinned: a topology that
/// is kept works on without this process.
fn pass(switch: &Namespace, interface: &str, pin: &Path) -> Result<Pinned> {
    switch.enter(|| {
        let mut ebpf = Ebpf::load(embedded_object()?).context("cannot load the program")?;
        let program: &mut Xdp =
            ebpf.program_mut(PROGRAM_PASS).context("the object has no such program")?.try_into()?;
        program.load()?;
        let link = program.attach_to_if_index(if_nametoindex(interface)?, XdpMode::Driver)?;
        let link: FdLink = program.take_link(link)?.try_into()?;
        link.pin(pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        Ok(Pinned(pin.to_owned()))
    })?
}
