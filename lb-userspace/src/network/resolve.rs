//! Resolves the next hop of a backend from the routes, interfaces and neighbours of the kernel at one moment.
//!
//! Start at [`View::resolve`].

use std::{collections::HashMap, net::IpAddr, time::Instant};

use lb_common::backend::{TAGS_KEPT, TAGS_MAX, Tag};

use super::{
    neighbours::Resolution,
    reachability::BackendState,
    types::{Interface, Interfaces, Mac, Neighbour, Neighbours, Route},
};
use crate::{config::Forward, datapath::attach::Mode};

/// The next hop of a backend that is up: where its frames leave, and their headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Name of the interface that frames leave through.
    pub interface: String,
    /// Index of that interface.
    pub ifindex: u32,
    /// Router in front of the backend; `None` on the same segment.
    pub gateway: Option<IpAddr>,
    /// MAC address of the backend, or of the router.
    pub destination_mac: Mac,
    /// MAC address of the interface of the route.
    pub source_mac: Mac,
    /// VLAN tags of the frames.
    pub tags: Tags,
    /// Largest IP packet that the route takes, bytes.
    pub mtu: u16,
    /// Source address of this host on the route, where it has one.
    pub source: Option<IpAddr>,
}

/// The VLAN tags of frames to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// A frame that leaves through the interface that it arrived on keeps its tags; this host has no VLAN on that
    /// interface.
    Kept,
    /// These tags, outermost first; at most [`TAGS_MAX`].
    Set(Vec<Tag>),
}

impl Tags {
    /// As the XDP program reads them.
    pub fn value(&self) -> (u8, [Tag; TAGS_MAX]) {
        let mut value = [Tag::default(); TAGS_MAX];
        match self {
            Self::Kept => (TAGS_KEPT, value),
            Self::Set(tags) => {
                value.iter_mut().zip(tags).for_each(|(slot, tag)| *slot = *tag);
                (tags.len().min(TAGS_MAX) as u8, value)
            }
        }
    }
}

/// What [`View::resolve`] needs to know of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address of the backend.
    pub address: IpAddr,
    /// Forwarding mode of its service.
    pub forward: Forward,
    /// Whether the configuration sets the source address of its outer packets (`tunnel_sources`).
    pub has_source: bool,
    /// Route to the backend.
    pub route: Option<Route>,
    /// The neighbour of the last route that existed.
    pub last_neighbour: Option<(u32, IpAddr)>,
}

impl Target {
    /// The neighbour whose MAC address frames are sent to: interface index and address.
    pub fn neighbour(&self) -> Option<(u32, IpAddr)> {
        let route = self.route.filter(|route| !route.local)?;
        Some((route.index, route.gateway.unwrap_or(self.address)))
    }
}

/// Interfaces and neighbours at one moment.
pub struct View<'a> {
    /// Names of the interfaces that the program is attached to.
    filtered: &'a [String],
    interfaces: HashMap<u32, (&'a str, &'a Interface)>,
    neighbours: Neighbours,
    now: Instant,
}

/// The result of [`View::resolve`].
#[derive(Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Whether the backend can be used.
    pub state: BackendState,
    /// The next hop, if it can be used.
    pub next_hop: Option<NextHop>,
    /// A neighbour that the kernel should probe.
    pub probe: Option<(u32, IpAddr)>,
}

impl From<BackendState> for Resolved {
    fn from(state: BackendState) -> Self {
        Self { state, next_hop: None, probe: None }
    }
}

/// The interface that frames leave through.
struct Egress<'a> {
    name: &'a str,
    index: u32,
    tags: Tags,
    /// Whether the program is attached to it.
    filtered: bool,
}

impl<'a> View<'a> {
    /// `filtered` are the names of the interfaces that the program is attached to.
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

    /// Resolves the next hop of a backend. `resolution` keeps the state of its MAC address between calls.
    pub fn resolve(&self, target: &Target, resolution: &mut Resolution) -> Resolved {
        self.find(target, resolution).unwrap_or_else(Resolved::from)
    }

