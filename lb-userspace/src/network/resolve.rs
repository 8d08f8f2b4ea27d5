//! How frames reach a backend, from what the kernel says of route, interfaces and neighbours at one moment.

use std::{collections::HashMap, net::IpAddr, time::Instant};

use lb_common::backend::{TAGS_KEPT, TAGS_MAX, Tag};

use super::{
    neighbours::Resolution,
    reachability::BackendState,
    types::{Interface, Interfaces, Mac, Neighbour, Neighbours, Route},
};
use crate::{config::Forward, datapath::attach::Mode};

/// The way to a backend that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The name of the interface that its frames leave through.
    pub interface: String,
    /// That interface's number.
    pub ifindex: u32,
    /// The router before the backend, if there is one.
    pub gateway: Option<IpAddr>,
    /// The MAC address of the backend, or of the router.
    pub destination_mac: Mac,
    /// This host's MAC address on the way.
    pub source_mac: Mac,
    /// The VLAN tags of its frames.
    pub tags: Tags,
    /// The longest IP packet, bytes.
    pub mtu: u16,
    /// This host's address on the way, where it has one.
    pub source: Option<IpAddr>,
}

/// The VLAN tags of frames to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// Those that a frame came with, if it leaves the way it came: this host has no VLAN there and knows of none.
    Kept,
    /// These, the outermost first; at most [`TAGS_MAX`].
    Set(Vec<Tag>),
}

impl Tags {
    /// As the program reads them.
    pub fn value(&self) -> (u8, [Tag; TAGS_MAX]) {
        let mut value = [Tag::default(); TAGS_MAX];
        match self {
            Self::Kept => (TAGS_KEPT, value),
            Self::Set(tags) => {
                value.iter_mut().zip(tags).for_each(|(place, tag)| *place = *tag);
                (tags.len().min(TAGS_MAX) as u8, value)
            }
        }
    }
}

/// A backend as a [`View`] looks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: IpAddr,
    /// How its packets get there.
    pub forward: Forward,
    /// Whether they need no address of this host, for the configuration gives them one.
    pub has_source: bool,
    /// The route to it.
    pub route: Option<Route>,
    /// The last next hop that there was a route to.
    pub last_hop: Option<(u32, IpAddr)>,
}

impl Target {
    /// Whose MAC address its frames are sent to: on which interface, and at which address.
    pub fn next_hop(&self) -> Option<(u32, IpAddr)> {
        let route = self.route.filter(|route| !route.local)?;
        Some((route.index, route.gateway.unwrap_or(self.address)))
    }
}

/// The network at one moment.
pub struct View<'a> {
    /// The interfaces that the program is on.
    filtered: &'a [String],
    interfaces: HashMap<u32, (&'a str, &'a Interface)>,
    neighbours: Neighbours,
    now: Instant,
}

/// What a [`View`] shows of a backend.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether it may be used.
    pub state: BackendState,
    /// If so, how.
    pub way: Option<Way>,
    /// The neighbour that the kernel is to be asked for.
    pub to_ask: Option<(u32, IpAddr)>,
}

impl From<BackendState> for Seen {
    fn from(state: BackendState) -> Self {
        Self { state, way: None, to_ask: None }
    }
}

/// Where frames leave.
struct Egress<'a> {
    name: &'a str,
    index: u32,
    tags: Tags,
    /// Whether the program is on it.
    filtered: bool,
}

impl<'a> View<'a> {
    /// `filtered` names the interfaces that the program is on.
    pub fn new(
        filtered: &'a [String],
        interfaces: &'a Interfaces,
        neighbours: Neighbours,
        now: Instant,
    ) -> Self {
        let by_index =
            |(name, interface): (&'a String, &'a Interface)| (interface.index, (name.as_str(), interface));
        Self { filtered, interfaces: interfaces.iter().map(by_index).collect(), neighbours, now }
    }

    /// Looks for a backend, whose MAC address `resolution` follows.
    pub fn look(&self, target: &Target, resolution: &mut Resolution) -> Seen {
        self.find(target, resolution).unwrap_or_else(Seen::from)
    }

