//! Two hosts and the link between them: clients and the flood on one side, the node under test on the other.

use std::{fs, net::IpAddr};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use super::realtime;
use crate::{
    model::packet::Family,
    testbed::{
        netns::{Namespace, run},
        receive_thread,
    },
};

/// The node's interface.
pub const NODE: &str = "load0";
/// The clients' interface.
pub const CLIENTS: &str = "load1";
/// MAC address of the node.
pub const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x5b, 1];
/// Address of the clients.
pub const CLIENT_IP: &str = "10.77.0.2";
const NODE_IP: &str = "10.77.0.1";

/// A veth pair between two namespaces.
pub struct Pair {
    /// The namespace of the senders.
    pub clients: Namespace,
    /// The namespace of the node under test.
    pub node: Namespace,
}

impl Pair {
    /// Creates the pair. Names begin with `prefix`.
    ///
    /// # Errors
    /// If something cannot be created.
    pub fn new(prefix: &str) -> Result<Self> {
        let pair = Self {
            clients: Namespace::new(&format!("{prefix}-clients"))?,
            node: Namespace::new(&format!("{prefix}-node"))?,
        };
        let Self { clients, node } = &pair;
        let mac = NODE_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let link = ["link", "add", CLIENTS, "type", "veth", "peer", "name", NODE, "address", &mac];
        clients.ip(&[&link[..], &["netns", node.name()]].concat())?;
        let service = Family::V4.service().ip().to_string();
        for (namespace, interface, address) in [(clients, CLIENTS, CLIENT_IP), (node, NODE, NODE_IP)] {
            // The kernel must send no packets of its own.
            namespace.ip(&["link", "set", interface, "addrgenmode", "none", "up"])?;
            namespace.ip(&["address", "add", &format!("{address}/24"), "dev", interface])?;
            let mut ethtool = namespace.command("ethtool")?;
            run(ethtool.args(["-K", interface, "tx", "off", "rx", "off"]))?;
        }
        node.ip(&["address", "add", &format!("{service}/32"), "dev", NODE])?;
        clients.ip(&["neighbour", "add", &service, "lladdr", &mac, "dev", CLIENTS, "nud", "permanent"])?;
        Ok(pair)
    }

    /// Makes the node receive on one CPU, with priority over all threads there except the application. The node must
    /// have an XDP program.
    ///
    /// # Errors
    /// If it does not poll, or the priority cannot be set.
    pub fn receive_on(&self, cpu: usize) -> Result<()> {
        let threads: Vec<Pid> = self.node.enter(|| {
            receive_thread::own_sysfs()?;
            receive_thread::poll_on(NODE, cpu)
        })??;
        threads.into_iter().try_for_each(|thread| realtime(thread, super::RECEIVING))
    }

    /// Number of packets that the node has received and processed.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn received(&self) -> Result<u64> {
        self.node.enter(|| {
            let table = fs::read_to_string("/proc/thread-self/net/dev")?;
            let row = table.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{NODE}:")));
            // Bytes, then packets.
            let packets = row.and_then(|row| row.split_whitespace().nth(1));
            Ok(packets.context("the node's interface has no counters")?.parse()?)
        })?
    }

    /// Source address of the clients.
    pub fn client() -> IpAddr {
        IpAddr::V4(CLIENT_IP.parse().expect("an address"))
    }
}
