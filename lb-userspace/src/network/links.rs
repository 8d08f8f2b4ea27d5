//! Network interfaces and how they stack, from one RTM_GETLINK dump (rtnetlink(7)).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State,
};

use super::types::Mac;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// IFLA_INFO_KIND, such as `vlan` or `bridge`; `None` for a physical interface.
    pub kind: Option<InfoKind>,
    /// The MAC address of an Ethernet interface.
    pub mac: Option<Mac>,
    /// IFLA_LINK: the parent of a stacked interface, the peer of a veth, the underlay of a tunnel.
    pub link: Option<u32>,
    /// IFLA_LINK_NETNSID: present where `link` is an index of another network namespace.
    pub link_netnsid: Option<i32>,
    /// IFLA_MASTER: the bridge, bond, team or VRF that this interface is a member of.
    pub master: Option<u32>,
    /// IFLA_OPERSTATE (RFC 2863).
    pub operstate: State,
    /// Whether it is administratively up (IFF_UP).
    pub admin_up: bool,
    /// Whether its frames come from this host alone (IFF_LOOPBACK).
    pub loopback: bool,
    /// Whether it is up and has a carrier (IFF_RUNNING).
    pub running: bool,
    /// IFLA_MTU, bytes.
    pub mtu: u32,
}

/// All interfaces of this network namespace at one moment, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links(BTreeMap<u32, Link>);

impl Link {
    /// `None` for a message without a name.
    pub(super) fn from_message(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            mac: None,
            link: None,
            link_netnsid: None,
            master: None,
            operstate: State::Unknown,
            admin_up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            running: flags.contains(LinkFlags::Up | LinkFlags::Running),
            mtu: 0,
        };
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) if ethernet => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Link(index) => link.link = Some(*index),
                LinkAttribute::LinkNetNsId(id) => link.link_netnsid = Some(*id),
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::OperState(state) => link.operstate = *state,
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(link).filter(|link| !link.name.is_empty())
    }

    /// The interface below that passes its frames to this one. IFLA_LINK names it only for these kinds: for a veth it
    /// is the peer, for a tunnel the underlay, which carries other packets.
    pub fn parent(&self) -> Option<u32> {
        let stacks = matches!(
            self.kind,
            Some(
                InfoKind::Vlan | InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap
            )
        );
        // The parent of an interface that came from another network namespace is not in this one.
        self.link.filter(|_| stacks && self.link_netnsid.is_none())
    }

    /// Its relation to an interface directly below it.
    fn relation_to(&self, lower: &Self) -> String {
        let kind = self.kind.as_ref().map_or_else(|| "master".to_owned(), ToString::to_string);
        match lower.master == Some(self.index) {
            true => format!("{} is in the {kind} {}", lower.name, self.name),
            false => format!("{} is a {kind} of {}", self.name, lower.name),
        }
    }
}

impl Links {
    /// An interface by its index.
    pub fn get(&self, index: u32) -> Option<&Link> {
        self.0.get(&index)
    }

    /// An interface by its name.
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.0.values().find(|link| link.name == name)
    }

    /// All interfaces, in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }

    /// The interfaces directly below one: a VLAN's or macvlan's parent; the members of a bridge, bond, team or VRF.
    pub fn lowers(&self, index: u32) -> impl Iterator<Item = &Link> {
        let parent = self.get(index).and_then(Link::parent);
        self.iter().filter(move |link| parent == Some(link.index) || link.master == Some(index))
    }

    /// The interfaces directly above one: its VLANs and macvlans, and the bridge, bond, team or VRF that it is in.
    pub fn uppers(&self, index: u32) -> impl Iterator<Item = &Link> {
        let master = self.get(index).and_then(|link| link.master);
        self.iter().filter(move |link| link.parent() == Some(index) || master == Some(link.index))
    }

    /// All interfaces above one, at any distance: those that may receive a frame after it.
    pub fn all_uppers(&self, index: u32) -> BTreeSet<u32> {
        self.above(index).into_keys().collect()
    }

    /// How one interface is above another, at any distance, in words; `None` if it is not.
    pub fn stack(&self, lower: u32, upper: u32) -> Option<String> {
        let below = self.above(lower);
        let mut steps = Vec::new();
        let mut at = upper;
        while at != lower {
            let next = *below.get(&at)?;
            steps.push(self.get(at)?.relation_to(self.get(next)?));
            at = next;
        }
        steps.reverse();
        Some(steps.join(", ")).filter(|steps| !steps.is_empty())
    }

    /// All interfaces above one, each with the interface directly below it.
    fn above(&self, index: u32) -> BTreeMap<u32, u32> {
        let mut found = BTreeMap::new();
        let mut from = VecDeque::from([index]);
        while let Some(lower) = from.pop_front() {
            for upper in self.uppers(lower).filter(|upper| upper.index != index) {
                found.entry(upper.index).or_insert_with(|| {
                    from.push_back(upper.index);
                    lower
                });
            }
        }
        found
    }
}