    fn find(&self, target: &Target, resolution: &mut Resolution) -> Result<Seen, BackendState> {
        // Without its link, a route is no more.
        let gone = || match target.last_hop.and_then(|(index, _)| self.interfaces.get(&index)) {
            Some((name, interface)) if !interface.up => {
                BackendState::LinkDown { interface: (*name).to_owned() }
            }
            _ => BackendState::NoRoute,
        };
        let route = target.route.filter(|route| !route.local).ok_or_else(gone)?;
        if let Some(gateway) = route.gateway.filter(|_| target.forward == Forward::L2) {
            return Err(BackendState::BehindRouter { gateway });
        }
        let egress = self.egress(route.index)?;
        if target.forward == Forward::Nat && !egress.filtered {
            let cause =
                "and answers to forward = \"nat\" that come in there are not seen: add it to `interfaces`";
            return Err(BackendState::WrongInterface {
                interface: egress.name.to_owned(),
                cause: cause.to_owned(),
            });
        }
        let needs_source = target.forward.has_own_source() && !target.has_source;
        if needs_source && route.source.is_none_or(|source| source.is_ipv4() != target.address.is_ipv4()) {
            return Err(BackendState::NoSource { interface: self.name(route.index)?.to_owned() });
        }

        let next_hop = target.next_hop().ok_or(BackendState::NoRoute)?;
        let neighbour = self.neighbours.get(&next_hop).copied();
        resolution.observe(neighbour, self.now);
        let sure = matches!(neighbour, Some(Neighbour::Known { fresh: true, .. }));
        let to_ask = (!sure).then_some(next_hop);
        let (name, interface) = self.interface(route.index)?;
        let (Some(destination_mac), Some(source_mac)) = (resolution.mac(), interface.mac) else {
            let state = match resolution {
                Resolution::Resolving { .. } => BackendState::Resolving,
                _ => BackendState::NoNeighbour {
                    address: next_hop.1,
                    router: route.gateway.is_some(),
                    interface: name.to_owned(),
                },
            };
            return Ok(Seen { to_ask, ..state.into() });
        };
        let mtu = route.mtu.map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
        let way = Way {
            interface: egress.name.to_owned(),
            ifindex: egress.index,
            gateway: route.gateway,
            destination_mac,
            source_mac,
            tags: egress.tags,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            source: route.source,
        };
        Ok(Seen { state: BackendState::Up, way: Some(way), to_ask })
    }

