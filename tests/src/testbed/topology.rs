//! Clients, balancers, routers and backends, each in its own namespace, on bridges. A [`Plan`] selects them.
//!
//! ```text
//!   Layout::Segment                                   with an edge, and two balancers of one address
//!
//!   client .2     lb .1, service .100                 client .2 ── clients ── edge .254 | .251
//!      └───────────┴── front ──┴──────┐                                         │ equal-cost routes
//!               backends .11, .12, …                 lb .1  lb2 .3  backends    │
//!                                                      └──────┴── front ──┴─────┘
//!   Layout::Routed                                    Layout::TwoInterfaces
//!
//!   client    lb .1                                   client    lb eth0 .1
//!      └───────┴── front ──┐                             └───────┴── front ──┐
//!        router1 .254  router2 .253                          lb eth1 .1   router1 .254
//!              └── back ───┴──┐                                 └── back ────┴──┐
//!                       backends .11, .12, …                              backends .11, .12, …
//! ```
//!
//! All networks are of both families: front is 10.77.0.0/24 and fd77::/64. Backends have the service's addresses on
//! their loopback and answer neither ARP nor neighbour discovery for them: direct server return.

mod plan;

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
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

use self::plan::ROUTERS;
pub use self::plan::{Layout, Network, PORT, Plan};
pub use crate::model::packet::Family;
use crate::testbed::{
    bpffs::Bpffs,
    cleanup::FILES,
    daemon::wait_for,
    netns::{Namespace, run},
    vlan::Tagger,
};

/// The interface of each host; of a host with two interfaces, the one on the side of the clients.
pub const INTERFACE: &str = "eth0";
/// The interface of a balancer on the side of the backends, in [`Layout::TwoInterfaces`].
pub const BACK_INTERFACE: &str = "eth1";
/// Receive buffer of a backend's application.
const RECEIVE_BUFFER: usize = 64 << 20;
/// The last bytes of the edge's addresses, in the client network and the front network.
const EDGE: [u8; 2] = [254, 251];
/// The last bytes of the balancers' addresses, in this order.
const BALANCERS: [u8; 2] = [1, 3];

/// The hosts. Backend number `i` of `backends` has the id `i + 1`.
pub struct Topology {
    /// The plan that it was made from.
    pub plan: Plan,
    /// The client.
    pub client: Namespace,
    /// The host of the daemon.
    pub balancer: Namespace,
    /// The second balancer, if the plan has two.
    pub second_balancer: Option<Namespace>,
    /// The backends.
    pub backends: Vec<Namespace>,
    /// Routers between balancers and backends, if the plan has them: two for `Routed`, one for `TwoInterfaces`.
    pub routers: Vec<Namespace>,
    /// The router between clients and balancers, if the plan has it.
    pub edge: Option<Namespace>,
    switch: Namespace,
    /// The programs on the bridge ends of the balancers' veths, without which these do not receive what XDP sends.
    _pins: Bpffs,
}

impl Topology {
    /// Creates all hosts. Names begin with `prefix`, which must be unique on this machine.
    ///
    /// # Errors
    /// If something cannot be created. Then nothing is left.
    pub fn new(prefix: &str, plan: impl Into<Plan>) -> Result<Self> {
        let plan = plan.into();
        let tagger = plan.tagged.then(Tagger::new).transpose()?;
        let pins = Bpffs::mount(&Path::new(FILES).join(format!("{prefix}-pins")))?;
        let maker =
            Maker { prefix, plan, switch: Namespace::new(&format!("{prefix}-switch"))?, tagger, pins };
        for network in [Network::Clients, Network::Front, Network::Back] {
            maker.switch.ip(&["link", "add", network.bridge(), "type", "bridge", "mcast_snooping", "0"])?;
            maker.switch.ip(&["link", "set", network.bridge(), "up"])?;
        }
        let client = maker.client()?;
        let balancer = maker.balancer("lb", BALANCERS[0])?;
        let second_balancer = plan.two_balancers.then(|| maker.balancer("lb2", BALANCERS[1])).transpose()?;
        let backends = (1..=plan.backends).map(|number| maker.backend(number)).collect::<Result<_>>()?;
        let routers = match plan.layout {
            Layout::Segment => 0,
            Layout::Routed => 2,
            Layout::TwoInterfaces => 1,
        };
        let routers = (0..routers).map(|index| maker.router(index)).collect::<Result<_>>()?;
        let edge = plan.edge.then(|| maker.edge()).transpose()?;
        let Maker { switch, pins, .. } = maker;
        Ok(Self { plan, client, balancer, second_balancer, backends, routers, edge, switch, _pins: pins })
    }

