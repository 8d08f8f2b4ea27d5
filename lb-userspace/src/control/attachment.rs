//! The program before the configured interfaces: put there, kept there, and nowhere else.
//!
//! A link belongs to an interface index: the program stays on an interface that is renamed, for as long as that interface
//! exists. Another interface that takes the configured name gets the program as well.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::program_name;
use crate::{
    config::{Config, XdpMode},
    datapath::{Datapath, DatapathError, HeldLink, LinkPin, Pins, attach::Mode},
    network::{Interface, Interfaces, Links},
};

/// Where the program is to be.
pub struct Attachments {
    interfaces: Vec<String>,
    mode: XdpMode,
    pins: Pins,
    /// The program, once it is loaded.
    program_id: Option<u32>,
    /// What it is attached to, by interface index.
    held: BTreeMap<u32, Held>,
}

/// An interface that the program was attached to.
struct Held {
    /// Its name in the configuration.
    configured: String,
    /// Its name now.
    name: String,
    /// Keeps the program attached where the pin is lost.
    link: HeldLink,
}

/// A pinned link of a daemon before this one.
struct Pinned {
    pin: LinkPin,
    /// The interface index and the program.
    target: Option<(u32, u32)>,
}

impl Attachments {
    /// As configured.
    pub fn new(config: &Config, pins: Pins) -> Self {
        let interfaces = config.interfaces.clone();
        Self { interfaces, mode: config.xdp_mode, pins, program_id: None, held: BTreeMap::new() }
    }

    /// Checks that the program can be attached, before anything is changed.
    ///
    /// # Errors
    /// For an interface that is not there, that carries a program of somebody else's, or that is above another one of them.
    pub fn check(&self, interfaces: &Interfaces, links: &Links) -> Result<(), DatapathError> {
        self.check_each(interfaces, links).into_iter().try_for_each(|(_, result)| result)
    }

    /// [`Attachments::check`] of each interface.
    pub fn check_each(
        &self,
        interfaces: &Interfaces,
        links: &Links,
    ) -> Vec<(String, Result<(), DatapathError>)> {
        let check = |name: &String| {
            self.check_one(name, interfaces, links).and_then(|()| self.check_stack(name, links))
        };
        self.interfaces.iter().map(|name| (name.clone(), check(name))).collect()
    }

