//! Checks that packets of the services reach the filter, and that no other packets reach their applications, from the
//! addresses, interfaces and UDP sockets of this host. Firewall rules are not read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
};

use rtnetlink::packet_route::link::InfoKind;

use super::{
    addresses::Address,
    connection::{Network, NetworkError},
    links::{Link, Links},
    sockets::{self, UdpSocket},
};
use crate::{
    config::{Forward, Service},
    datapath::preflight::Check,
    protocol::Verdict,
};

/// Number of names and addresses that a warning lists.
const SHOWN: usize = 3;

/// This host at one moment.
struct Host<'a> {
    services: &'a [Service],
    links: &'a Links,
    /// Indices of the interfaces that are, or will be, filtered.
    filtered: BTreeSet<u32>,
    addresses: Vec<Address>,
    /// Addresses of services that the kernel delivers to sockets of this host: addresses of interfaces that are up, and
    /// those with a route of type `local`.
    delivered: BTreeSet<IpAddr>,
    /// `arp_ignore` of each interface (Documentation/networking/ip-sysctl.rst).
    arp_ignore: BTreeMap<u32, u32>,
    /// By the ports of services with `forward = "local"`.
    sockets: BTreeMap<u16, io::Result<Vec<UdpSocket>>>,
}

/// Warnings about the services, where the interfaces of these names are filtered.
///
/// # Errors
/// If the kernel cannot be queried for addresses.
pub async fn warnings(
    services: &[Service],
    filtered: &[String],
    network: &Network,
    links: &Links,
) -> Result<Vec<Check>, NetworkError> {
    let filtered = filtered.iter().filter_map(|name| Some(links.named(name)?.index)).collect();
    let mut host = Host {
        services,
        links,
        filtered,
        addresses: network.addresses().await?,
        delivered: BTreeSet::new(),
        arp_ignore: links.iter().map(|link| (link.index, arp_ignore(&link.name))).collect(),
        sockets: BTreeMap::new(),
    };
    for service in services {
        if network.route(service.address).await.is_ok_and(|route| route.is_some_and(|route| route.local)) {
            host.delivered.insert(service.address);
        }
        if service.forward == Forward::Local {
            host.sockets.entry(service.port).or_insert_with(|| sockets::on_port(service.port));
        }
    }
    Ok(host.warnings())
}

/// The kernel uses the greater value of the host's and the interface's setting (IN_DEV_ARP_IGNORE, linux/inetdevice.h).
fn arp_ignore(interface: &str) -> u32 {
    let of = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/arp_ignore"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    of("all").max(of(interface))
}

