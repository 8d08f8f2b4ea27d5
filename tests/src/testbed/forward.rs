//! Properties of forwarding modes for tests, such as the addresses of a service's applications.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::Result;

use crate::testbed::topology::{Family, Topology};
pub use crate::tools::options::Forward;

impl Forward {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::L2 => "l2",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Nat => "nat",
        }
    }

    /// Whether backends must remove an outer header.
    pub const fn encapsulates(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }

    /// The applications of a service at `service`, if the backends have addresses of this family: one socket each, in
    /// the order of the backends.
    ///
    /// # Errors
    /// If a socket cannot be created.
    pub fn applications(
        self,
        topology: &Topology,
        service: SocketAddr,
        family: Family,
    ) -> Result<Vec<UdpSocket>> {
        if self == Self::Local {
            return Ok(vec![topology.local_socket(service)?]);
        }
        let addresses = self.backends(topology, family);
        let at = addresses.into_iter().map(|address| match self {
            Self::Nat => SocketAddr::new(address, service.port()),
            _ => service,
        });
        at.enumerate().map(|(index, at)| topology.backend_socket(index, at)).collect()
    }

    /// The addresses of a service's backends.
    pub fn backends(self, topology: &Topology, family: Family) -> Vec<IpAddr> {
        match self {
            Self::Local => Vec::new(),
            _ => topology.plan.backend_addresses(family),
        }
    }
}
