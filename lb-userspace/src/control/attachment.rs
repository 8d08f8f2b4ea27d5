//! Attaches the program to the configured interfaces, keeps it attached, and detaches it from others.
//!
//! A link belongs to an interface index: the program stays on an interface that is renamed, for as long as that
//! interface exists. Another interface that takes the configured name gets the program as well.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::program_name;
use crate::{
    config::{Config, XdpMode},
    datapath::{Datapath, DatapathError, HeldLink, LinkPin, Pins, attach::Mode},
    network::{Interface, Interfaces, Links},
};

/// The interfaces that the program is, or should be, attached to.
pub struct Attachments {
    interfaces: Vec<String>,
    mode: XdpMode,
    pins: Pins,
    /// Id of the program, once it is loaded.
    program_id: Option<u32>,
    /// The links, by interface index.
    held: BTreeMap<u32, Held>,
}

/// An interface that the program is attached to.
struct Held {
    /// Name in the configuration.
    configured: String,
    /// Current name.
    name: String,
    /// Keeps the program attached if the pin is lost.
    link: HeldLink,
}

/// A pinned link of an earlier daemon.
struct Pinned {
    pin: LinkPin,
    /// Interface index and program id.
    target: Option<(u32, u32)>,
}

impl Attachments {
    /// The attachments of a configuration.
    pub fn new(config: &Config, pins: Pins) -> Self {
        let interfaces = config.interfaces.clone();
        Self { interfaces, mode: config.xdp_mode, pins, program_id: None, held: BTreeMap::new() }
    }

