//! All forwarding modes, with real sockets at both ends: families, strip, with and without UDP checksum, in both
//! directions.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    slice,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use lb_common::{reason::Reason, token::Claims};
use lb_tests::testbed::{
    daemon::{Daemon, Instance, counters, said, service_named},
    decap::Decap,
    forward::Forward,
    issuer::Issuer,
    topology::{BACK_INTERFACE, Family, INTERFACE, Layout, Network, PORT, Plan, Topology},
};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

use crate::testbed::{Datagram, TTL, Testbed, new_name, receive, set_option};

#[test]
fn on_one_segment() -> Result<()> {
    every_mode(Plan::default(), "")
}

#[test]
fn on_one_segment_in_generic_mode() -> Result<()> {
    every_mode(Plan::default(), "xdp_mode = \"generic\"\n")
}

#[test]
fn on_one_tagged_segment() -> Result<()> {
    every_mode(Plan { tagged: true, ..Plan::default() }, "")
}

#[test]
fn through_a_router() -> Result<()> {
    every_mode(Plan { layout: Layout::Routed, ..Plan::default() }, "")
}

#[test]
fn through_a_router_from_many_sources() -> Result<()> {
    every_mode(Plan { layout: Layout::Routed, ..Plan::default() }, &format!("tunnel_sources = {SOURCES:?}\n"))
}

#[test]
fn out_of_another_interface() -> Result<()> {
    every_mode(Plan { layout: Layout::TwoInterfaces, ..Plan::default() }, "")
}

#[test]
fn out_of_another_interface_in_generic_mode() -> Result<()> {
    every_mode(Plan { layout: Layout::TwoInterfaces, ..Plan::default() }, "xdp_mode = \"generic\"\n")
}

#[test]
fn with_checksums_left_to_network_cards() -> Result<()> {
    every_mode(Plan { checksum_offload: true, ..Plan::default() }, "")
}

#[test]
fn with_checksums_left_to_network_cards_out_of_another_interface() -> Result<()> {
    every_mode(Plan { checksum_offload: true, layout: Layout::TwoInterfaces, ..Plan::default() }, "")
}

#[test]
fn with_checksums_left_to_network_cards_through_a_router() -> Result<()> {
    every_mode(Plan { checksum_offload: true, layout: Layout::Routed, ..Plan::default() }, "")
}

/// In generic mode, only `local` can deliver such datagrams. The others are counted with their own reason, as the log
/// says.
#[test]
fn with_checksums_left_to_network_cards_in_generic_mode() -> Result<()> {
    let plan = Plan { checksum_offload: true, ..Plan::default() };
    for &forward in Forward::value_variants() {
        let fields = format!("forward = \"{}\"\nkey_rotation = \"off\"", forward.name());
        let testbed = Testbed::of(Family::V4, &fields, Plan { backends: 1, ..plan })?;
        let text = fs::read_to_string(testbed.instance.config())?;
        fs::write(testbed.instance.config(), format!("xdp_mode = \"generic\"\n{text}"))?;
        let daemon = testbed.start()?;
        let token = testbed.token(1)?;
        // The mode is published once the program is attached.
        testbed.ready_again()?;
        if forward == Forward::Local {
            testbed.delivered(&token)?;
        } else {
            testbed.refused_token(&token, Reason::PartialChecksum).context(forward.name())?;
            let log = daemon.log();
            ensure!(log.contains("partial_checksum") && log.contains("native"), "{log}");
            let config = testbed.instance.config();
            let checked = testbed.run(&["check", "-c", config.to_str().context("a path of text")?])?;
            ensure!(said(&checked).contains("partial_checksum"), "{}", said(&checked));
        }
    }
    Ok(())
}

/// The ports of `nat` if the configuration names none.
const NAT_PORTS: std::ops::RangeInclusive<u16> = 10_000..=29_999;
const SOURCES: [&str; 2] = ["10.9.0.0/24", "fd00:9::/64"];
const MTU: usize = 1500;

