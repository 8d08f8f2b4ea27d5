//! From netlink messages to interfaces, routes and neighbours.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::backend::Tag;
use rtnetlink::packet_route::{
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
        LinkXdp, XdpAttached,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::network::{Interface, Mac, Neighbour, Receives, Route, Switch, Vlan};
use crate::datapath::attach::Mode;

/// An interface and its name.
pub(super) fn interface(link: &LinkMessage) -> Option<(String, Interface)> {
    let mut name = None;
    let (mut mac, mut mtu, mut xdp, mut below, mut tag) = (None, 0, None, None, None);
    let (mut kind, mut master) = (None, None);
    // Below an interface that came from another namespace is another namespace's interface.
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

/// The kinds that are given frames of the interface at their `IFLA_LINK` (for others, as veth, that is something else).
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

/// An individual address of an interface besides its own, by the interface: one of `netdev->uc`, which the kernel lists as
/// forwarding entries of the interface itself (`ndo_dflt_fdb_dump`). Those of tunnels have a remote address.
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
            // With programs in more than one mode only these are told; the driver's sees packets first.
            LinkXdp::SkbProgId(id) => program = program.or(Some(*id)),
            LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => program = Some(*id),
            _ => {}
        }
    }
    Some((program?, mode))
}

/// `None` for one that leads nowhere, or to many.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let mut index = None;
    let (mut gateway, mut source, mut mtu) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(found) => index = Some(*found),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            // An IPv4 route whose router has an IPv6 address (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let local = match message.header.kind {
        RouteType::Local => true,
        RouteType::Unicast => false,
        _ => return None,
    };
    let source = source.filter(|source| !source.is_unspecified());
    Some(Route { index: index?, gateway, source, mtu: mtu.filter(|mtu| *mtu != 0), local })
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
        // What a veth has there is its other end.
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
            route(&message)
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
        let whole =
            Route { gateway: Some(v6.into()), source: Some([10, 0, 0, 1].into()), mtu: Some(1400), ..plain };
        assert_eq!(with(RouteType::Unicast, &attributes), Some(whole));
    }
}