    /// Where frames leave that are to go out of an interface: from VLANs down to one that the program is on, or to the
    /// lowest, with the tags of those that were passed.
    fn egress(&self, mut index: u32) -> Result<Egress<'a>, BackendState> {
        let mut tags = Vec::new();
        loop {
            let (name, interface) = self.interface(index)?;
            if !interface.up {
                return Err(BackendState::LinkDown { interface: name.to_owned() });
            }
            let filtered = self.filtered.iter().any(|filtered| filtered == name);
            if let Some(vlan) = interface.vlan.filter(|_| !filtered) {
                tags.push(vlan.tag);
                index = vlan.below;
                continue;
            }
            let wrong = |cause: String| BackendState::WrongInterface { interface: name.to_owned(), cause };
            if tags.len() > TAGS_MAX {
                return Err(wrong(format!(
                    "under {} VLAN tags, and at most {TAGS_MAX} are sent",
                    tags.len()
                )));
            }
            let sends = interface.sends_frames || filtered && self.all_generic();
            if !sends {
                return Err(wrong(match filtered {
                    true => "which takes no frames from one that is filtered in native mode: set \
                             xdp_mode = \"generic\", or filter the interface below it"
                        .to_owned(),
                    false => {
                        "whose kind cannot send what XDP redirects: reach the backend through a physical \
                              interface, a VLAN of one, a veth or a bond, or add this one to `interfaces`"
                            .to_owned()
                    }
                }));
            }
            let has_vlans = || {
                let is_above = |other: &Interface| other.vlan.is_some_and(|vlan| vlan.below == index);
                self.interfaces.values().any(|(_, other)| is_above(other))
            };
            let tags = match tags.is_empty() && !has_vlans() {
                true => Tags::Kept,
                false => Tags::Set(tags.into_iter().rev().collect()),
            };
            return Ok(Egress { name, index, tags, filtered });
        }
    }

    /// Whether no interface has the program in its driver: then every kind of interface can be sent to.
    fn all_generic(&self) -> bool {
        let modes = self.interfaces.values().filter(|(name, _)| self.filtered.iter().any(|one| one == name));
        modes.into_iter().all(|(_, interface)| !matches!(interface.xdp, Some((_, Mode::Native))))
    }

    fn interface(&self, index: u32) -> Result<(&'a str, &'a Interface), BackendState> {
        self.interfaces.get(&index).copied().ok_or(BackendState::NoRoute)
    }

    fn name(&self, index: u32) -> Result<&'a str, BackendState> {
        Ok(self.interface(index)?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::types::Vlan;

    const BACKEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11));
    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 254));
    const MAC: Mac = [2, 0, 0, 0, 0, 11];
    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const FRESH: Option<Neighbour> = Some(Neighbour::Known { mac: MAC, fresh: true });
    const STALE: Option<Neighbour> = Some(Neighbour::Known { mac: MAC, fresh: false });

    fn tag(identifier: u16, id: u16) -> Tag {
        Tag { identifier_be: identifier.to_be(), control_be: id.to_be() }
    }

    /// Two network cards, of which the program is on the first; VLANs of both, and a bridge.
    fn interfaces() -> Interfaces {
        let card = |index| Interface {
            index,
            mac: Some(OURS),
            mtu: 1500,
            up: true,
            sends_frames: true,
            ..Interface::default()
        };
        let vlan = |index, below, tag| Interface {
            vlan: Some(Vlan { below, tag }),
            sends_frames: false,
            ..card(index)
        };
        [
            ("eth0", Interface { xdp: Some((1, Mode::Native)), ..card(2) }),
            ("eth1", card(3)),
            ("eth0.10", Interface { mtu: 1400, ..vlan(4, 2, tag(0x88a8, 10)) }),
            ("eth0.10.20", vlan(5, 4, tag(0x8100, 20))),
            ("eth0.10.20.30", vlan(6, 5, tag(0x8100, 30))),
            ("eth2.10", vlan(7, 8, tag(0x8100, 10))),
            ("eth2", Interface { up: false, ..card(8) }),
            ("bridge", Interface { sends_frames: false, ..card(9) }),
        ]
        .map(|(name, interface)| (name.to_owned(), interface))
        .into()
    }

    const fn on(index: u32) -> Route {
        Route { index, gateway: None, source: None, mtu: None, local: false }
    }

    fn l2(route: Option<Route>) -> Target {
        Target { address: BACKEND, forward: Forward::L2, has_source: false, route, last_hop: None }
    }

    fn seen_by(
        filtered: &[&str],
        interfaces: &Interfaces,
        target: &Target,
        neighbour: Option<Neighbour>,
    ) -> Seen {
        let now = Instant::now();
        let neighbours = target.next_hop().zip(neighbour).into_iter().collect();
        let filtered: Vec<_> = filtered.iter().map(|name| (*name).to_owned()).collect();
        let view = View::new(&filtered, interfaces, neighbours, now);
        view.look(target, &mut Resolution::Resolving { since: now })
    }

    fn seen(target: &Target, neighbour: Option<Neighbour>) -> Seen {
        seen_by(&["eth0"], &interfaces(), target, neighbour)
    }

    #[test]
    fn a_backend_is_up_or_says_why_not() {
        let behind = |forward, source| Target {
            forward,
            route: Some(Route { gateway: Some(ROUTER), source, ..on(2) }),
            ..l2(None)
        };
        let ours = Some(IpAddr::from([10, 0, 0, 1]));
        let ipip = Target { forward: Forward::Ipip, has_source: true, ..l2(Some(on(2))) };
        let was_on = |index| Target { last_hop: Some((index, BACKEND)), ..l2(None) };
        for (target, neighbour, state, asks) in [
            (l2(None), None, "no-route", None),
            (was_on(8), None, "link-down", None),
            (was_on(2), None, "no-route", None),
            (l2(Some(Route { local: true, ..on(2) })), FRESH, "no-route", None),
            (l2(Some(on(99))), FRESH, "no-route", None),
            (l2(Some(on(8))), FRESH, "link-down", None),
            (l2(Some(on(7))), FRESH, "link-down", None),
            (l2(Some(on(9))), FRESH, "wrong-interface", None),
            (l2(Some(on(6))), FRESH, "wrong-interface", None),
            (l2(Some(on(2))), None, "resolving", Some(BACKEND)),
            (l2(Some(on(2))), Some(Neighbour::Failed), "no-neighbour", Some(BACKEND)),
            (l2(Some(on(2))), STALE, "up", Some(BACKEND)),
            (l2(Some(on(2))), FRESH, "up", None),
            (l2(Some(on(3))), FRESH, "up", None),
            (behind(Forward::L2, ours), FRESH, "behind-router", None),
            (behind(Forward::Ipip, ours), FRESH, "up", None),
            (behind(Forward::Nat, ours), STALE, "up", Some(ROUTER)),
            (behind(Forward::Gue, ours), Some(Neighbour::Failed), "no-neighbour", Some(ROUTER)),
            (behind(Forward::Gue, None), FRESH, "no-source", None),
            (behind(Forward::Nat, None), FRESH, "no-source", None),
            (ipip, FRESH, "up", None),
        ] {
            let seen = seen(&target, neighbour);
            let asked = seen.to_ask.map(|(_, address)| address);
            assert_eq!((seen.state.name(), asked), (state, asks), "{target:?} {neighbour:?}");
            assert_eq!(seen.way.is_some(), seen.state.is_up(), "{target:?}");
        }
    }

    #[test]
    fn a_way_says_all_about_the_frames() {
        let source = Some(IpAddr::from([10, 0, 0, 1]));
        let route = Route { gateway: Some(ROUTER), source, mtu: Some(1300), ..on(3) };
        let target = Target { forward: Forward::Ipip, ..l2(Some(route)) };
        let way = Way {
            interface: "eth1".to_owned(),
            ifindex: 3,
            gateway: Some(ROUTER),
            destination_mac: MAC,
            source_mac: OURS,
            tags: Tags::Kept,
            mtu: 1300,
            source,
        };
        assert_eq!(seen(&target, FRESH).way, Some(way));
    }

    #[test]
    fn frames_leave_below_the_vlans_with_their_tags() {
        let (outer, inner) = (tag(0x88a8, 10), tag(0x8100, 20));
        for (filtered, index, interface, tags, mtu) in [
            // This host has VLANs there: what bears no tag is to get none.
            ("eth0", 2, "eth0", Tags::Set(vec![]), 1500),
            ("eth0", 3, "eth1", Tags::Kept, 1500),
            ("eth0", 4, "eth0", Tags::Set(vec![outer]), 1400),
            ("eth0", 5, "eth0", Tags::Set(vec![outer, inner]), 1500),
            ("eth1", 5, "eth0", Tags::Set(vec![outer, inner]), 1500),
        ] {
            let way = seen_by(&[filtered], &interfaces(), &l2(Some(on(index))), FRESH).way.expect("up");
            assert_eq!(
                (way.interface.as_str(), way.tags, way.mtu),
                (interface, tags, mtu),
                "through {index}"
            );
        }
    }

    #[test]
    fn a_filtered_vlan_is_sent_to_as_it_is_unless_a_driver_would_have_to() {
        let mut interfaces = interfaces();
        let target = l2(Some(on(5)));
        let found = seen_by(&["eth0.10", "eth1"], &interfaces, &target, FRESH);
        let way = found.way.expect("all of them are filtered in generic mode");
        assert_eq!((way.interface.as_str(), way.tags), ("eth0.10", Tags::Set(vec![tag(0x8100, 20)])));
        interfaces.get_mut("eth1").unwrap().xdp = Some((1, Mode::Native));
        let found = seen_by(&["eth0.10", "eth1"], &interfaces, &target, FRESH);
        assert_eq!(found.state.name(), "wrong-interface");
    }
}
