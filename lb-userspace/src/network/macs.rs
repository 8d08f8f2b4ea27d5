//! The destination MAC addresses that are filtered on each interface: those of frames that the kernel passes to the
//! stack of this host, or to an interface above with its own address (docs/adr/0013).

use std::collections::{BTreeMap, BTreeSet};

use lb_common::mac::{self, MacEntry};

use super::types::{Interface, Interfaces, Mac, Switch};
use crate::{config::XdpMode, datapath::attach::Mode};

/// The frames that are filtered on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Destination MAC addresses.
    pub macs: BTreeSet<Mac>,
    /// Whether frames to other addresses pass, because the interface, or one above it, is a port of a software switch.
    pub switched: bool,
}

impl Accepted {
    /// The addresses as `ip` writes them.
    pub fn shown(&self) -> Vec<String> {
        self.macs.iter().map(|mac| shown(*mac)).collect()
    }
}

/// A MAC address as `ip` writes it.
pub fn shown(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// The filtered frames of these interfaces, by name, without interfaces that are missing or have no Ethernet header.
pub fn accepted(
    names: &[String],
    interfaces: &Interfaces,
    virtual_macs: &[Mac],
) -> BTreeMap<String, Accepted> {
    let view = View::new(interfaces);
    let of = |name: &String| Some((name.clone(), view.accepted(interfaces.get(name)?, virtual_macs)?));
    names.iter().filter_map(of).collect()
}

/// The entries of the MAC table for these interfaces, for a program that is, or will be, attached in this mode.
pub fn entries(
    names: &[String],
    interfaces: &Interfaces,
    virtual_macs: &[Mac],
    mode: XdpMode,
) -> BTreeSet<MacEntry> {
    let view = View::new(interfaces);
    let mut entries = BTreeSet::new();
    for interface in names.iter().filter_map(|name| interfaces.get(name)) {
        // The driver of a bond runs the program on its members, which receive the frames.
        let members = view.members(interface);
        for receiving in [interface].into_iter().chain(members) {
            let Some(accepted) = view.accepted(receiving, virtual_macs) else { continue };
            let of = |mac, passes, generic| MacEntry { mac, ifindex: receiving.index, passes, generic };
            // The mode that `auto` has chosen is known once the program is attached.
            let generic = mode == XdpMode::Generic || matches!(receiving.xdp, Some((_, Mode::Generic)));
            entries.extend(accepted.macs.iter().map(|octets| of(mac::Mac::new(*octets), 0, 0)));
            entries.insert(of(mac::Mac::OTHERS, accepted.switched.into(), generic.into()));
        }
    }
    entries
}

/// The interfaces by index.
struct View<'a>(BTreeMap<u32, &'a Interface>);

impl<'a> View<'a> {
    fn new(interfaces: &'a Interfaces) -> Self {
        Self(interfaces.values().map(|interface| (interface.index, interface)).collect())
    }

    /// `None` if its frames have no Ethernet header.
    fn accepted(&self, interface: &Interface, virtual_macs: &[Mac]) -> Option<Accepted> {
        let own = interface.receives.address?;
        let mut accepted = Accepted { macs: virtual_macs.iter().copied().collect(), switched: false };
        accepted.macs.insert(own);
        for reached in self.upward(interface) {
            let receives = &reached.receives;
            accepted.macs.extend(receives.address);
            match self.master(reached).and_then(|master| master.receives.switch) {
                Some(_) => accepted.switched = true,
                // The secondary addresses of a bridge port are addresses behind other ports (`br_fdb_sync_static`).
                None => accepted.macs.extend(&receives.secondary),
            }
        }
        Some(accepted)
    }