    /// Disconnects a host from its bridge, or connects it again. `role` is the role in the namespace's name.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn plug(&self, role: &str, plugged: bool) -> Result<()> {
        self.switch.ip(&["link", "set", role, if plugged { "up" } else { "down" }])
    }

    /// Makes the bridges send all frames to all their ports, like a switch whose table is full.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn flood(&self) -> Result<()> {
        [Network::Clients, Network::Front, Network::Back].into_iter().try_for_each(|network| {
            self.switch.ip(&["link", "set", network.bridge(), "type", "bridge", "ageing_time", "0"])
        })
    }

    /// A socket at the client, for a service.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn client_socket(&self, service: SocketAddr) -> Result<UdpSocket> {
        self.client.enter(|| {
            let any = if service.is_ipv4() { Family::V4.any() } else { Family::V6.any() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(service)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            anyhow::Ok(socket)
        })?
    }

    /// A socket at an address of a backend, with a buffer for bursts. Reads time out after 50 ms.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn backend_socket(&self, index: usize, address: SocketAddr) -> Result<UdpSocket> {
        application(&self.backends[index], address)
    }

    /// A socket at an address of the balancer itself.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn local_socket(&self, address: SocketAddr) -> Result<UdpSocket> {
        application(&self.balancer, address)
    }

    /// The source addresses of outer headers for backends, of both families and all balancers.
    pub fn tunnel_sources(&self) -> Vec<String> {
        let network = match self.plan.layout {
            Layout::Segment | Layout::Routed => Network::Front,
            Layout::TwoInterfaces => Network::Back,
        };
        let balancers = if self.plan.two_balancers { &BALANCERS[..] } else { &BALANCERS[..1] };
        let of = |host: &u8| Family::BOTH.map(|family| network.address(family, *host).to_string());
        balancers.iter().flat_map(of).collect()
    }
}

fn application(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    namespace.enter(|| {
        // A process that another test has forked keeps a closed socket open until it executes its program.
        let mut bound = UdpSocket::bind(address);
        wait_for("the address of a closed socket to be free", || {
            let is_in_use = bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
            if is_in_use {
                bound = UdpSocket::bind(address);
            }
            Ok(!is_in_use)
        })?;
        let socket = bound?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        anyhow::Ok(socket)
    })?
}

/// Creates hosts and connects them.
struct Maker<'a> {
    prefix: &'a str,
    plan: Plan,
    switch: Namespace,
    tagger: Option<Tagger>,
    pins: Bpffs,
}

