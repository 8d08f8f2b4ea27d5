//! Reads `tollgate.toml` into validated types. A `Config` needs no further checks.
//!
//! All problems of a file are reported at once, each with line, column, field, the value found and a hint. Start at
//! [`Config::parse`].

mod check;
mod error;
mod fields;
mod prefix;
mod rate;
mod read;
mod table;
mod values;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

pub use error::{ConfigError, Invalid, Problem, Warning};
pub use fields::{Backend, CONTROL, Config, Service};
pub use lb_common::forward::Forward;
use lb_common::nat::Ports;
pub use prefix::Prefix;
pub use rate::Rate;
pub use table::{AbsentDoc, FieldDoc};

use fields::ConfigDraft;
use read::Fields;

/// A group of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name of the group.
    pub name: String,
    /// Group id.
    pub gid: u32,
}

/// XDP mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native if the driver supports it, else generic.
    #[default]
    Auto,
    /// In the driver; the start fails if the driver does not support it.
    Native,
    /// After the kernel has made an skb: slow, but works with every driver.
    Generic,
}

/// Location of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// Files in this directory.
    File(PathBuf),
}

/// The types of token that a service accepts; at least one.
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
    /// Tokens may be bound.
    #[default]
    Optional,
    /// Tokens must be bound.
    Required,
}

/// What happens to refused datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Dropped.
    #[default]
    Enforce,
    /// Counted, and delivered unstripped.
    Observe,
}

/// How the health of a backend is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthCheck {
    /// Not at all.
    #[default]
    None,
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
        let config = read::root(&mut report).and_then(|root| {
            let mut draft = ConfigDraft::read(&mut report, Fields::new("", 0..0, &root));
            draft.derive(&mut report);
            check::whole(&mut report, &draft);
            draft.finish()
        });
        report.finish(path, config)
    }

    /// The ports of `forward = "nat"`, where a service uses it.
    pub fn ports_of_nat(&self) -> Option<Ports> {
        let used = self.services.iter().any(|service| service.forward == Forward::Nat);
        used.then_some(self.nat_ports)
    }

    /// The source prefix of outer packets to an address, if one is configured.
    pub fn tunnel_source(&self, to: IpAddr) -> Option<&Prefix> {
        self.tunnel_sources.iter().find(|prefix| prefix.address().is_ipv4() == to.is_ipv4())
    }
}

impl Service {
    /// Whether its sessions have limits.
    pub fn has_limits(&self) -> bool {
        !self.rates.is_empty() || self.max_sources.is_some()
    }

    /// Finds a service by name or id.
    pub fn find<'a>(services: &'a [Self], name: &str) -> Option<&'a Self> {
        services.iter().find(|service| service.name == name || name.parse() == Ok(service.id))
    }
}

#[cfg(test)]
mod tests;