impl Host<'_> {
    fn warnings(&self) -> Vec<Check> {
        // Missing interfaces are reported elsewhere.
        if self.filtered.is_empty() {
            return Vec::new();
        }
        let of =
            |service| [self.address(service), self.other_interfaces(service), self.other_sockets(service)];
        self.services.iter().flat_map(of).flatten().collect()
    }

    /// Checks whether frames for the service's address arrive without further configuration: whether this host answers
    /// ARP or neighbour discovery for the address on a filtered interface.
    fn address(&self, service: &Service) -> Option<Check> {
        let address = service.address;
        let on: Vec<_> = self.addresses.iter().filter(|found| found.address == address).collect();
        if !on.is_empty() && on.iter().all(|found| found.duplicate) {
            let found = format!(
                "duplicate address detection failed for {address}: another host on its segment has it, and this \
                 host does not use it"
            );
            let hint = format!("give {address} to one host of the segment, and add it again here");
            return Some(warning(service, found, hint));
        }
        let entries = self.behind_the_filter();
        if entries.iter().any(|link| self.answers(link, address)) {
            return None;
        }
        let holders = self.names(on.iter().map(|found| found.index));
        let place = match holders.as_slice() {
            [] => "on no interface of this host".to_owned(),
            holders => format!("on {} and on no filtered interface", some(holders)),
        };
        let there = if holders.is_empty() { "" } else { " there" };
        let protocol = if address.is_ipv4() { "ARP" } else { "neighbour discovery" };
        let mut found = format!(
            "{address} is {place}: this host does not answer {protocol} for it{there}, so frames for it arrive only \
             if a router routes them to this host"
        );
        let undelivered = service.forward == Forward::Local && !self.delivered.contains(&address);
        if undelivered {
            found.push_str("; and forward = \"local\" finds no socket for them");
        }
        let device = entries.first().map_or("IFACE", |link| link.name.as_str());
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let mut hint = format!("`ip address add {address}/{bits} dev {device}`");
        if !undelivered {
            hint.push_str(", unless a router has a route to it through this host");
        }
        Some(warning(service, found, hint))
    }

    /// Interfaces that receive packets for the service and have no filter. For a local service, these are all such
    /// interfaces: the kernel delivers packets whichever interface has the address. For a forwarded service, they
    /// matter only if the address is on such an interface.
    fn other_interfaces(&self, service: &Service) -> Option<Check> {
        let Service { address, forward, .. } = service;
        let is_local = *forward == Forward::Local;
        let has_it = |link: &&Link| {
            self.addresses.iter().any(|found| (found.index, found.address) == (link.index, *address))
        };
        let taking = self.entries().filter(|link| is_local || has_it(link));
        let others: BTreeSet<u32> = taking.flat_map(|link| self.unfiltered_below(link.index)).collect();
        let others = some(&self.names(others));
        if others.is_empty() {
            return None;
        }
        let what = if is_local {
            "are not filtered: they reach the application without a token, unless a firewall drops them"
        } else {
            "are neither checked nor forwarded"
        };
        let found = format!(
            "packets for {address} that arrive on an interface not in `interfaces` ({others}) {what}"
        );
        let hint = if is_local {
            let rule = self.drop_rule(service.port).map(|rule| format!(", or drop the packets: {rule}"));
            format!("add {others} to `interfaces`{}", rule.unwrap_or_default())
        } else {
            format!("add it to `interfaces`, or take {address} off it")
        };
        Some(warning(service, found, hint))
    }

    /// UDP sockets on the service's port that take packets for addresses without a filter.
    fn other_sockets(&self, service: &Service) -> Option<Check> {
        let port = service.port;
        let sockets = match self.sockets.get(&port).filter(|_| service.forward == Forward::Local)? {
            Ok(sockets) => sockets,
            Err(error) => {
                let found = format!("the UDP sockets of this host cannot be listed: {error}");
                let hint = format!(
                    "`modprobe udp_diag`, or see that `ss -lun 'sport = :{port}'` shows {} only",
                    service.address
                );
                return Some(warning(service, found, hint));
            }
        };
        let is_guarded =
            |address: IpAddr| self.services.iter().any(|one| (one.address, one.port) == (address, port));
        let from_outside =
            |socket: &&UdpSocket| self.links.get(socket.device).is_none_or(|device| !device.loopback);
        let open: BTreeSet<_> = sockets
            .iter()
            .filter(from_outside)
            .filter(|socket| !socket.address.is_loopback() && !is_guarded(socket.address))
            .copied()
            .collect();
        let (wildcards, others): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|socket| socket.address.is_unspecified());
        let found = if wildcards.is_empty() {
            let others: Vec<_> = others.iter().map(|socket| socket.address.to_string()).collect();
            if others.is_empty() {
                return None;
            }
            format!("a UDP socket is on port {port} of {}, which is not filtered", some(&others))
        } else {
            let is_taken = |address: IpAddr| wildcards.iter().any(|socket| socket.is_wildcard_for(address));
            let addresses = self.addresses.iter().map(|found| found.address);
            let reached: BTreeSet<_> = addresses
                .filter(|address| !address.is_loopback() && !is_guarded(*address) && is_taken(*address))
                .collect();
            let reached: Vec<_> = reached.iter().map(IpAddr::to_string).collect();
            let reached = match reached.as_slice() {
                [] => "broadcast and multicast addresses".to_owned(),
                reached => some(reached),
            };
            let on = wildcards.iter().map(|socket| socket.address.to_string()).collect::<BTreeSet<_>>();
            let on = on.into_iter().collect::<Vec<_>>().join(" and ");
            format!(
                "a UDP socket on port {port} listens on every address of this host ({on}): packets to its other \
                 addresses ({reached}) reach it without a token"
            )
        };
        let rule = self.drop_rule(port).map(|rule| format!(", or drop packets to other addresses: {rule}"));
        let hint = format!("bind the application to {}{}", service.address, rule.unwrap_or_default());
        Some(warning(service, found, hint))
    }

    /// The command for a firewall rule that accepts packets to a port only if they are for a service and passed a
    /// filter.
    ///
    /// Such a rule sees the interface on which a packet enters the IP stack, not the member of the bridge or bond
    /// that received it. `None` if filtered and unfiltered packets enter on one interface, or if no interface
    /// receives filtered ones.
    fn drop_rule(&self, port: u16) -> Option<String> {
        let is_filtered = |link: &&Link| self.unfiltered_below(link.index).is_empty();
        if !self.behind_the_filter().iter().all(is_filtered) {
            return None;
        }
        let filtered: Vec<_> =
            self.entries().filter(is_filtered).map(|link| format!("\"{}\"", link.name)).collect();
        if filtered.is_empty() {
            return None;
        }
        let from = format!("iifname {{ {} }} ", filtered.join(", "));
        let is_here = |service: &&Service| service.forward == Forward::Local && service.port == port;
        let accept = self.services.iter().filter(is_here).map(|Service { address, .. }| {
            let family = if address.is_ipv4() { "ip" } else { "ip6" };
            format!("{from}{family} daddr {address} udp dport {port} accept; ")
        });
        Some(format!(
            "`nft 'table inet tollgate {{ chain input {{ type filter hook input priority 0; {}iifname != \"lo\" udp \
             dport {port} drop; }}; }}'`",
            accept.collect::<String>()
        ))
    }

    /// Whether this host answers ARP or neighbour discovery for an address on an interface: IPv6 only for the
    /// interface's own addresses (`ndisc_recv_ns`), IPv4 for those of all interfaces unless `arp_ignore` says
    /// otherwise (`arp_process`).
    fn answers(&self, link: &Link, address: IpAddr) -> bool {
        let has_it = || {
            let mut of_link = self.addresses.iter().filter(|found| found.index == link.index);
            of_link.any(|found| found.address == address && !found.duplicate)
        };
        match self.arp_ignore.get(&link.index) {
            _ if address.is_ipv6() => has_it(),
            None | Some(0 | 3) => self.delivered.contains(&address),
            Some(8) => false,
            Some(_) => has_it(),
        }
    }

    /// Interfaces on which packets from elsewhere enter the IP stack. A member gives its frames to the bridge, bond
    /// or team.
    fn entries(&self) -> impl Iterator<Item = &Link> {
        let takes_packets = |link: &&Link| {
            link.admin_up && !link.loopback && link.kind != Some(InfoKind::Dummy) && link.master.is_none()
        };
        self.links.iter().filter(takes_packets)
    }

    /// The `entries` that receive frames from a filtered interface.
    fn behind_the_filter(&self) -> Vec<&Link> {
        let above = |index: &u32| self.links.all_uppers(*index).into_iter().chain([*index]);
        let above: BTreeSet<u32> = self.filtered.iter().flat_map(above).collect();
        self.entries().filter(|link| above.contains(&link.index)).collect()
    }

    /// The lowest interfaces from which frames come to an interface without passing a filter.
    fn unfiltered_below(&self, index: u32) -> BTreeSet<u32> {
        let (mut found, mut seen, mut next) = (BTreeSet::new(), BTreeSet::new(), vec![index]);
        while let Some(index) = next.pop() {
            if self.filtered.contains(&index) || !seen.insert(index) {
                continue;
            }
            let lowers: Vec<_> = self.links.lowers(index).map(|lower| lower.index).collect();
            if lowers.is_empty() {
                found.insert(index);
            }
            next.extend(lowers);
        }
        found
    }

    fn names(&self, indices: impl IntoIterator<Item = u32>) -> Vec<String> {
        indices.into_iter().filter_map(|index| Some(self.links.get(index)?.name.clone())).collect()
    }
}