impl Maker<'_> {
    fn client(&self) -> Result<Namespace> {
        let client = self.host("client")?;
        let network = self.plan.clients_at();
        self.plug(&client, INTERFACE, "client", network, 2)?;
        if self.plan.edge {
            default_route(&client, network, EDGE[0])?;
        }
        Ok(client)
    }

    fn balancer(&self, role: &str, address: u8) -> Result<Namespace> {
        let balancer = self.host(role)?;
        // The default of Linux. The ports of `forward = "nat"` are below it.
        balancer.sysctl("net.ipv4.ip_local_port_range", "32768 60999")?;
        self.plug_balancer(&balancer, INTERFACE, role, Network::Front, address)?;
        match self.plan.layout {
            Layout::Segment => {}
            Layout::Routed => {
                Family::BOTH.into_iter().try_for_each(|family| self.route_to_backends(&balancer, family))?;
            }
            Layout::TwoInterfaces => {
                let port = format!("{role}-back");
                self.plug_balancer(&balancer, BACK_INTERFACE, &port, Network::Back, address)?;
            }
        }
        if self.plan.edge {
            default_route(&balancer, Network::Front, EDGE[1])?;
        }
        service_address(&balancer, INTERFACE)?;
        Ok(balancer)
    }

    /// Routes through the first router.
    fn route_to_backends(&self, host: &Namespace, family: Family) -> Result<()> {
        let router = self.plan.router(family, Network::Front, 1);
        route(host, family, &Network::Back.prefix(family, 0), &[router])
    }

    fn plug_balancer(
        &self,
        balancer: &Namespace,
        interface: &str,
        port: &str,
        network: Network,
        address: u8,
    ) -> Result<()> {
        self.plug(balancer, interface, port, network, address)?;
        if let Some(tagger) = &self.tagger {
            let pin = self.pins.path().join(format!("tag-{port}"));
            tagger.attach(balancer, interface, &pin)?;
            tagger.attach(&self.switch, port, &pin)?;
        }
        self.pass(port)
    }

    fn backend(&self, number: u8) -> Result<Namespace> {
        let role = format!("backend{number}");
        let backend = self.host(&role)?;
        backend.sysctl("net.ipv4.conf.all.arp_ignore", "1")?;
        backend.sysctl("net.ipv4.conf.all.arp_announce", "2")?;
        service_address(&backend, "lo")?;
        let network = self.plan.backends_at();
        self.plug(&backend, INTERFACE, &role, network, 10 + number)?;
        match (self.plan.layout, self.plan.edge) {
            (Layout::Routed | Layout::TwoInterfaces, _) => default_route(&backend, network, ROUTERS[0])?,
            (Layout::Segment, true) => default_route(&backend, network, EDGE[1])?,
            (Layout::Segment, false) => {}
        }
        Ok(backend)
    }

    /// Its first interface is on the front network.
    fn router(&self, index: usize) -> Result<Namespace> {
        let role = format!("router{}", index + 1);
        let router = self.host(&role)?;
        forward(&router)?;
        self.plug(&router, INTERFACE, &role, Network::Front, ROUTERS[index])?;
        self.plug(&router, BACK_INTERFACE, &format!("{role}-back"), Network::Back, ROUTERS[index])?;
        if self.plan.edge {
            default_route(&router, Network::Front, EDGE[1])?;
        }
        Ok(router)
    }

    /// Its first interface is on the front network. It spreads flows over the balancers.
    fn edge(&self) -> Result<Namespace> {
        let edge = self.host("edge")?;
        forward(&edge)?;
        edge.sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
        edge.sysctl("net.ipv6.fib_multipath_hash_policy", "1")?;
        self.plug(&edge, INTERFACE, "edge", Network::Front, EDGE[1])?;
        self.plug(&edge, BACK_INTERFACE, "edge-clients", Network::Clients, EDGE[0])?;
        let balancers = if self.plan.two_balancers { &BALANCERS[..] } else { &BALANCERS[..1] };
        for family in Family::BOTH {
            let service = format!("{}/{}", family.service().ip(), family.bits());
            let next_hops: Vec<_> =
                balancers.iter().map(|host| Network::Front.address(family, *host)).collect();
            route(&edge, family, &service, &next_hops)?;
            if self.plan.layout != Layout::Segment {
                self.route_to_backends(&edge, family)?;
            }
        }
        Ok(edge)
    }

    /// A namespace whose addresses are usable immediately. It does not forward packets until `forward` is called.
    fn host(&self, role: &str) -> Result<Namespace> {
        let host = Namespace::new(&format!("{}-{role}", self.prefix))?;
        for (name, value) in [
            ("net.ipv6.conf.all.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.all.keep_addr_on_down", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv4.icmp_ratelimit", "0"),
            ("net.ipv6.icmp.ratelimit", "0"),
        ] {
            host.sysctl(name, value)?;
        }
        Ok(host)
    }

    /// Connects a host to a bridge with a veth pair; `port` is the end at the bridge.
    fn plug(
        &self,
        host: &Namespace,
        interface: &str,
        port: &str,
        network: Network,
        address: u8,
    ) -> Result<()> {
        let switch = &self.switch;
        switch.ip(&["link", "add", port, "type", "veth", "peer", "name", interface, "netns", host.name()])?;
        switch.ip(&["link", "set", port, "master", network.bridge(), "up"])?;
        for family in Family::BOTH {
            let address = network.prefix(family, address);
            let nodad = if family == Family::V6 { &["nodad"][..] } else { &[] };
            host.ip(&[&["address", "add", &address, "dev", interface], nodad].concat())?;
        }
        if !self.plan.checksum_offload {
            for (namespace, interface) in [(switch, port), (host, interface)] {
                let mut ethtool = namespace.command("ethtool")?;
                run(ethtool.args(["-K", interface, "tx", "off", "rx", "off"]))?;
            }
        }
        host.ip(&["link", "set", interface, "up"])
    }

    /// A veth receives what XDP sends out of its peer only while it has an XDP program itself. The program is pinned,
    /// so that a topology that is kept works without this process.
    fn pass(&self, port: &str) -> Result<()> {
        let pin = self.pins.path().join(format!("pass-{port}"));
        self.switch.enter(|| {
            let mut ebpf = Ebpf::load(embedded_object()?).context("cannot load the program")?;
            let program: &mut Xdp =
                ebpf.program_mut(PROGRAM_PASS).context("the object has no such program")?.try_into()?;
            program.load()?;
            let link = program.attach_to_if_index(if_nametoindex(port)?, XdpMode::Driver)?;
            let link: FdLink = program.take_link(link)?.try_into()?;
            link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
            Ok(())
        })?
    }
}

/// Gives a host the service's addresses.
fn service_address(host: &Namespace, interface: &str) -> Result<()> {
    for family in Family::BOTH {
        let address = format!("{}/{}", family.service().ip(), family.bits());
        // Deprecated, so that it is not preferred as the source of the host's own packets.
        let v6: &[_] = if family == Family::V6 { &["nodad", "preferred_lft", "0"] } else { &[] };
        host.ip(&[&["address", "add", &address, "dev", interface], v6].concat())?;
    }
    Ok(())
}

/// Enables forwarding on a host.
fn forward(host: &Namespace) -> Result<()> {
    host.sysctl("net.ipv4.ip_forward", "1")?;
    host.sysctl("net.ipv6.conf.all.forwarding", "1")
}

fn default_route(host: &Namespace, network: Network, gateway: u8) -> Result<()> {
    Family::BOTH
        .into_iter()
        .try_for_each(|family| route(host, family, "default", &[network.address(family, gateway)]))
}

/// Sets a route, over all of these gateways at once.
fn route(host: &Namespace, family: Family, destination: &str, gateways: &[IpAddr]) -> Result<()> {
    let gateways: Vec<_> = gateways.iter().map(IpAddr::to_string).collect();
    let hops = gateways.iter().flat_map(|gateway| ["nexthop", "via", gateway]);
    let args: Vec<_> = [family.option(), "route", "add", destination].into_iter().chain(hops).collect();
    host.ip(&args)
}
