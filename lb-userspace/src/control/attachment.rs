//! The program before the configured interfaces: put there, kept there, and nowhere else.

use tracing::{info, warn};

use super::{
    network::{Interface, Interfaces},
    program_name,
};
use crate::{
    config::{Config, XdpMode},
    datapath::{
        Datapath, DatapathError, Pins,
        attach::{Attached, Mode, linked_program},
    },
};

/// Where the program is to be.
pub struct Attachments {
    interfaces: Vec<String>,
    mode: XdpMode,
    pins: Pins,
    /// The program, once it is loaded.
    program_id: Option<u32>,
}

impl Attachments {
    /// As configured.
    pub fn new(config: &Config, pins: Pins) -> Self {
        Self { interfaces: config.interfaces.clone(), mode: config.xdp_mode, pins, program_id: None }
    }

    /// Checks that the program can be attached, before anything is changed.
    ///
    /// # Errors
    /// For an interface that is not there, or that carries a program of somebody else's.
    pub fn check(&self, interfaces: &Interfaces) -> Result<(), DatapathError> {
        self.interfaces.iter().try_for_each(|name| self.check_one(name, interfaces))
    }

    /// [`Attachments::check`] of each interface.
    pub fn check_each(&self, interfaces: &Interfaces) -> Vec<(String, Result<(), DatapathError>)> {
        self.interfaces.iter().map(|name| (name.clone(), self.check_one(name, interfaces))).collect()
    }

    fn check_one(&self, name: &str, interfaces: &Interfaces) -> Result<(), DatapathError> {
        let failed =
            |cause: String, mend: String| DatapathError::Attach { interface: name.to_owned(), cause, mend };
        let Some(interface) = interfaces.get(name) else {
            let mut names: Vec<_> =
                interfaces.keys().map(String::as_str).filter(|name| *name != "lo").collect();
            names.sort_unstable();
            return Err(failed(
                "there is no such interface".to_owned(),
                format!("`interfaces` in the configuration can be: {}", names.join(", ")),
            ));
        };
        if interface.receives.address.is_none() {
            return Err(failed(
                "its frames have no Ethernet header, and the program reads nothing else".to_owned(),
                "filter the interface below it, where its packets come in".to_owned(),
            ));
        }
        let ours = linked_program(&self.pins, name);
        match interface.xdp {
            Some((id, _)) if ours != Some(id) => Err(failed(
                format!(
                    "it carries an XDP program, id {id} ({}), that was not attached with this configuration's bpffs",
                    program_name(id)
                ),
                format!(
                    "stop what attached it, or `ip link set dev {name} xdp off`; where it is Tollgate's, `tollgate detach` \
                     with the configuration that it was started with, as the same user; then start again"
                ),
            )),
            Some((_, mode)) if !self.modes().contains(&mode) => Err(failed(
                format!("our program is on it in {} mode, and xdp_mode wants another", mode.name()),
                "`tollgate detach`, then start again: packets are not filtered in between".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Attaches the program everywhere, or nowhere where it was not before.
    ///
    /// # Errors
    /// With the first interface that would not have it.
    pub fn attach_all(
        &mut self,
        datapath: &mut Datapath,
        interfaces: &Interfaces,
    ) -> Result<(), DatapathError> {
        self.program_id = Some(datapath.program_id()?);
        let mut new = Vec::new();
        for name in &self.interfaces {
            let attached = self
                .check_one(name, interfaces)
                .and_then(|()| self.put_on(datapath, name, &interfaces[name]));
            match attached {
                Ok(Attached::Anew(mode)) => new.push((name, mode)),
                Ok(Attached::Replaced) => info!(interface = name, "program replaced, no packet missed"),
                Err(error) => {
                    for (name, _) in new {
                        self.pins.remove(&self.pins.link(name))?;
                    }
                    return Err(error);
                }
            }
        }
        for (name, mode) in new {
            info!(interface = name, mode = mode.name(), "program attached");
            if mode == Mode::Generic && self.mode == XdpMode::Auto {
                warn!(
                    interface = name,
                    "its driver has no native XDP, as that of a VLAN: generic mode is slower, and sees packets \
                     after the kernel has put several together"
                );
            }
        }
        for name in self.pins.links()? {
            if !self.interfaces.contains(&name) {
                self.pins.remove(&self.pins.link(&name))?;
                info!(interface = name, "program taken off: no longer in `interfaces`");
            }
        }
        Ok(())
    }

    /// Attaches the program again where it has gone, as with an interface that was removed and made anew. Returns
    /// what would not do.
    pub fn mend(&self, datapath: &mut Datapath, interfaces: &Interfaces) -> Vec<String> {
        let mut errors = Vec::new();
        for name in &self.interfaces {
            let Some(interface) = interfaces.get(name) else { continue };
            if interface.xdp.map(|(id, _)| id) == self.program_id {
                continue;
            }
            let attached =
                self.check_one(name, interfaces).and_then(|()| self.put_on(datapath, name, interface));
            match attached {
                Ok(_) => warn!(interface = name, "program attached again"),
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors
    }

    fn put_on(
        &self,
        datapath: &mut Datapath,
        name: &str,
        interface: &Interface,
    ) -> Result<Attached, DatapathError> {
        if interface.xdp.is_none() {
            // A link holds on to its interface, also under another name. If one is pinned under this name, it is of
            // an interface that had the name before.
            self.pins.remove(&self.pins.link(name))?;
        }
        datapath.attach(&self.pins, name, interface.index, self.modes())
    }

    /// Where the program should be and is not.
    pub fn missing(&self, interfaces: &Interfaces) -> Vec<String> {
        let is_missing = |name: &&String| self.mode_on(name, interfaces).is_none();
        let missing = self.interfaces.iter().filter(is_missing);
        missing.map(|name| format!("the program is not on interface {name}")).collect()
    }

    /// How the program is attached to an interface, if it is.
    pub fn mode_on(&self, name: &str, interfaces: &Interfaces) -> Option<Mode> {
        let (id, mode) = interfaces.get(name)?.xdp?;
        (Some(id) == self.program_id).then_some(mode)
    }

    /// The program, once it is loaded.
    pub const fn program_id(&self) -> Option<u32> {
        self.program_id
    }

    const fn modes(&self) -> &'static [Mode] {
        match self.mode {
            XdpMode::Auto => &[Mode::Native, Mode::Generic],
            XdpMode::Native => &[Mode::Native],
            XdpMode::Generic => &[Mode::Generic],
        }
    }
}
