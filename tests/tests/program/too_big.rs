//! A packet that exceeds the MTU is dropped, and a client that can react is notified by ICMP.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use etherparse::SlicedPacket;
use lb_common::{
    backend::Backend,
    reason::Reason,
    service::{FORWARD_IPIP, FORWARD_L2, FORWARD_NAT},
};
use lb_tests::model::{
    case::Case,
    fixture::{self, Fixture, OTHER_INTERFACE},
    forwarding,
    packet::{Family, Icmp, Packet, Transport, UDP_LEN},
    program::{Program, Verdict, pin_to_cpu},
};

use crate::{
    forwarding::{FLAGS, MODES},
    matrix::case_groups,
};

/// The MTU.
const MTU: usize = 1300;

case_groups! {
    /// One byte more than the MTU: the client gets an ICMP message.
    one_byte_more: "Packets that exceed the MTU" => answered_cases();
    clients_that_cannot_react: "Packets that exceed the MTU, from a client that cannot react" => silent_cases();
    senders_that_are_not_one_host: "Packets that exceed the MTU, from an address of no single host" => sender_cases();
}

fn fixture(forward: u8, flags: u8, backend: Family) -> Fixture {
    let ifindex = if forward == FORWARD_L2 { OTHER_INTERFACE } else { fixture::LOOPBACK };
    let backend = Backend { ifindex, mtu: MTU as u16, ..fixture::backend_at(1, backend) };
    fixture::sending(forward, flags, backend)
}

/// The maximum length of a packet, and a packet that is this many bytes longer.
fn packet(fixture: &Fixture, family: Family, more: usize) -> (usize, Packet) {
    let (service, backend) = (fixture.services[0].1, fixture.backends[0]);
    let token = fixture::token().to_bytes();
    let stripped = if service.strips() { token.len() } else { 0 };
    let room = MTU + stripped - forwarding::outer_len(&service, &backend);
    let data = room + more - family.header_len() - UDP_LEN - token.len();
    let packet = Packet::with_payload([&token[..], &vec![0xd7; data]].concat()).over(family);
    assert_eq!(packet.ip_packet().len(), room + more);
    (room, packet)
}

/// IPv4 packets that may be fragmented.
fn silent_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (forward, mode, _, backend) in MODES.into_iter().filter(|(_, _, family, _)| *family == Family::V4) {
        for (flags, strip) in FLAGS {
            let fixture = fixture(forward, flags, backend);
            for more in [1, 100] {
                let (_, packet) = packet(&fixture, Family::V4, more);
                let packet = Packet { fragment: 0, ..packet };
                let name = format!("{more} bytes too many, {strip}, may be fragmented: {mode}");
                cases.push(Case::refused(name, fixture.clone(), &packet, Reason::TooBig));
            }
        }
    }
    cases
}