impl FromIterator<Link> for Links {
    fn from_iter<I: IntoIterator<Item = Link>>(links: I) -> Self {
        Self(links.into_iter().map(|link| (link.index, link)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<InfoKind>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind,
            mac: Some([2; 6]),
            link: None,
            link_netnsid: None,
            master: None,
            operstate: State::Up,
            admin_up: true,
            loopback: false,
            running: true,
            mtu: 1500,
        }
    }

    fn above(parent: u32, link: Link) -> Link {
        Link { link: Some(parent), ..link }
    }

    fn member_of(master: u32, link: Link) -> Link {
        Link { master: Some(master), ..link }
    }

    #[test]
    fn interfaces_stack_by_parent_and_by_membership() {
        let links: Links = [
            member_of(4, link(2, "eth0", None)),
            member_of(4, link(3, "eth1", None)),
            link(4, "bond0", Some(InfoKind::Bond)),
            member_of(6, above(4, link(5, "bond0.5", Some(InfoKind::Vlan)))),
            link(6, "br0", Some(InfoKind::Bridge)),
            above(2, link(7, "veth0", Some(InfoKind::Veth))),
            Link { link_netnsid: Some(0), ..above(2, link(8, "foreign", Some(InfoKind::MacVlan))) },
            above(2, link(9, "gre1", Some(InfoKind::GreTun))),
            above(6, link(10, "mv0", Some(InfoKind::MacVlan))),
        ]
        .into_iter()
        .collect();
        let indices = |found: Vec<&Link>| found.iter().map(|link| link.index).collect::<Vec<_>>();
        assert_eq!(indices(links.lowers(4).collect()), [2, 3]);
        assert_eq!(indices(links.lowers(5).collect()), [4]);
        assert_eq!(indices(links.uppers(2).collect()), [4]);
        assert_eq!(links.all_uppers(2), BTreeSet::from([4, 5, 6, 10]));
        assert_eq!(links.all_uppers(10), BTreeSet::new());
        let stack = links.stack(2, 6).expect("br0 is above eth0");
        assert_eq!(
            stack,
            "eth0 is in the bond bond0, bond0.5 is a vlan of bond0, bond0.5 is in the bridge br0"
        );
        assert_eq!((links.stack(6, 2), links.stack(2, 3), links.stack(2, 7)), (None, None, None));
        assert_eq!(indices(links.lowers(7).collect()), Vec::<u32>::new(), "a veth's peer is not below it");
        assert_eq!(links.named("br0").map(|link| link.index), Some(6));
    }

    #[test]
    fn a_loop_ends() {
        let links: Links =
            [member_of(3, above(3, link(2, "a", Some(InfoKind::Vlan)))), member_of(2, link(3, "b", None))]
                .into_iter()
                .collect();
        assert_eq!(links.all_uppers(2), BTreeSet::from([3]));
        assert_eq!(links.stack(2, 2), None);
    }

    #[test]
    fn a_message_becomes_a_link() {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up;
        assert_eq!(Link::from_message(&message), None, "without a name");
        message.attributes = vec![
            LinkAttribute::IfName("eth0.5".to_owned()),
            LinkAttribute::Address(vec![2; 6]),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Link(2),
            LinkAttribute::Controller(6),
            LinkAttribute::OperState(State::LowerLayerDown),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]),
        ];
        let expected = Link {
            operstate: State::LowerLayerDown,
            running: false,
            mtu: 1400,
            ..member_of(6, above(2, link(7, "eth0.5", Some(InfoKind::Vlan))))
        };
        assert_eq!(Link::from_message(&message), Some(expected));
    }
}
