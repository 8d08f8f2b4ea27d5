//! Parses netlink messages into interfaces, routes and neighbours.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{
    backend::Tag,
    siphash::{SipKey, siphash24},
};
use rtnetlink::packet_route::{
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
        LinkXdp, XdpAttached,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType,
        RouteVia,
    },
};

use super::types::{Interface, Mac, Neighbour, Receives, Route, Switch, Vlan};
use crate::datapath::attach::Mode;

/// Parses an interface and its name.
pub(super) fn interface(link: &LinkMessage) -> Option<(String, Interface)> {
    let mut name = None;
    let (mut mac, mut mtu, mut xdp, mut below, mut tag) = (None, 0, None, None, None);
    let (mut kind, mut master) = (None, None);
    // The parent of an interface that was moved here from another namespace is in that namespace.
    let mut foreign = false;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = Some(found.clone()),
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(found) => mtu = *found,
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::LinkNetNsId(_) => foreign = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(found) => kind = Some(found.clone()),
                        LinkInfo::Data(InfoData::Vlan(fields)) => tag = vlan_tag(fields),
                        _ => {}
                    }
                }
            }
            LinkAttribute::Xdp(attributes) => xdp = attached(attributes),
            _ => {}
        }
    }
    let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    let has_header = ethernet || link.header.link_layer_type == LinkLayerType::Loopback;
    let receives = Receives {
        address: mac.filter(|_| has_header),
        secondary: BTreeSet::new(),
        master,
        below: below.filter(|_| !foreign && kind.as_ref().is_some_and(takes_frames_of_another)),
        switch: kind.as_ref().and_then(switch),
    };
    let vlan = below.zip(tag).filter(|_| !foreign).map(|(below, tag)| Vlan { below, tag });
    let interface = Interface {
        index: link.header.index,
        mac: mac.filter(|_| ethernet),
        mtu,
        up: link.header.flags.contains(LinkFlags::Up | LinkFlags::Running),
        sends_frames: ethernet
            && matches!(kind, None | Some(InfoKind::Veth | InfoKind::Bond | InfoKind::Tun)),
        vlan,
        receives,
        xdp,
    };
    Some((name?, interface))
}

/// The kinds that receive frames of the interface at their `IFLA_LINK`. For other kinds, such as veth, it has another
/// meaning.
const fn takes_frames_of_another(kind: &InfoKind) -> bool {
    matches!(
        kind,
        InfoKind::Vlan
            | InfoKind::MacVlan
            | InfoKind::MacVtap
            | InfoKind::IpVlan
            | InfoKind::IpVtap
            | InfoKind::MacSec
    )
}

fn switch(kind: &InfoKind) -> Option<Switch> {
    match kind {
        InfoKind::Bridge => Some(Switch::Bridge),
        InfoKind::Other(name) if name == "openvswitch" => Some(Switch::OpenVswitch),
        _ => None,
    }
}

/// A secondary unicast address of an interface (`netdev->uc`), with the index of the interface. The kernel lists it as
/// a forwarding entry of the interface itself (`ndo_dflt_fdb_dump`). Entries of tunnels have a remote address.
pub(super) fn secondary(message: &NeighbourMessage) -> Option<(u32, Mac)> {
    let mut mac: Option<Mac> = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Destination(_) => return None,
            _ => {}
        }
    }
    let is_individual = |[first, ..]: &Mac| first & 1 == 0;
    let own = message.header.flags.contains(NeighbourFlags::Own);
    Some((message.header.ifindex, mac.filter(is_individual).filter(|_| own)?))
}

fn vlan_tag(fields: &[InfoVlan]) -> Option<Tag> {
    let id = fields.iter().find_map(|field| if let InfoVlan::Id(id) = field { Some(*id) } else { None })?;
    let protocol = fields.iter().find_map(|field| match field {
        InfoVlan::Protocol(protocol) => Some(u16::from(*protocol)),
        _ => None,
    })?;
    Some(Tag { identifier_be: protocol.to_be(), control_be: id.to_be() })
}

fn attached(attributes: &[LinkXdp]) -> Option<(u32, Mode)> {
    let mut mode = Mode::Native;
    let mut program = None;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::None) => return None,
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Mode::Generic,
            LinkXdp::ProgId(id) => program = Some(*id),
            // With programs in several modes, the kernel reports these attributes only; native mode runs first.
            LinkXdp::SkbProgId(id) => program = program.or(Some(*id)),
            LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => program = Some(*id),
            _ => {}
        }
    }
    Some((program?, mode))
}

