//! Interfaces, routes and neighbours, as the kernel shows them.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use lb_common::backend::Tag;

use crate::datapath::attach::Mode;

/// A MAC address.
pub type Mac = [u8; 6];

/// Interfaces by name.
pub type Interfaces = HashMap<String, Interface>;

/// The neighbour tables, by interface index and address.
pub type Neighbours = HashMap<(u32, IpAddr), Neighbour>;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Interface index.
    pub index: u32,
    /// MAC address of an Ethernet interface.
    pub mac: Option<Mac>,
    /// MTU, bytes.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Whether an interface of its kind can send redirected frames without an XDP program attached to it.
    pub sends_frames: bool,
    /// The VLAN, if it is a VLAN interface whose parent is in the same namespace.
    pub vlan: Option<Vlan>,
    /// The frames that the stack accepts from it.
    pub receives: Receives,
    /// The XDP program on it, and how it is attached.
    pub xdp: Option<(u32, Mode)>,
}

/// What decides which frames the stack accepts from an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receives {
    /// MAC address, if its frames have an Ethernet header; all zeros for the loopback interface.
    pub address: Option<Mac>,
    /// MAC addresses requested by interfaces above it, also in other namespaces: `netdev->uc` of the kernel.
    pub secondary: BTreeSet<Mac>,
    /// The bridge, bond or other interface that it is a port or member of.
    pub master: Option<u32>,
    /// The parent of a VLAN, macvlan or similar interface, in the same namespace.
    pub below: Option<u32>,
    /// Whether it is a software switch: a bridge, or an interface of Open vSwitch.
    pub switch: Option<Switch>,
}

/// A switch inside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// A bridge: frames for the host arrive on the bridge's own interface.
    Bridge,
    /// An interface of Open vSwitch: frames for the host may arrive on any interface of this kind.
    OpenVswitch,
}

/// The VLAN of a VLAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the parent interface, which receives the tagged frames.
    pub below: u32,
    /// The tag, without priority.
    pub tag: Tag,
}

/// The route to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface.
    pub index: u32,
    /// The router, if the address is not on the same segment; may be an IPv6 router for an IPv4 address.
    pub gateway: Option<IpAddr>,
    /// Source address of this host for the route, if it has one.
    pub source: Option<IpAddr>,
    /// MTU of the route, if it sets one.
    pub mtu: Option<u32>,
    /// Whether the address belongs to this host.
    pub local: bool,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// The MAC address is known.
    Known {
        /// Its MAC address.
        mac: Mac,
        /// Whether the kernel has confirmed it, or is about to.
        fresh: bool,
    },
    /// The kernel is resolving it.
    Asking,
    /// It did not answer.
    Failed,
}
