//! The hosts of a topology, and their addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::packet::Family;

/// The service's UDP port.
pub const PORT: u16 = 7777;
/// The last bytes of the routers' addresses, in this order.
pub(super) const ROUTERS: [u8; 2] = [254, 253];

/// The addresses of a family in a topology.
impl Family {
    /// The address of the service.
    pub fn service(self) -> SocketAddr {
        (Network::Front.address(self, 100), PORT).into()
    }

    /// `ip`'s option for it.
    pub const fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// Its unspecified address.
    pub const fn any(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Bits of an address.
    pub(super) const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// A network: a bridge, and its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Behind the edge: 10.76.0.0/24 and fd76::/64.
    Clients,
    /// The balancers: 10.77.0.0/24 and fd77::/64.
    Front,
    /// Behind routers or the balancer's other interface: 10.78.0.0/24 and fd78::/64.
    Back,
}

impl Network {
    /// Its bridge's name.
    pub(super) const fn bridge(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Front => "front",
            Self::Back => "back",
        }
    }

    /// The address of a host in the network. IPv6 addresses are written with the same digits: 10.77.0.11 and fd77::11.
    pub fn address(self, family: Family, host: u8) -> IpAddr {
        let host_v6 = u16::from(host / 100) << 8 | u16::from(host / 10 % 10) << 4 | u16::from(host % 10);
        let (v4, v6) = match self {
            Self::Clients => (76, 0xfd76),
            Self::Front => (77, 0xfd77),
            Self::Back => (78, 0xfd78),
        };
        match family {
            Family::V4 => Ipv4Addr::new(10, v4, 0, host).into(),
            Family::V6 => Ipv6Addr::new(v6, 0, 0, 0, 0, 0, 0, host_v6).into(),
        }
    }

    /// An address and the prefix length of its network; host 0 is the network itself.
    pub fn prefix(self, family: Family, host: u8) -> String {
        let len = match family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        format!("{}/{len}", self.address(family, host))
    }
}

/// The networks between balancers and backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// No network: both are on the front network.
    #[default]
    Segment,
    /// A network behind two routers; the first router is in use.
    Routed,
    /// The network of the balancer's second interface. Answers go through a router.
    TwoInterfaces,
}

/// The hosts of a topology, and how they are connected.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Number of backends.
    pub backends: u8,
    /// Whether there are two balancers; needs the edge to choose between them.
    pub two_balancers: bool,
    /// Whether clients are behind a router.
    pub edge: bool,
    /// The networks between balancers and backends.
    pub layout: Layout,
    /// Whether all frames on the links of a balancer are in a VLAN that it does not know.
    pub tagged: bool,
    /// Whether hosts leave checksums to their network cards, which is the default. A veth has no such hardware: the
    /// frame that XDP sees has the sum of the pseudo-header instead of a checksum.
    pub checksum_offload: bool,
}

impl From<u8> for Plan {
    /// This many backends, all on one segment.
    fn from(backends: u8) -> Self {
        Self { backends, ..Self::default() }
    }
}

impl Plan {
    /// The network of the backends.
    pub const fn backends_at(&self) -> Network {
        match self.layout {
            Layout::Segment => Network::Front,
            Layout::Routed | Layout::TwoInterfaces => Network::Back,
        }
    }

    /// The address of a backend by its number, 1 and up.
    pub fn backend(&self, family: Family, number: u8) -> IpAddr {
        self.backends_at().address(family, 10 + number)
    }

    /// The addresses of all backends.
    pub fn backend_addresses(&self, family: Family) -> Vec<IpAddr> {
        (1..=self.backends).map(|number| self.backend(family, number)).collect()
    }

    /// The network of the clients.
    pub(super) const fn clients_at(&self) -> Network {
        if self.edge { Network::Clients } else { Network::Front }
    }

    /// The address of a router in the network of the hosts that use it.
    pub fn router(&self, family: Family, at: Network, number: usize) -> IpAddr {
        at.address(family, ROUTERS[number - 1])
    }
}