    /// An interface, and all interfaces above that may receive its frames.
    fn upward(&self, interface: &Interface) -> Vec<&'a Interface> {
        let mut found = BTreeSet::new();
        let mut next = vec![interface.index];
        while let Some(index) = next.pop() {
            let Some(reached) = self.0.get(&index).filter(|_| found.insert(index)) else { continue };
            next.extend(reached.receives.master);
            let of = |condition: &dyn Fn(&Interface) -> bool| {
                self.0.values().filter(|other| condition(other)).map(|other| other.index).collect::<Vec<_>>()
            };
            next.extend(of(&|other| other.receives.below == Some(index)));
            if reached.receives.switch == Some(Switch::OpenVswitch) {
                next.extend(of(&|other| other.receives.switch == Some(Switch::OpenVswitch)));
            }
        }
        found.into_iter().filter_map(|index| self.0.get(&index).copied()).collect()
    }

    /// The members of a bond or team.
    fn members(&self, interface: &Interface) -> impl Iterator<Item = &'a Interface> {
        let bond = interface.receives.switch.is_none().then_some(interface.index);
        let all = self.0.values().copied();
        all.filter(move |other| bond.is_some() && other.receives.master == bond)
    }

    fn master(&self, interface: &Interface) -> Option<&'a Interface> {
        self.0.get(&interface.receives.master?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::types::Receives;

    const fn mac(last: u8) -> Mac {
        [2, 0, 0, 0, 0, last]
    }

    /// An interface whose address ends in its index.
    fn interface(index: u8, receives: Receives) -> Interface {
        let address = Some(mac(index));
        Interface { index: index.into(), receives: Receives { address, ..receives }, ..Interface::default() }
    }

    fn on(below: u32) -> Receives {
        Receives { below: Some(below), ..Receives::default() }
    }

    fn in_master(master: u32) -> Receives {
        Receives { master: Some(master), ..Receives::default() }
    }

    fn switch(switch: Switch) -> Receives {
        Receives { switch: Some(switch), ..Receives::default() }
    }

    fn found(interfaces: &[(&str, Interface)], virtual_macs: &[Mac]) -> (Vec<u8>, bool) {
        let interfaces = interfaces.iter().map(|(name, one)| ((*name).to_owned(), one.clone())).collect();
        let names = ["eth0".to_owned()];
        let mut accepted = accepted(&names, &interfaces, virtual_macs);
        let Accepted { macs, switched } = accepted.remove("eth0").expect("it has Ethernet frames");
        (macs.into_iter().map(|[.., last]| last).collect(), switched)
    }

    #[test]
    fn an_interface_accepts_what_is_above_it() {
        let card = || interface(1, Receives::default());
        let other = || ("eth1", interface(2, Receives::default()));
        assert_eq!(found(&[("eth0", card()), other()], &[]), (vec![1], false));
        assert_eq!(found(&[("eth0", card()), other()], &[mac(77)]), (vec![1, 77], false));
        // A VLAN, a macvlan on that, and one of another card.
        let above = [
            ("eth0", card()),
            other(),
            ("eth0.5", interface(5, on(1))),
            ("macvlan", interface(6, on(5))),
            ("eth1.5", interface(7, on(2))),
        ];
        assert_eq!(found(&above, &[]), (vec![1, 5, 6], false));
        // A bond with another member, and a macvlan on it.
        let bond = [
            ("eth0", interface(1, in_master(3))),
            ("eth1", interface(2, in_master(3))),
            ("bond0", interface(3, Receives::default())),
            ("macvlan", interface(6, on(3))),
        ];
        assert_eq!(found(&bond, &[]), (vec![1, 3, 6], false));
        // A container's macvlan, which is in another namespace.
        let asked = Receives { secondary: [mac(9)].into(), ..Receives::default() };
        assert_eq!(found(&[("eth0", interface(1, asked))], &[]), (vec![1, 9], false));
    }

    #[test]
    fn frames_for_others_pass_where_a_switch_is_above() {
        let secondary = [mac(9)].into();
        let bridged = [
            ("eth0", interface(1, Receives { secondary, ..in_master(3) })),
            ("tap0", interface(2, in_master(3))),
            ("br0", interface(3, switch(Switch::Bridge))),
            ("br0.5", interface(4, on(3))),
        ];
        assert_eq!(found(&bridged, &[]), (vec![1, 3, 4], true));
        // A VLAN of it is the port.
        let of_vlan = [
            ("eth0", interface(1, Receives::default())),
            ("eth0.5", interface(2, Receives { master: Some(3), ..on(1) })),
            ("br0", interface(3, switch(Switch::Bridge))),
        ];
        assert_eq!(found(&of_vlan, &[]), (vec![1, 2, 3], true));
        let open_vswitch = [
            ("eth0", interface(1, in_master(3))),
            ("ovs-system", interface(3, switch(Switch::OpenVswitch))),
            ("br-int", interface(4, switch(Switch::OpenVswitch))),
        ];
        assert_eq!(found(&open_vswitch, &[]), (vec![1, 3, 4], true));
        // A bridge switches frames before the program on its own interface sees them.
        let bridge = [("eth0", interface(3, switch(Switch::Bridge))), ("tap0", interface(2, in_master(3)))];
        assert_eq!(found(&bridge, &[]), (vec![3], false));
    }

    #[test]
    fn frames_of_a_bond_come_in_on_its_members() {
        let interfaces = [
            ("eth0", interface(3, Receives::default())),
            ("card", interface(1, in_master(3))),
            ("elsewhere", interface(2, in_master(8))),
        ];
        let interfaces = interfaces.map(|(name, one)| (name.to_owned(), one)).into();
        let names = ["eth0".to_owned(), "missing".to_owned()];
        let generic = |mode| {
            let entries = entries(&names, &interfaces, &[], mode).into_iter();
            entries
                .filter(|entry| entry.mac == mac::Mac::OTHERS)
                .map(|entry| entry.generic)
                .collect::<Vec<_>>()
        };
        assert!(generic(XdpMode::Generic).iter().all(|generic| *generic == 1));
        assert!(generic(XdpMode::Native).iter().chain(&generic(XdpMode::Auto)).all(|generic| *generic == 0));
        let entries = entries(&names, &interfaces, &[], XdpMode::Auto);
        let of = |ifindex, last| MacEntry { mac: mac::Mac::new(mac(last)), ifindex, passes: 0, generic: 0 };
        let others = |ifindex| MacEntry { mac: mac::Mac::OTHERS, ifindex, passes: 0, generic: 0 };
        assert_eq!(entries, [of(1, 1), of(1, 3), others(1), of(3, 3), others(3)].into());
    }

    #[test]
    fn interfaces_above_each_other_are_no_endless_walk() {
        let loops = [("eth0", interface(1, in_master(2))), ("eth1", interface(2, in_master(1)))];
        assert_eq!(found(&loops, &[]), (vec![1, 2], false));
    }
}