/// All services at once, on one node with these additional settings.
fn every_mode(plan: Plan, settings: &str) -> Result<()> {
    let (name, layout) = (new_name()?, plan.layout);
    let topology = Topology::new(&name, Plan { backends: 2, ..plan })?;
    let instance = Instance::new(&name)?;
    let cases = Case::all(layout);
    let services: Vec<_> = cases.iter().map(|case| case.configuration(&topology)).collect();
    // Answers arrive on the second interface.
    let interfaces: &[_] =
        if layout == Layout::TwoInterfaces { &[INTERFACE, BACK_INTERFACE] } else { &[INTERFACE] };
    instance.configure_on(interfaces, &services.join("\n"))?;
    let text = fs::read_to_string(instance.config())?;
    fs::write(instance.config(), format!("{settings}{text}"))?;
    let daemon = Daemon::start(&instance, &topology.balancer)?;
    let sources = match settings.contains("tunnel_sources") {
        true => SOURCES.map(str::to_owned).to_vec(),
        false => topology.tunnel_sources(),
    };
    let _decap = Decap::on_backends(&topology, &instance, &sources)?;
    let failures: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            case.check(&topology, &instance).err().map(|error| format!("{}: {error:#}", case.name()))
        })
        .collect();
    ensure!(
        failures.is_empty(),
        "{} of {}:\n{}\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n"),
        daemon.log()
    );
    Ok(())
}

/// A service.
struct Case {
    id: u16,
    forward: Forward,
    family: Family,
    /// Family of the backends' addresses.
    outer: Family,
    strip: bool,
}

impl Case {
    /// All cases that a layout supports.
    fn all(layout: Layout) -> Vec<Self> {
        let mut cases = Vec::new();
        for &forward in Forward::value_variants() {
            // l2 ends at the first router.
            if (forward, layout) == (Forward::L2, Layout::Routed) {
                continue;
            }
            for (family, outer) in
                [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6)]
            {
                if family != outer && !forward.encapsulates() {
                    continue;
                }
                for strip in [true, false] {
                    let id = cases.len() as u16 + 1;
                    cases.push(Self { id, forward, family, outer, strip });
                }
            }
        }
        cases
    }

    fn name(&self) -> String {
        let strip = if self.strip { "stripped" } else { "whole" };
        format!("{}-{:?}-over-{:?}-{strip}", self.forward.name(), self.family, self.outer).to_lowercase()
    }

    fn address(&self) -> SocketAddr {
        (self.family.service().ip(), PORT + self.id).into()
    }

    fn configuration(&self, topology: &Topology) -> String {
        let fields =
            format!("forward = \"{}\"\nstrip = {}\nkey_rotation = \"off\"", self.forward.name(), self.strip);
        let backends = self.forward.backends(topology, self.outer);
        service_named(self.id.into(), &self.name(), self.address(), &fields, &backends)
    }

    /// Sends datagrams of many lengths to each backend, and their answers.
    fn check(&self, topology: &Topology, instance: &Instance) -> Result<()> {
        let issuer = Issuer::new(instance, &topology.balancer, &self.name())?;
        let applications = self.forward.applications(topology, self.address(), self.outer)?;
        let mut sent = 0;
        for checksums in [true, false] {
            // IPv6 has no datagrams without checksums.
            if !checksums && self.family == Family::V6 {
                continue;
            }
            let client = topology.client_socket(self.address())?;
            if !checksums {
                let off = |socket| set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
                [&client].into_iter().chain(&applications).try_for_each(off)?;
            }
            for len in [0, 1, 2, 33, self.longest()] {
                for backend in 1..=applications.len() {
                    let pinned = if self.forward == Forward::Local { 0 } else { backend as u16 };
                    let claims =
                        Claims { service_id: self.id.into(), class: 0, backend_id: pinned, session_id: sent };
                    let token = issuer.token(claims, TTL).to_bytes();
                    let data: Vec<u8> = (0..len).map(|_| fastrand::u8(..)).collect();
                    let expected = if self.strip { data.clone() } else { [&token[..], &data].concat() };
                    client.send(&[&token[..], &data].concat())?;
                    sent += 1;
                    self.exchange(topology, &client, &applications, backend - 1, &expected).with_context(
                        || {
                            let counted = counters(instance, &topology.balancer, &self.name());
                            format!(
                                "{len} bytes to backend {backend}, checksums {checksums}; counted {counted:?}"
                            )
                        },
                    )?;
                }
            }
        }
        let mut expected = BTreeMap::from([(Reason::Forwarded.name().to_owned(), sent)]);
        if self.forward == Forward::Nat {
            expected.insert(Reason::Reply.name().to_owned(), sent);
        }
        let counted = counters(instance, &topology.balancer, &self.name())?;
        ensure!(counted == expected, "counted {counted:?}, and expected {expected:?}");
        Ok(())
    }

    /// The longest data that fits, with all headers that it can have.
    fn longest(&self) -> usize {
        let header = |family| if family == Family::V4 { 20 } else { 40 };
        let outer = match self.forward {
            Forward::Local | Forward::L2 | Forward::Nat => 0,
            Forward::Ipip => header(self.outer),
            Forward::Gue => header(self.outer) + 8,
        };
        MTU - outer - header(self.family) - 8 - 64
    }

    /// A datagram arrives at the right backend with the right source, and so does an answer.
    fn exchange(
        &self,
        topology: &Topology,
        client: &UdpSocket,
        applications: &[UdpSocket],
        at: usize,
        expected: &[u8],
    ) -> Result<()> {
        let Datagram { index, from, bytes } = receive(applications)?;
        ensure!(index == at, "it came to backend {}", index + 1);
        ensure!(bytes == expected, "it came as {}", hex::encode(&bytes));
        match self.forward {
            Forward::Nat => {
                let network = if topology.plan.layout == Layout::TwoInterfaces {
                    Network::Back
                } else {
                    Network::Front
                };
                ensure!(
                    from.ip() == network.address(self.family, 1) && NAT_PORTS.contains(&from.port()),
                    "from {from}"
                );
            }
            _ => ensure!(from == client.local_addr()?, "from {from}"),
        }
        let answer: Vec<u8> = expected.iter().rev().copied().collect();
        applications[index].send_to(&answer, from)?;
        let answered = receive(slice::from_ref(client)).context("no answer")?;
        // The client's socket accepts datagrams from the service's address only.
        ensure!(answered.bytes == answer, "the answer came as {}", hex::encode(&answered.bytes));
        Ok(())
    }
}