fn warning(service: &Service, found: String, hint: String) -> Check {
    let name = format!("service {}", service.name).into();
    Check { name, verdict: Verdict::Warning, found, hint: hint.into() }
}

/// The first names, and the number of the others.
fn some(names: &[String]) -> String {
    match names.len().saturating_sub(SHOWN) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

    fn link(index: u32, name: &str, kind: Option<InfoKind>, more: &[LinkAttribute]) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.attributes = [&[LinkAttribute::IfName(name.to_owned())], more].concat();
        message.attributes.extend(kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])));
        Link::from_message(&message).unwrap()
    }

    /// Two cards in a bond with a VLAN, a card and a guest in a bridge, a card with a VLAN, a dummy, and one that is
    /// down.
    fn links() -> Links {
        let (in_bond, in_bridge) = ([LinkAttribute::Controller(4)], [LinkAttribute::Controller(8)]);
        let mut down = link(13, "down", None, &[]);
        down.admin_up = false;
        [
            link(2, "eth0", None, &in_bond),
            link(3, "eth1", None, &in_bond),
            link(4, "bond0", Some(InfoKind::Bond), &[]),
            link(5, "bond0.5", Some(InfoKind::Vlan), &[LinkAttribute::Link(4)]),
            link(6, "eth2", None, &in_bridge),
            link(7, "tap0", None, &in_bridge),
            link(8, "br0", Some(InfoKind::Bridge), &[]),
            link(9, "eth3", None, &[]),
            link(10, "eth3.9", Some(InfoKind::Vlan), &[LinkAttribute::Link(9)]),
            link(12, "dummy0", Some(InfoKind::Dummy), &[]),
            down,
        ]
        .into_iter()
        .collect()
    }

    fn host<'a>(links: &'a Links, filtered: &[u32]) -> Host<'a> {
        Host {
            services: &[],
            links,
            filtered: filtered.iter().copied().collect(),
            addresses: Vec::new(),
            delivered: BTreeSet::new(),
            arp_ignore: BTreeMap::new(),
            sockets: BTreeMap::new(),
        }
    }

    /// A service on 192.0.2.1, port 7777.
    fn local() -> Service {
        let text = "interfaces = [\"eth0\"]\n[[service]]\nid = 1\nname = \"game\"\naddress = \"192.0.2.1\"\n\
                    port = 7777\nforward = \"local\"";
        let config = Config::parse(std::path::Path::new("tollgate.toml"), text).unwrap();
        config.services.into_iter().next().unwrap()
    }

    #[test]
    fn frames_pass_a_filter_on_any_interface_of_a_stack() {
        let links = links();
        let open = |filtered: &[u32]| {
            let host = host(&links, filtered);
            let found: BTreeSet<_> =
                host.entries().flat_map(|link| host.unfiltered_below(link.index)).collect();
            host.names(found)
        };
        assert_eq!(open(&[4, 6, 9]), ["tap0"]);
        assert_eq!(open(&[2, 8, 9]), ["eth1"]);
        assert_eq!(open(&[2, 3, 8, 10]), ["eth3"], "a card whose VLAN is filtered");
        assert_eq!(open(&[5, 8, 9]), ["eth0", "eth1"]);
        assert_eq!(open(&[2, 3, 8, 9]), Vec::<String>::new());
    }

    #[test]
    fn packets_enter_above_the_filter() {
        let links = links();
        let host = host(&links, &[4, 6]);
        let names = host.names(host.behind_the_filter().iter().map(|link| link.index));
        assert_eq!(names, ["bond0", "bond0.5", "br0"]);
    }

    #[test]
    fn a_firewall_rule_is_offered_only_where_it_can_tell_filtered_packets_from_others() {
        let (links, services) = (links(), [local()]);
        let hints = |filtered: &[u32]| {
            let mut host = host(&links, filtered);
            host.services = &services;
            let socket = UdpSocket { address: [0, 0, 0, 0].into(), dual_stack: false, device: 0 };
            host.sockets.insert(services[0].port, Ok(vec![socket]));
            let checks = [host.other_interfaces(&services[0]), host.other_sockets(&services[0])];
            checks.map(|check| check.unwrap().hint)
        };
        let accepted = "iifname { \"eth3\", \"eth3.9\" } ip daddr 192.0.2.1 udp dport 7777 accept; ";
        for hint in hints(&[9]) {
            assert!(hint.contains(accepted), "{hint}");
        }
        // One member of a bridge, one of a bond, one of a bridge beside another interface, and one that is down.
        for (filtered, others) in [
            (&[6][..], "eth0, eth1, tap0 and 1 more"),
            (&[2], "eth1, eth2, tap0 and 1 more"),
            (&[6, 9], "eth0, eth1, tap0"),
            (&[13], "eth0, eth1, eth2 and 2 more"),
        ] {
            let [interfaces, sockets] = hints(filtered);
            assert_eq!(interfaces, format!("add {others} to `interfaces`"));
            assert_eq!(sockets, "bind the application to 192.0.2.1");
        }
    }

    #[test]
    fn a_list_ends_with_how_many_more_there_are() {
        let names = ["a", "b", "c", "d", "e"].map(str::to_owned);
        assert_eq!(some(&names[..3]), "a, b, c");
        assert_eq!(some(&names), "a, b, c and 2 more");
    }
}