/// A next hop of a route.
#[derive(Default)]
struct NextHop {
    index: u32,
    gateway: Option<IpAddr>,
    weight: u32,
    /// Its link is down (RTNH_F_LINKDOWN).
    link_down: bool,
}

/// The route to an address in the answer to a request with RTM_F_FIB_MATCH; `None` for a route that leads nowhere.
///
/// # Errors
/// With the id of a nexthop object whose next hops are not in the message.
pub(super) fn route(message: &RouteMessage, to: IpAddr) -> Result<Option<Route>, u32> {
    let local = match message.header.kind {
        RouteType::Local => true,
        RouteType::Unicast => false,
        _ => return Ok(None),
    };
    let mut single = NextHop { weight: 1, ..NextHop::default() };
    let mut hops = Vec::new();
    let (mut source, mut mtu, mut object) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::MultiPath(several) => hops = several.iter().filter_map(next_hop).collect(),
            RouteAttribute::NhId(id) => object = Some(*id),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            of_hop => single.take(of_hop),
        }
    }
    hops.extend(Some(single).filter(|hop| hop.index != 0));
    let Some(NextHop { index, gateway, .. }) = choose(hops, to) else {
        return object.map_or(Ok(None), Err);
    };
    let source = source.filter(|source| !source.is_unspecified());
    Ok(Some(Route { index, gateway, source, mtu: mtu.filter(|mtu| *mtu != 0), local }))
}

impl NextHop {
    fn take(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(found) => self.index = *found,
            RouteAttribute::Gateway(address) => self.gateway = ip(address),
            // An IPv4 route whose router has an IPv6 address (RFC 8950).
            RouteAttribute::Via(RouteVia::Inet(address)) => self.gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => self.gateway = Some(IpAddr::V6(*address)),
            _ => {}
        }
    }
}

/// `None` for a next hop that the kernel does not use because its interface is down.
fn next_hop(message: &RouteNextHop) -> Option<NextHop> {
    if message.flags.contains(RouteNextHopFlags::Dead) {
        return None;
    }
    let mut hop = NextHop {
        index: message.interface_index,
        gateway: None,
        weight: u32::from(message.hops) + 1,
        link_down: message.flags.contains(RouteNextHopFlags::Linkdown),
    };
    message.attributes.iter().for_each(|attribute| hop.take(attribute));
    Some(hop)
}

/// Chooses one of several next hops by weighted rendezvous hashing. The choice is always the same for an address, and
/// when a next hop is removed, only its own addresses move. Next hops with a link come first.
fn choose(hops: Vec<NextHop>, to: IpAddr) -> Option<NextHop> {
    /// Not a secret: the choice must be the same after a restart.
    const KEY: SipKey = SipKey::from_bytes(b"tollgate/nexthop");
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let score = |hop: &NextHop| {
        let gateway = hop.gateway.map_or([0; 16], bytes);
        let hash = siphash24(KEY, &[&bytes(to)[..], &gateway, &hop.index.to_be_bytes()].concat());
        // Strictly between 0 and 1.
        let uniform = ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
        f64::from(hop.weight) / -uniform.ln()
    };
    hops.into_iter().max_by(|one, other| {
        (!one.link_down).cmp(&!other.link_down).then_with(|| score(one).total_cmp(&score(other)))
    })
}