/// All these tests depend on this: receivers verify UDP checksums.
#[test]
fn wrong_checksums_are_not_delivered() -> Result<()> {
    let topology = Topology::new(&new_name()?, 1)?;
    for family in Family::BOTH {
        let to = SocketAddr::new(topology.plan.backend(family, 1), PORT);
        let backend = topology.backend_socket(0, to)?;
        let from = SocketAddr::new(Network::Front.address(family, 2), 9999);
        let raw = topology.client.enter(|| {
            let domain = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
            socket(domain, SockType::Raw, SockFlag::empty(), Some(SockProtocol::Udp))
        })??;
        let raw = UdpSocket::from(raw);
        for (wrong, data) in [(1, b"wrong"), (0, b"right")] {
            let mut datagram =
                [&from.port().to_be_bytes()[..], &to.port().to_be_bytes(), &[0, 13, 0, 0], data].concat();
            let checksum = checksum(from.ip(), to.ip(), &datagram) ^ wrong;
            datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
            raw.send_to(&datagram, SocketAddr::new(to.ip(), 0))?;
        }
        let arrived = receive(slice::from_ref(&backend))?;
        ensure!(arrived.bytes == b"right", "{family:?}: {:?} from {}", arrived.bytes, arrived.from);
    }
    Ok(())
}

/// The UDP checksum (RFC 768, RFC 8200 §8.1) of a datagram whose own field is zero.
fn checksum(from: IpAddr, to: IpAddr, datagram: &[u8]) -> u16 {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let pseudo = [&octets(from)[..], &octets(to), &[0, 17], &(datagram.len() as u16).to_be_bytes()].concat();
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
    };
    let sum = words(&pseudo) + words(datagram);
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