    fn find(&self, target: &Target, resolution: &mut Resolution) -> Result<Resolved, BackendState> {
        // The kernel removes routes through a link that is down.
        let gone = || match target.last_neighbour.and_then(|(index, _)| self.interfaces.get(&index)) {
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
            let cause = "and answers to forward = \"nat\" that arrive there bypass the program: add it to `interfaces`";
            return Err(BackendState::WrongInterface {
                interface: egress.name.to_owned(),
                cause: cause.to_owned(),
            });
        }
        let needs_source = target.forward.has_own_source() && !target.has_source;
        if needs_source && route.source.is_none_or(|source| source.is_ipv4() != target.address.is_ipv4()) {
            return Err(BackendState::NoSource { interface: self.name(route.index)?.to_owned() });
        }

        let key = target.neighbour().ok_or(BackendState::NoRoute)?;
        let neighbour = self.neighbours.get(&key).copied();
        resolution.observe(neighbour, self.now);
        let sure = matches!(neighbour, Some(Neighbour::Known { fresh: true, .. }));
        let probe = (!sure).then_some(key);
        let (name, interface) = self.interface(route.index)?;
        let (Some(destination_mac), Some(source_mac)) = (resolution.mac(), interface.mac) else {
            let state = match resolution {
                Resolution::Resolving { .. } => BackendState::Resolving,
                _ => BackendState::NoNeighbour {
                    address: key.1,
                    router: route.gateway.is_some(),
                    interface: name.to_owned(),
                },
            };
            return Ok(Resolved { probe, ..state.into() });
        };
        let mtu = route.mtu.map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
        let next_hop = NextHop {
            interface: egress.name.to_owned(),
            ifindex: egress.index,
            gateway: route.gateway,
            destination_mac,
            source_mac,
            tags: egress.tags,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            source: route.source,
        };
        Ok(Resolved { state: BackendState::Up, next_hop: Some(next_hop), probe })
    }

    /// The interface that frames for an interface leave through: from a VLAN down to an interface with the program,
    /// or to the lowest one, with the tags of the VLANs in between.
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
                    "which needs {} VLAN tags, and frames have at most {TAGS_MAX}",
                    tags.len()
                )));
            }
            let sends = interface.sends_frames || filtered && self.all_generic();
            if !sends {
                return Err(wrong(match filtered {
                    true => "which cannot send frames redirected from an interface in native mode: set \
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

    /// Whether the program runs in generic mode on all interfaces: then frames can be redirected to any kind of
    /// interface.
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

    /// Two network cards, the first with the program; VLANs of both, and a bridge.
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
        Target { address: BACKEND, forward: Forward::L2, has_source: false, route, last_neighbour: None }
    }

    fn seen_by(
        filtered: &[&str],
        interfaces: &Interfaces,
        target: &Target,
        neighbour: Option<Neighbour>,
    ) -> Resolved {
        let now = Instant::now();
        let neighbours = target.neighbour().zip(neighbour).into_iter().collect();
        let filtered: Vec<_> = filtered.iter().map(|name| (*name).to_owned()).collect();
        let view = View::new(&filtered, interfaces, neighbours, now);
        view.resolve(target, &mut Resolution::Resolving { since: now })
    }

    fn seen(target: &Target, neighbour: Option<Neighbour>) -> Resolved {
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
        let was_on = |index| Target { last_neighbour: Some((index, BACKEND)), ..l2(None) };
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
            let asked = seen.probe.map(|(_, address)| address);
            assert_eq!((seen.state.name(), asked), (state, asks), "{target:?} {neighbour:?}");
            assert_eq!(seen.next_hop.is_some(), seen.state.is_up(), "{target:?}");
        }
    }

    #[test]
    fn a_next_hop_describes_the_frames() {
        let source = Some(IpAddr::from([10, 0, 0, 1]));
        let route = Route { gateway: Some(ROUTER), source, mtu: Some(1300), ..on(3) };
        let target = Target { forward: Forward::Ipip, ..l2(Some(route)) };
        let next_hop = NextHop {
            interface: "eth1".to_owned(),
            ifindex: 3,
            gateway: Some(ROUTER),
            destination_mac: MAC,
            source_mac: OURS,
            tags: Tags::Kept,
            mtu: 1300,
            source,
        };
        assert_eq!(seen(&target, FRESH).next_hop, Some(next_hop));
    }

    #[test]
    fn frames_leave_below_the_vlans_with_their_tags() {
        let (outer, inner) = (tag(0x88a8, 10), tag(0x8100, 20));
        for (filtered, index, interface, tags, mtu) in [
            // This host has VLANs there: untagged frames must stay untagged.
            ("eth0", 2, "eth0", Tags::Set(vec![]), 1500),
            ("eth0", 3, "eth1", Tags::Kept, 1500),
            ("eth0", 4, "eth0", Tags::Set(vec![outer]), 1400),
            ("eth0", 5, "eth0", Tags::Set(vec![outer, inner]), 1500),
            ("eth1", 5, "eth0", Tags::Set(vec![outer, inner]), 1500),
        ] {
            let next_hop =
                seen_by(&[filtered], &interfaces(), &l2(Some(on(index))), FRESH).next_hop.expect("up");
            assert_eq!(
                (next_hop.interface.as_str(), next_hop.tags, next_hop.mtu),
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
        let next_hop = found.next_hop.expect("all of them are filtered in generic mode");
        assert_eq!(
            (next_hop.interface.as_str(), next_hop.tags),
            ("eth0.10", Tags::Set(vec![tag(0x8100, 20)]))
        );
        interfaces.get_mut("eth1").unwrap().xdp = Some((1, Mode::Native));
        let found = seen_by(&["eth0.10", "eth1"], &interfaces, &target, FRESH);
        assert_eq!(found.state.name(), "wrong-interface");
    }
}