/// The interface and the source address in the answer to a request without RTM_F_FIB_MATCH. Its gateway and MTU may
/// come from an exception and must not be used.
pub(super) fn source(message: &RouteMessage) -> Option<(u32, Option<IpAddr>)> {
    let mut index = None;
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(found) => index = Some(*found),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    Some((index?, source.filter(|source| !source.is_unspecified())))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// A neighbour, by interface and address.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let mut address = None;
    let mut mac: Option<Mac> = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::V4(*found));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::V6(*found));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let neighbour = match (message.header.state, mac) {
        (NeighbourState::Stale, Some(mac)) => Neighbour::Known { mac, fresh: false },
        (
            NeighbourState::Reachable
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent,
            Some(mac),
        ) => Neighbour::Known { mac, fresh: true },
        (NeighbourState::Failed, _) => Neighbour::Failed,
        _ => Neighbour::Asking,
    };
    Some(((message.header.ifindex, address?), neighbour))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::VlanProtocol;

    const BACKEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 11));

    fn link(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = 4;
        link.header.link_layer_type = LinkLayerType::Ether;
        link.header.flags = LinkFlags::Up | LinkFlags::Running;
        link.attributes = vec![
            LinkAttribute::IfName("eth0.10".to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Mtu(1500),
        ];
        link.attributes.extend(attributes);
        link
    }

    fn of_kind(kind: InfoKind) -> Vec<LinkAttribute> {
        vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])]
    }

    #[test]
    fn a_vlan_is_above_an_interface_of_this_namespace() {
        let fields = vec![InfoVlan::Id(10), InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)];
        let vlan = vec![
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(fields)),
            ]),
        ];
        let tag = Tag { identifier_be: 0x88a8_u16.to_be(), control_be: 10_u16.to_be() };
        let (name, found) = interface(&link(vlan.clone())).unwrap();
        assert_eq!((name.as_str(), found.vlan), ("eth0.10", Some(Vlan { below: 2, tag })));
        assert!(found.up && !found.sends_frames);
        let foreign = [vlan, vec![LinkAttribute::LinkNetNsId(1)]].concat();
        assert_eq!(interface(&link(foreign)).unwrap().1.vlan, None);
    }

    #[test]
    fn an_interface_is_above_those_whose_frames_it_takes() {
        let receives =
            |attributes: &[LinkAttribute]| interface(&link(attributes.to_vec())).unwrap().1.receives;
        let above = [LinkAttribute::Link(2), LinkAttribute::Controller(3)];
        let of = |kind| receives(&[&above[..], &of_kind(kind)].concat());
        let found = of(InfoKind::MacVlan);
        let wanted = Receives {
            address: Some([2, 0, 0, 0, 0, 1]),
            master: Some(3),
            below: Some(2),
            ..Receives::default()
        };
        assert_eq!(found, wanted);
        // IFLA_LINK of a veth is its peer.
        assert_eq!(of(InfoKind::Veth), Receives { below: None, ..wanted.clone() });
        let foreign = [&above[..], &of_kind(InfoKind::MacVlan), &[LinkAttribute::LinkNetNsId(1)]].concat();
        assert_eq!(receives(&foreign), Receives { below: None, ..wanted });
        assert_eq!(of(InfoKind::Bridge).switch, Some(Switch::Bridge));
        assert_eq!(of(InfoKind::Other("openvswitch".to_owned())).switch, Some(Switch::OpenVswitch));
    }

    #[test]
    fn secondary_addresses_are_the_individual_ones_of_the_interface_itself() {
        let entry = |flags, attributes: &[NeighbourAttribute]| {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = 4;
            message.header.flags = flags;
            message.attributes = attributes.to_vec();
            secondary(&message)
        };
        let mac = |first| NeighbourAttribute::LinkLayerAddress(vec![first, 0, 0, 0, 0, 7]);
        assert_eq!(entry(NeighbourFlags::Own, &[mac(2)]), Some((4, [2, 0, 0, 0, 0, 7])));
        assert_eq!(entry(NeighbourFlags::Own, &[mac(0x33)]), None, "a group");
        assert_eq!(entry(NeighbourFlags::Controller, &[mac(2)]), None, "a bridge's");
        let remote = NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 7].into()));
        assert_eq!(entry(NeighbourFlags::Own, &[mac(2), remote]), None, "a tunnel's");
    }

    #[test]
    fn some_kinds_send_frames_and_a_link_has_a_carrier() {
        let sends = |attributes| interface(&link(attributes)).unwrap().1.sends_frames;
        assert!(sends(vec![]) && sends(of_kind(InfoKind::Veth)) && sends(of_kind(InfoKind::Bond)));
        assert!(!sends(of_kind(InfoKind::Bridge)) && !sends(of_kind(InfoKind::Wireguard)));
        let mut loopback = link(vec![]);
        loopback.header.link_layer_type = LinkLayerType::Loopback;
        let found = interface(&loopback).unwrap().1;
        assert_eq!((found.sends_frames, found.mac), (false, None));
        assert!(found.receives.address.is_some());
        let mut without_header = link(vec![]);
        without_header.header.link_layer_type = LinkLayerType::None;
        assert_eq!(interface(&without_header).unwrap().1.receives.address, None);
        let mut unplugged = link(vec![]);
        unplugged.header.flags = LinkFlags::Up;
        assert!(!interface(&unplugged).unwrap().1.up);
    }

    #[test]
    fn a_route_has_a_router_of_either_family_and_leads_somewhere() {
        let v6: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
        let with = |kind, attributes: &[RouteAttribute]| {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = [&[RouteAttribute::Oif(3)], attributes].concat();
            route(&message, BACKEND).unwrap()
        };
        let plain = Route { index: 3, gateway: None, source: None, mtu: None, local: false };
        assert_eq!(with(RouteType::Unicast, &[]), Some(plain));
        assert_eq!(with(RouteType::Local, &[]), Some(Route { local: true, ..plain }));
        for kind in [RouteType::BlackHole, RouteType::Unreachable, RouteType::Broadcast, RouteType::Multicast]
        {
            assert_eq!(with(kind, &[]), None);
        }
        let attributes = [
            RouteAttribute::Via(RouteVia::Inet6(v6)),
            RouteAttribute::PrefSource(RouteAddress::Inet([10, 0, 0, 1].into())),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
        ];
        let mut shown = RouteMessage::default();
        shown.attributes = [&[RouteAttribute::Oif(3)], &attributes[..]].concat();
        assert_eq!(source(&shown), Some((3, Some([10, 0, 0, 1].into()))));
        let whole =
            Route { gateway: Some(v6.into()), source: Some([10, 0, 0, 1].into()), mtu: Some(1400), ..plain };
        assert_eq!(with(RouteType::Unicast, &attributes), Some(whole));
    }

    #[test]
    fn of_several_next_hops_an_address_keeps_its_own() {
        let hop = |last: u8, weight: u8, flags| {
            let mut hop = RouteNextHop::default();
            (hop.interface_index, hop.hops, hop.flags) = (2, weight - 1, flags);
            hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, last].into()))];
            hop
        };
        let none = RouteNextHopFlags::empty();
        let chosen = |hops: &[RouteNextHop], host: u8| {
            let mut message = RouteMessage::default();
            message.header.kind = RouteType::Unicast;
            message.attributes = vec![RouteAttribute::MultiPath(hops.to_vec())];
            let gateway = route(&message, [10, 1, 0, host].into()).unwrap()?.gateway.unwrap();
            let IpAddr::V4(gateway) = gateway else { panic!("{gateway}") };
            Some(gateway.octets()[3])
        };
        let of = |hops: &[RouteNextHop]| (0..=255).map(|host| chosen(hops, host)).collect::<Vec<_>>();
        let (one, two) = (hop(1, 1, none), hop(2, 3, none));
        let spread = of(&[one.clone(), two.clone()]);
        assert_eq!(spread, of(&[two.clone(), one.clone()]), "in any order");
        let first = spread.iter().filter(|hop| **hop == Some(1)).count();
        assert!((40..=90).contains(&first), "a quarter of 256, not {first}");
        // A third next hop takes addresses from both, and moves none from one to the other.
        let third = of(&[one.clone(), two.clone(), hop(3, 1, none)]);
        assert!(spread.iter().zip(&third).all(|(before, after)| after == before || *after == Some(3)));
        for unusable in [RouteNextHopFlags::Dead, RouteNextHopFlags::Linkdown] {
            assert!(
                of(&[one.clone(), hop(2, 3, unusable)]).iter().all(|hop| *hop == Some(1)),
                "{unusable:?}"
            );
        }
        assert_eq!(chosen(&[hop(1, 1, RouteNextHopFlags::Dead)], 1), None);
        assert_eq!(chosen(&[hop(1, 1, RouteNextHopFlags::Linkdown)], 1), Some(1));
    }

    #[test]
    fn next_hops_that_are_not_shown_are_an_error() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::NhId(7)];
        assert_eq!(route(&message, BACKEND), Err(7));
        message.attributes.push(RouteAttribute::Oif(3));
        assert_eq!(route(&message, BACKEND).unwrap().map(|route| route.index), Some(3));
    }
}