    /// Checks that the program can be attached, before anything is changed.
    ///
    /// # Errors
    /// If an interface does not exist, carries another XDP program, or is stacked on another configured interface.
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
                "filter the interface below it, which receives its packets".to_owned(),
            ));
        }
        let is_ours = |id: u32| {
            let pinned = self.pinned().unwrap_or_default();
            pinned.iter().any(|pinned| pinned.target == Some((interface.index, id)))
        };
        match interface.xdp {
            Some((id, _)) if !is_ours(id) => Err(failed(
                format!(
                    "it carries another XDP program, id {id} ({}), which was not attached with the bpffs of \
                     this configuration",
                    program_name(id)
                ),
                format!(
                    "stop the process that attached it, or run `ip link set dev {name} xdp off`; if it is the \
                     program of Tollgate, run `tollgate detach` with the configuration that it was started with, as \
                     the same user; then start again"
                ),
            )),
            Some((_, mode)) if !self.modes().contains(&mode) => Err(failed(
                format!("the program is attached in {} mode, which `xdp_mode` does not allow", mode.name()),
                "run `tollgate detach`, then start again; packets are not filtered in between".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// A frame passes the program on every interface of a stack: the second one drops the frame because the first has
    /// removed its token.
    fn check_stack(&self, name: &str, links: &Links) -> Result<(), DatapathError> {
        let Some(lower) = links.named(name) else { return Ok(()) };
        let uppers = self.interfaces.iter().filter_map(|name| links.named(name));
        match uppers.into_iter().find_map(|upper| links.stack(lower.index, upper.index)) {
            Some(stack) => Err(failed(
                name,
                format!("its frames also pass another interface of `interfaces`: {stack}"),
                "packets would be checked and counted twice; keep one of the two in `interfaces`: the lower one, \
                 for native mode"
                    .to_owned(),
            )),
            None => Ok(()),
        }
    }

    /// Interfaces with the program that have become stacked on one another.
    pub fn stacked(&self, links: &Links) -> Vec<String> {
        let pairs = self.held.keys().flat_map(|lower| self.held.keys().map(move |upper| (*lower, *upper)));
        let stacks = pairs.filter_map(|(lower, upper)| links.stack(lower, upper));
        stacks
            .map(|stack| {
                format!(
                    "the program is on interfaces that stack: {stack}; packets are checked and counted twice, and \
                     those of forward = \"local\" are lost: take one of the two out of the other, or out of \
                     `interfaces`"
                )
            })
            .collect()
    }

    /// Attaches the program to all interfaces. If one fails, the program is detached from those that it was not
    /// attached to before.
    ///
    /// # Errors
    /// With the first interface that fails.
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
            // Already taken over; `interfaces` was read before that.
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
                    "its driver does not support native XDP: generic mode is slower, sees packets after the kernel has \
                     merged several into one, and drops as partial_checksum packets whose checksum the sender left \
                     to a network card"
                );
            }
        }
        for pinned in obsolete {
            self.pins.remove(&pinned.pin.path)?;
            info!(interface = pinned.pin.interface, "program detached: no longer in `interfaces`");
        }
        Ok(())
    }

    /// Replaces the program of an earlier daemon on all configured interfaces, also on one that has been renamed.
    /// Returns the pins of other interfaces.
    fn take_over(
        &mut self,
        datapath: &mut Datapath,
        interfaces: &Interfaces,
        links: &Links,
    ) -> Result<Vec<Pinned>, DatapathError> {
        let mut obsolete = Vec::new();
        for pinned in self.pinned()? {
            let Some((index, _)) = pinned.target else {
                // The link is attached to nothing, and its pin occupies the name of the next link.
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
                // Its interface has just been removed.
                self.pins.remove(&pinned.pin.path)?;
                continue;
            };
            let pin = self.pins.link(index, &configured);
            if pin != pinned.pin.path {
                self.pins.rename(&pinned.pin.path, &pin)?;
            }
            info!(interface = link.name, "program replaced without missing a packet");
            self.held.insert(index, Held { configured, name: link.name.clone(), link: held });
        }
        Ok(obsolete)
    }

    /// Attaches the program to the interface of a configured name. Returns index and mode, or `None` if it was attached
    /// already.
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
        // The pin of a link that was detached.
        self.let_go(index)?;
        let (mode, link) = datapath.attach(&self.pins, &configured, index, self.modes())?;
        let held = Held { configured, name: name.to_owned(), link };
        self.held.insert(index, held);
        Ok(Some((index, mode)))
    }

    /// Follows interfaces that were removed or renamed, and attaches the program where it is missing. Returns the
    /// errors.
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
                            "another interface is called {name} now and is filtered, too; the previous one is {} \
                             and stays filtered until it is removed",
                            before.name
                        );
                    }
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors
    }

    /// Pins the links whose pin is missing. Returns their interfaces.
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

    /// The interfaces that stay filtered without this process, because their link is pinned, and the others.
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

    /// The current names of all interfaces that are, or should be, filtered.
    pub fn names(&self) -> Vec<String> {
        let held = self.held.values().map(|held| &held.name);
        held.chain(&self.interfaces).collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// The current names of the interfaces that are, or should be, filtered; also before the links of an earlier
    /// daemon are taken over, from their pins.
    pub fn filtered(&self, links: &Links) -> Vec<String> {
        let mut indices: Vec<u32> = self.held.keys().copied().collect();
        if indices.is_empty() {
            let pinned = self.pinned().unwrap_or_default();
            indices.extend(pinned.iter().filter_map(|pinned| Some(pinned.target?.0)));
        }
        let now = indices.into_iter().filter_map(|index| Some(links.get(index)?.name.clone()));
        now.chain(self.interfaces.iter().cloned()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The interfaces that lack the program, as reasons.
    pub fn missing(&self, interfaces: &Interfaces) -> Vec<String> {
        let missing = self.shown().filter(|name| self.mode_on(name, interfaces).is_none());
        missing.map(|name| format!("the program is not attached to interface {name}")).collect()
    }

    /// The interfaces to show: a configured name that no interface has is left out if its interface was renamed.
    pub fn shown(&self) -> impl Iterator<Item = String> {
        let renamed = |name: &String| {
            let mut held = self.held.values();
            held.any(|held| held.configured == *name && held.name != *name)
                && !self.held.values().any(|held| held.name == *name)
        };
        self.names().into_iter().filter(move |name| !renamed(name))
    }

    /// The filtered interfaces that are down, as reasons.
    pub fn down(&self, interfaces: &Interfaces) -> Vec<String> {
        let down = self.shown().filter(|name| interfaces.get(name).is_some_and(|interface| !interface.up));
        down.map(|name| format!("interface {name} is down, or has no carrier")).collect()
    }

    /// The mode that the program is attached to an interface in.
    pub fn mode_on(&self, name: &str, interfaces: &Interfaces) -> Option<Mode> {
        let (id, mode) = interfaces.get(name)?.xdp?;
        (Some(id) == self.program_id).then_some(mode)
    }

    /// Id of the program, once it is loaded.
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

/// The interfaces that stay filtered without this process, and the others.
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
