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

/// What the neighbour tables say, by interface and address.
pub type Neighbours = HashMap<(u32, IpAddr), Neighbour>;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its MAC address, if it is one of Ethernet.
    pub mac: Option<Mac>,
    /// The longest IP packet it takes, bytes.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Whether its kind can send frames that the program redirects to it, without the program on it.
    pub sends_frames: bool,
    /// Of a VLAN's interface in the same namespace as the one below.
    pub vlan: Option<Vlan>,
    /// What frames it receives.
    pub receives: Receives,
    /// The XDP program on it, and how it is attached.
    pub xdp: Option<(u32, Mode)>,
}

/// What decides which frames the stack takes from an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receives {
    /// Its own address, where its frames have an Ethernet header; the loopback's is all zeros.
    pub address: Option<Mac>,
    /// Others for which those above it have asked, also from other namespaces: `netdev->uc` of the kernel.
    pub secondary: BTreeSet<Mac>,
    /// The bridge, bond or other interface that it is a port or member of.
    pub master: Option<u32>,
    /// The interface whose frames it takes part of, in the same namespace: below a VLAN, a macvlan and the like.
    pub below: Option<u32>,
    /// Whether it is a switch that sends frames on by their destination: a bridge, or one of Open vSwitch.
    pub switch: Option<Switch>,
}

/// A switch inside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// A bridge: the host's frames come out of its own interface.
    Bridge,
    /// An interface of Open vSwitch: the host's frames come out of any of this kind.
    OpenVswitch,
}

/// What makes an interface a VLAN's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// The interface that its frames come in on, tagged.
    pub below: u32,
    /// The tag, without priority.
    pub tag: Tag,
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface.
    pub index: u32,
    /// The router, if it is not on the same segment. Of an IPv4 address, it may have an IPv6 address.
    pub gateway: Option<IpAddr>,
    /// This host's address on the way there, where it has one.
    pub source: Option<IpAddr>,
    /// The route's own `mtu`.
    pub mtu: Option<u32>,
    /// Whether the address is one of this host's.
    pub local: bool,
}

/// What the neighbour table says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// It answers, or has until a moment ago.
    Known {
        /// Its MAC address.
        mac: Mac,
        /// Whether the kernel is sure, or is about to make sure.
        fresh: bool,
    },
    /// It is being asked for.
    Asking,
    /// It did not answer.
    Failed,
}
