//! `tollgate.toml` → validated types. What is in a `Config` can be acted upon without further questions.
//!
//! A file is read to its end before it is refused: all its problems are reported at once, each with line, column,
//! field, what was found and what would be right.

mod check;
mod error;
mod fields;
mod prefix;
mod rate;
mod read;
mod values;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

pub use error::{ConfigError, Invalid, Problem, Warning};
pub use fields::CONTROL;
pub use lb_common::forward::Forward;
use lb_common::nat::Ports;
pub use prefix::Prefix;
pub use rate::Rate;

/// A whole configuration, with the defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name; by default the host's.
    pub node: String,
    /// Where the program is attached; at least one, none twice.
    pub interfaces: Vec<String>,
    /// How it is attached.
    pub xdp_mode: XdpMode,
    /// Where keys and the rest of the desired state are kept.
    pub store: StoreLocation,
    /// The control socket.
    pub control: PathBuf,
    /// The group whose members may read on the control socket.
    pub control_group: Option<Group>,
    /// The group whose members may also change, and see secrets.
    pub admin_group: Option<Group>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where program, link and maps are pinned.
    pub bpffs: PathBuf,
    /// Entries of the token cache.
    pub sessions: u32,
    /// Full checks a CPU makes in a second, at most.
    pub hmac_budget: u32,
    /// The ports of this node that services with `forward = "nat"` use; see [`Config::ports_of_nat`].
    pub nat_ports: Ports,
    /// How many of these ports a session holds towards one backend at most: 1 to [`nat::PROBES`](lb_common::nat::PROBES).
    pub nat_ports_per_session: u32,
    /// Where the outer packets of `ipip` and `gue` come from, at most one prefix of each family. Without one of a
    /// family, they come from this node's address.
    pub tunnel_sources: Vec<Prefix>,
    /// MAC addresses that the filtered interfaces accept besides those that the kernel tells: of virtual routers (RFC 9568
    /// §7.3) and of guests behind a switch of this host.
    pub virtual_macs: Vec<[u8; 6]>,
    /// The protected services: unique ids, names and address-port pairs.
    pub services: Vec<Service>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Warning>,
}

/// A group of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its number.
    pub gid: u32,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where it can, else generic.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// After the kernel has made an skb: slow, works everywhere.
    Generic,
}

/// Where the desired state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// Files in this directory.
    File(PathBuf),
}

/// A protected service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The audience in its tokens; not 0.
    pub id: u32,
    /// A metrics label and a command line argument: never all digits.
    pub name: String,
    /// The address its clients send to.
    pub address: IpAddr,
    /// The UDP port its clients send to; not 0.
    pub port: u16,
    /// The types of token it takes.
    pub accept: Accept,
    /// Whether tokens must be bound to an address.
    pub bind: Bind,
    /// The longest a token may live: whole seconds, 1 second to 366 days.
    pub max_ttl: Duration,
    /// Whether the token header is taken off before the backend sees the datagram.
    pub strip: bool,
    /// How datagrams reach the backend.
    pub forward: Forward,
    /// What becomes of refused datagrams.
    pub mode: Mode,
    /// How often the key is replaced; `None`: by hand only. Whole seconds.
    pub key_rotation: Option<Duration>,
    /// What each of its sessions may send, by class; a class that is not there may send anything.
    pub rates: BTreeMap<u8, Rate>,
    /// Addresses that a token may be used from, 1 to 8; `None`: any number.
    pub max_sources: Option<u8>,
    /// Unique ids, names and addresses.
    pub backends: Vec<Backend>,
}

/// The types of token a service takes; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// BEARER tokens.
    pub bearer: bool,
    /// PROOF tokens.
    pub proof: bool,
}

/// Whether tokens must be bound to an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    /// They may be.
    #[default]
    Optional,
    /// They must be.
    Required,
}

/// What becomes of refused datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Dropped.
    #[default]
    Enforce,
    /// Counted, and delivered unstripped.
    Observe,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The `backend_id` in tokens; not 0.
    pub id: u16,
    /// A metrics label and a command line argument; by default its address.
    pub name: String,
    /// Its own address, by which the way to it is found. Of a family that the service's packets can go to.
    pub address: IpAddr,
    /// Its UDP port: the service's, except with `forward = "nat"`.
    pub port: u16,
    /// Its share of the sessions, against the weights of the others; not 0.
    pub weight: u32,
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// If it cannot be read, or with all its problems.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = std::fs::read(path).map_err(|source| ConfigError::unreadable(path.to_owned(), source))?;
        let text = String::from_utf8(bytes).map_err(|error| ConfigError::NotText {
            path: path.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        Self::parse(path, &text)
    }

    /// Validates the text of a file; `path` is for the messages.
    ///
    /// # Errors
    /// With all its problems.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut report = read::Report::new(text);
        let config = fields::config(&mut report);
        report.finish(path, config)
    }

    /// The ports of `forward = "nat"`, where a service uses it.
    pub fn ports_of_nat(&self) -> Option<Ports> {
        let used = self.services.iter().any(|service| service.forward == Forward::Nat);
        used.then_some(self.nat_ports)
    }

    /// Where outer packets to an address come from, if not from this node's address.
    pub fn tunnel_source(&self, to: IpAddr) -> Option<&Prefix> {
        self.tunnel_sources.iter().find(|prefix| prefix.address().is_ipv4() == to.is_ipv4())
    }
}

impl Service {
    /// Whether something limits its sessions.
    pub fn has_limits(&self) -> bool {
        !self.rates.is_empty() || self.max_sources.is_some()
    }

    /// The service called `name`: by its name or its id.
    pub fn find<'a>(services: &'a [Self], name: &str) -> Option<&'a Self> {
        services.iter().find(|service| service.name == name || name.parse() == Ok(service.id))
    }
}

#[cfg(test)]
mod tests;
