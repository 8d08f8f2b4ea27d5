//! The ways from a balancer to an application, as tests need them: where it listens, and what has to run beside it.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Child,
    str::FromStr,
};

use anyhow::{Result, bail};

use crate::testbed::{
    cleanup,
    daemon::{Instance, said, wait_for},
    netns::Namespace,
    topology::{Family, INTERFACE, Topology},
};
pub use crate::tools::options::Forward;

impl Forward {
    /// All, in the order they are declared in.
    pub const ALL: [Self; 5] = [Self::Local, Self::L2, Self::Ipip, Self::Gue, Self::Nat];

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

    /// Whether backends have to take an outer header off.
    pub const fn encapsulates(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }

    /// The applications of a service at `service`, whose backends have addresses of a family: a socket each, in the
    /// backends' order.
    ///
    /// # Errors
    /// If one cannot be made.
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

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|forward| forward.name() == name);
        let Some(found) = found else {
            bail!("`{name}` is no forwarding mode; take one of {}", Self::ALL.map(Self::name).join(", "));
        };
        Ok(found)
    }
}

/// `tollgate decap` on a backend; ended when dropped.
pub struct Decap {
    child: Child,
}

impl Decap {
    /// On all backends, for what comes from these addresses and prefixes.
    ///
    /// # Errors
    /// If one does not start; with what it said.
    pub fn on_backends(topology: &Topology, instance: &Instance, sources: &[String]) -> Result<Vec<Self>> {
        let from = sources.join(",");
        topology.backends.iter().map(|backend| Self::start(instance, backend, &from)).collect()
    }

    /// On one host, for what comes from these addresses; waits until it is there.
    ///
    /// # Errors
    /// If it does not start; with what it said.
    pub fn start(instance: &Instance, host: &Namespace, from: &str) -> Result<Self> {
        cleanup::hold_if_interrupted();
        let log = instance.path(&format!("decap-{}", host.name()));
        let (out, err) = (File::create(&log)?, File::options().append(true).open(&log)?);
        let mut command = instance.tollgate(host, &["decap", "-i", INTERFACE, "--from", from])?;
        let mut decap = Self { child: command.stdout(out).stderr(err).spawn()? };
        wait_for("tollgate decap", || {
            if let Some(status) = decap.child.try_wait()? {
                bail!("tollgate decap ended ({status}): {}", fs::read_to_string(&log)?);
            }
            let links = host.command("ip")?.args(["link", "show", INTERFACE]).output()?;
            Ok(said(&links).contains("xdp"))
        })?;
        Ok(decap)
    }
}

impl Drop for Decap {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