    fn check_one(&self, name: &str, interfaces: &Interfaces, links: &Links) -> Result<(), DatapathError> {
        let failed = |cause: String, hint: String| failed(name, cause, hint);
        let Some(interface) = interfaces.get(name) else {
            let mut names: Vec<_> =
                interfaces.keys().map(String::as_str).filter(|name| *name != "lo").collect();
            names.sort_unstable();
            let renamed = self.pinned().ok().into_iter().flatten().find_map(|pinned| {
                let (index, _) = pinned.target.filter(|_| pinned.pin.interface == name)?;
                links.get(index).map(|link| link.name.clone())
            });
            return Err(failed(
                match renamed {
                    Some(now) => format!("there is no such interface: it is called `{now}` now"),
                    None => "there is no such interface".to_owned(),
                },
                format!("`interfaces` in the configuration can be: {}", names.join(", ")),
            ));
        };
        if interface.receives.address.is_none() {
            return Err(failed(
                "its frames have no Ethernet header, and the program reads nothing else".to_owned(),
                "filter the interface below it, where its packets come in".to_owned(),
            ));
        }
        let is_ours = |id: u32| {
            let pinned = self.pinned().unwrap_or_default();
            pinned.iter().any(|pinned| pinned.target == Some((interface.index, id)))
        };
        match interface.xdp {
            Some((id, _)) if !is_ours(id) => Err(failed(
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

    /// A frame passes the program on every interface of a stack: what the first has forwarded, without its token, is
    /// dropped by the second.
    fn check_stack(&self, name: &str, links: &Links) -> Result<(), DatapathError> {
        let Some(lower) = links.named(name) else { return Ok(()) };
        let uppers = self.interfaces.iter().filter_map(|name| links.named(name));
        match uppers.into_iter().find_map(|upper| links.stack(lower.index, upper.index)) {
            Some(stack) => Err(failed(
                name,
                format!("its frames are also those of another of `interfaces`: {stack}"),
                "packets would be checked and counted twice; keep one of the two in `interfaces`: the lower one, for native \
                 mode"
                    .to_owned(),
            )),
            None => Ok(()),
        }
    }

    /// Interfaces with the program that are above one another by now.
    pub fn stacked(&self, links: &Links) -> Vec<String> {
        let pairs = self.held.keys().flat_map(|lower| self.held.keys().map(move |upper| (*lower, *upper)));
        let stacks = pairs.filter_map(|(lower, upper)| links.stack(lower, upper));
        stacks
            .map(|stack| {
                format!(
                    "the program is on interfaces that stack: {stack}; packets are checked and counted twice, and those of \
                     forward = \"local\" are lost: take one of the two out of the other, or out of `interfaces`"
                )
            })
            .collect()
    }

    /// Attaches the program everywhere, or nowhere where it was not before.
    ///
    /// # Errors
    /// With the first interface that would not have it.
    pub fn attach_all(
        &mut self,
        datapath: &mut Datapath,
        interfaces: &Interfaces,
        links: &Links,
    ) -> Result<(), DatapathError> {
        self.program_id = Some(datapath.program_id()?);
        let obsolete = self.take_over(datapath, interfaces, links)?;
        let mut new = Vec::new();
        for name in self.interfaces.clone() {
            // Taken over: what `interfaces` say of it is of before.
            if interfaces.get(&name).is_some_and(|interface| self.held.contains_key(&interface.index)) {
                continue;
            }
            match self.attach_one(datapath, &name, interfaces, links) {
                Ok(attached) => new.extend(attached.map(|(index, mode)| (index, name, mode))),
                Err(error) => {
                    for (index, name, _) in new {
                        self.held.remove(&index);
                        self.pins.remove(&self.pins.link(index, &name))?;
                    }
                    return Err(error);
                }
            }
        }
        for (_, name, mode) in new {
            info!(interface = name, mode = mode.name(), "program attached");
            if mode == Mode::Generic && self.mode == XdpMode::Auto {
                warn!(
                    interface = name,
                    "its driver has no native XDP, as that of a VLAN: generic mode is slower, sees packets after the \
                     kernel has put several together, and drops as partial_checksum what is to leave this host with \
                     a checksum that its sender left to a network card"
                );
            }
        }
        for pinned in obsolete {
            self.pins.remove(&pinned.pin.path)?;
            info!(interface = pinned.pin.interface, "program taken off: no longer in `interfaces`");
        }
        Ok(())
    }

    /// Replaces the program of a daemon before this one wherever it is on a configured interface, also one that has another
    /// name by now. Returns the pins of the others.
    fn take_over(
        &mut self,
        datapath: &mut Datapath,
        interfaces: &Interfaces,
        links: &Links,
    ) -> Result<Vec<Pinned>, DatapathError> {
        let mut obsolete = Vec::new();
        for pinned in self.pinned()? {
            let Some((index, _)) = pinned.target else {
                // Attached to nothing, and in the way of the interface's next link.
                self.pins.remove(&pinned.pin.path)?;
                continue;
            };
            let link = links.get(index);
            let configured = link.and_then(|link| {
                let known = [&link.name, &pinned.pin.interface];
                Some((link, known.into_iter().find(|name| self.interfaces.contains(name))?.clone()))
            });
            let Some((link, configured)) = configured else {
                obsolete.push(pinned);
                continue;
            };
            if link.name == configured {
                self.check_one(&configured, interfaces, links)?;
            } else {
                warn!(
                    index,
                    "interface {configured} is called {} now and is still filtered; rename it, or put its name in \
                     `interfaces` and start again",
                    link.name
                );
            }
            let Some(held) = datapath.replace(&self.pins, &pinned.pin.path, &link.name)? else {
                // Its interface has gone just now.
                self.pins.remove(&pinned.pin.path)?;
                continue;
            };
            let pin = self.pins.link(index, &configured);
            if pin != pinned.pin.path {
                self.pins.rename(&pinned.pin.path, &pin)?;
            }
            info!(interface = link.name, "program replaced, no packet missed");
            self.held.insert(index, Held { configured, name: link.name.clone(), link: held });
        }
        Ok(obsolete)
    }

    /// Attaches the program to the interface of a configured name that it is not on. Returns the index and the mode, or
    /// `None` where it was there.
    fn attach_one(
        &mut self,
        datapath: &mut Datapath,
        name: &str,
        interfaces: &Interfaces,
        links: &Links,
    ) -> Result<Option<(u32, Mode)>, DatapathError> {
        if interfaces.get(name).is_some_and(|interface| self.holds(interface)) {
            return Ok(None);
        }
        self.check_one(name, interfaces, links)?;
        let index = interfaces[name].index;
        let before = self.held.get(&index);
        let configured = before.map_or_else(|| name.to_owned(), |held| held.configured.clone());
        // Of a link that was detached.
        self.let_go(index)?;
        let (mode, link) = datapath.attach(&self.pins, &configured, index, self.modes())?;
        let held = Held { configured, name: name.to_owned(), link };
        self.held.insert(index, held);
        Ok(Some((index, mode)))
    }

    /// Follows interfaces that have gone or are renamed, and attaches the program where it should be and is not. Returns
    /// what would not do.
    pub fn repair(&mut self, datapath: &mut Datapath, interfaces: &Interfaces, links: &Links) -> Vec<String> {
        let mut errors = Vec::new();
        let gone: Vec<u32> = self.held.keys().copied().filter(|index| links.get(*index).is_none()).collect();
        for index in gone {
            if let Err(error) = self.let_go(index) {
                errors.push(error.to_string());
            }
        }
        for (index, held) in &mut self.held {
            let Some(link) = links.get(*index).filter(|link| link.name != held.name) else { continue };
            warn!(index, "interface {} is called {} now and is still filtered", held.name, link.name);
            held.name.clone_from(&link.name);
        }
        for name in self.names() {
            if !interfaces.contains_key(&name) {
                continue;
            }
            match self.attach_one(datapath, &name, interfaces, links) {
                Ok(None) => {}
                Ok(Some((index, _))) => {
                    warn!(interface = name, "program attached again");
                    let before = self.held.iter().find(|(other, held)| {
                        **other != index && held.configured == name && held.name != name
                    });
                    if let Some((_, before)) = before {
                        warn!(
                            "another interface is called {name} now and is filtered, too; the one before is {}, and is \
                             filtered until it goes",
                            before.name
                        );
                    }
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors
    }

    /// Pins the links that are not pinned (any more). Returns the interfaces.
    ///
    /// # Errors
    /// If one cannot be pinned.
    pub fn pin_links(&self) -> Result<Vec<&str>, DatapathError> {
        let mut anew = Vec::new();
        for (index, held) in &self.held {
            let pin = self.pins.link(*index, &held.configured);
            if !pin.exists() {
                held.link.pin(&pin).map_err(|source| DatapathError::Pin {
                    path: self.pins.name(&pin),
                    action: "pin the link again",
                    source,
                    hint: "filtering ends with this daemon: start it again",
                })?;
                anew.push(held.name.as_str());
            }
        }
        Ok(anew)
    }

    /// The interfaces that are filtered without this process, by their pins, and those that are not.
    pub fn remaining(&self, lost: bool) -> Remaining {
        let is_pinned = |index: u32, held: &Held| self.pins.link(index, &held.configured).exists();
        let (pinned, unpinned): (Vec<_>, Vec<_>) =
            self.held.iter().partition(|(index, held)| !lost && is_pinned(**index, held));
        let name = |(_, held): (&u32, &Held)| held.name.clone();
        Remaining {
            filtered: pinned.into_iter().map(name).collect(),
            open: unpinned.into_iter().map(name).collect(),
        }
    }

    fn let_go(&mut self, index: u32) -> Result<(), DatapathError> {
        match self.held.remove(&index) {
            Some(held) => self.pins.remove(&self.pins.link(index, &held.configured)),
            None => Ok(()),
        }
    }

    fn pinned(&self) -> Result<Vec<Pinned>, DatapathError> {
        let target = |pin: &LinkPin| {
            let target = HeldLink::open(&pin.path).and_then(|link| link.target()).ok()?;
            Some((target.index?, target.program_id))
        };
        let pins = self.pins.links()?.into_iter();
        Ok(pins.map(|pin| Pinned { target: target(&pin), pin }).collect())
    }

    fn holds(&self, interface: &Interface) -> bool {
        let id = interface.xdp.map(|(id, _)| id);
        id.is_some() && id == self.program_id && self.held.contains_key(&interface.index)
    }

    /// The names of all interfaces that are filtered or to be filtered, as they are now.
    pub fn names(&self) -> Vec<String> {
        let held = self.held.values().map(|held| &held.name);
        held.chain(&self.interfaces).collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// The names that the interfaces with the program, and those that are to get it, have at this moment. Before the links of
    /// an earlier daemon are taken over, their pins tell.
    pub fn filtered(&self, links: &Links) -> Vec<String> {
        let mut indices: Vec<u32> = self.held.keys().copied().collect();
        if indices.is_empty() {
            let pinned = self.pinned().unwrap_or_default();
            indices.extend(pinned.iter().filter_map(|pinned| Some(pinned.target?.0)));
        }
        let now = indices.into_iter().filter_map(|index| Some(links.get(index)?.name.clone()));
        now.chain(self.interfaces.iter().cloned()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Where the program should be and is not.
    pub fn missing(&self, interfaces: &Interfaces) -> Vec<String> {
        let missing = self.shown().filter(|name| self.mode_on(name, interfaces).is_none());
        missing.map(|name| format!("the program is not on interface {name}")).collect()
    }

    /// Configured interfaces and what became of them: a name that no interface has any more is left out where its interface
    /// has another name by now.
    pub fn shown(&self) -> impl Iterator<Item = String> {
        let renamed = |name: &String| {
            let mut held = self.held.values();
            held.any(|held| held.configured == *name && held.name != *name)
                && !self.held.values().any(|held| held.name == *name)
        };
        self.names().into_iter().filter(move |name| !renamed(name))
    }

    /// Those of them that take no packets.
    pub fn down(&self, interfaces: &Interfaces) -> Vec<String> {
        let down = self.shown().filter(|name| interfaces.get(name).is_some_and(|interface| !interface.up));
        down.map(|name| format!("interface {name} is down, or has no carrier")).collect()
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

/// What filters without this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Interfaces whose link is pinned.
    pub filtered: Vec<String>,
    /// Interfaces whose link ends with this process.
    pub open: Vec<String>,
}

fn failed(interface: &str, cause: String, hint: String) -> DatapathError {
    DatapathError::Attach { interface: interface.to_owned(), cause, hint }
}