/// An answer to any of the first addresses would go to many hosts or to none (RFC 1122 §3.2.2, RFC 4443 §2.4 (e.6));
/// the others are adjacent addresses.
fn sender_cases() -> Vec<Case> {
    let silent = [
        "0.0.0.0",
        "0.255.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff00::",
        "ff02::1",
        "ff0e::1:2",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    let answered = [
        "1.0.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "223.255.255.255",
        "::2",
        "::1:0:0:1",
        "0:0:1::1",
        "1::",
        "fe80::1",
        "feff::1",
        "2001:db8::1",
    ];
    let mut cases = Vec::new();
    for (addresses, is_answered) in [(&silent[..], false), (&answered[..], true)] {
        for address in addresses {
            let address: IpAddr = address.parse().expect("an address");
            let family = Family::of(address);
            for forward in [FORWARD_IPIP, FORWARD_L2] {
                let fixture = fixture(forward, 0, family);
                let (room, mut packet) = packet(&fixture, family, 1);
                packet.from.set_ip(address);
                let name = format!("one byte more than fits, from {address}");
                cases.push(if is_answered {
                    let quoted = if family == Family::V4 { 544 } else { 1184 };
                    let told = message(&packet, room, quoted);
                    Case::answered(name, fixture, &packet, &told, Reason::TooBig)
                } else {
                    Case::refused(name, fixture, &packet, Reason::TooBig)
                });
            }
        }
    }
    cases
}

/// The message to a packet's sender: fragmentation needed (RFC 1191) or packet too big (RFC 4443), from the service.
fn message(packet: &Packet, room: usize, quoted: usize) -> Packet {
    let (kind, code, least) = match packet.family() {
        Family::V4 => (3, 4, 0),
        // The minimum MTU of an IPv6 link (RFC 8200 §5).
        Family::V6 => (2, 0, 1280),
    };
    let [high, low] = u16::try_from(room.max(least)).expect("a test's MTU").to_be_bytes();
    Packet {
        destination_mac: packet.source_mac,
        source_mac: packet.destination_mac,
        tags: packet.tags.clone(),
        // Network control (RFC 1812 §4.3.2.5).
        traffic_class: 0xc0,
        flow_label: 0,
        id: 0,
        ttl: 64,
        from: SocketAddr::new(packet.to.ip(), 0),
        to: SocketAddr::new(packet.from.ip(), 0),
        transport: Transport::Icmp(Icmp { kind, code, rest: [0, 0, high, low] }),
        ..Packet::with_payload(packet.ip_packet()[..quoted].to_vec())
    }
}

fn answered_cases() -> Vec<Case> {
    let nat = Family::BOTH.map(|family| (FORWARD_NAT, "nat", family, family));
    let mut cases = Vec::new();
    for (forward, mode, family, backend) in MODES.into_iter().chain(nat) {
        for (flags, strip) in FLAGS {
            let fixture = fixture(forward, flags, backend);
            let (room, packet) = packet(&fixture, family, 1);
            let quoted = match family {
                Family::V4 => 544,
                Family::V6 => 1184,
            };
            let told = message(&packet, room, quoted);
            let name = format!("one byte more than fits, {strip}: {mode}");
            cases.push(Case::answered(name, fixture, &packet, &told, Reason::TooBig));
        }
    }
    cases
}

/// A packet of exactly the MTU passes. One byte more causes a message that names the longest packet that would have
/// passed, quotes no more than the IP version allows, and is no longer than the packet.
#[test]
fn clients_that_can_react() -> Result<()> {
    pin_to_cpu(0)?;
    let nat = Family::BOTH.map(|family| (FORWARD_NAT, "nat", family, family));
    for (forward, mode, family, backend) in MODES.into_iter().chain(nat) {
        for (flags, strip) in FLAGS {
            let mut program = Program::load()?;
            let fixture = fixture(forward, flags, backend);
            program.enter(&fixture)?;
            let fits = packet(&fixture, family, 0).1;
            program.run(&fits.bytes())?;
            // By its counter: the verdict of a message to the client may be the same.
            let counts = program.counts()?.reasons;
            ensure!(
                counts.keys().map(|(_, reason)| *reason).eq([Reason::Forwarded]),
                "{mode}, {strip}: what fits is not forwarded: {counts:?}"
            );
            for tags in 0..=2 {
                let name = format!("{mode}, {strip}, {tags} tags");
                let (room, packet) = packet(&fixture, family, 1);
                let packet = packet.tagged(tags);
                let outcome = program.run(&packet.bytes())?;
                ensure!(outcome.verdict == Verdict::Transmit, "{name}: {:?}", outcome.verdict);
                let quoted = quoted(&outcome.frame).with_context(|| name.clone())?;
                let case = Case::answered(
                    &name,
                    fixture.clone(),
                    &packet,
                    &message(&packet, room, quoted),
                    Reason::TooBig,
                );
                case.check(&mut program)?;
                let longest = match family {
                    Family::V4 => 576,
                    Family::V6 => 1280,
                };
                let sent = outcome.frame.len() - packet.ip_offset();
                ensure!(
                    sent <= longest && outcome.frame.len() <= packet.bytes().len(),
                    "{name}: {sent} bytes"
                );
                ensure!(quoted >= family.header_len() + UDP_LEN, "{name}: only {quoted} bytes are quoted");
            }
        }
    }
    Ok(())
}

/// How many bytes an ICMP message quotes.
fn quoted(frame: &[u8]) -> Result<usize> {
    let sliced = SlicedPacket::from_ethernet(frame)?;
    match sliced.transport {
        Some(etherparse::TransportSlice::Icmpv4(icmp)) => Ok(icmp.payload().len()),
        Some(etherparse::TransportSlice::Icmpv6(icmp)) => Ok(icmp.payload().len()),
        other => anyhow::bail!("no ICMP message: {other:?}"),
    }
}

/// A CPU without a message budget drops packets without a message. The burst is a hundred, because the clock does not
/// advance.
#[test]
fn messages_are_rationed() -> Result<()> {
    pin_to_cpu(0)?;
    for family in Family::BOTH {
        let mut program = Program::load()?;
        let fixture = fixture(FORWARD_IPIP, 0, family);
        program.enter(&fixture)?;
        let (_, packet) = packet(&fixture, family, 1);
        let mut told = 0;
        for _ in 0..300 {
            told += u32::from(program.run(&packet.bytes())?.verdict == Verdict::Transmit);
        }
        ensure!(told == 100, "{told} messages at once");
        Case::refused("no message left", fixture, &packet, Reason::TooBig).check(&mut program)?;
    }
    Ok(())
}
