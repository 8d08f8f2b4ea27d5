//! `tollgate decap`: the outer headers that it removes, and the packets that it leaves unchanged.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::decap::Outcome;
use lb_tests::model::{
    packet::MORE_FRAGMENTS,
    program::{Verdict, run_once},
    tunnel::{BACKEND_MAC, Kind, Tunnel, datagram},
};
use tollgate::datapath::decap::{Decap, embedded_object};

const IPIP: Kind = Kind::Ipip;
const GUE: Kind = Kind::Gue { summed: true };
const GUE_UNSUMMED: Kind = Kind::Gue { summed: false };

/// Outer IP version, encapsulation, inner IP version.
const TUNNELS: [(u8, Kind, u8); 11] = [
    (4, IPIP, 4),
    (6, IPIP, 4),
    (6, IPIP, 6),
    (4, GUE, 4),
    (4, GUE, 6),
    (6, GUE, 4),
    (6, GUE, 6),
    (4, GUE_UNSUMMED, 4),
    (4, GUE_UNSUMMED, 6),
    (6, GUE_UNSUMMED, 4),
    (6, GUE_UNSUMMED, 6),
];

#[test]
fn outer_headers_come_off() -> Result<()> {
    let decap = load()?;
    for (outer, kind, inner) in TUNNELS {
        for tags in 0..=2 {
            for padding in [vec![], vec![0xee; 9]] {
                let tunnel = Tunnel { tags, padding, ..Tunnel::new(outer, kind, packet(inner, 0xb8)) };
                let name =
                    format!("v{inner} in v{outer} {kind:?}, {tags} tags, {} after", tunnel.padding.len());
                check(&decap, &name, &tunnel.bytes(), taken_off(kind), Some(&tunnel.opened(&tunnel.inner)))?;
            }
        }
    }
    Ok(())
}

/// RFC 6040, figure 4, compared in every bit of the inner header and its checksum.
#[test]
fn congestion_is_told_on() -> Result<()> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    let table = [
        (NOT_ECT, [(NOT_ECT, Some(NOT_ECT)), (ECT_0, Some(NOT_ECT)), (ECT_1, Some(NOT_ECT)), (CE, None)]),
        (ECT_0, [(NOT_ECT, Some(ECT_0)), (ECT_0, Some(ECT_0)), (ECT_1, Some(ECT_1)), (CE, Some(CE))]),
        (ECT_1, [(NOT_ECT, Some(ECT_1)), (ECT_0, Some(ECT_1)), (ECT_1, Some(ECT_1)), (CE, Some(CE))]),
        (CE, [(NOT_ECT, Some(CE)), (ECT_0, Some(CE)), (ECT_1, Some(CE)), (CE, Some(CE))]),
    ];
    // The outer DSCP is not copied to the inner packet.
    const OUTER_DSCP: u8 = 0x28;
    const INNER_DSCP: u8 = 0xb8;
    let decap = load()?;
    for (outer, kind, inner) in TUNNELS {
        for (of_inner, row) in table {
            for (of_outer, expected) in row {
                let class = OUTER_DSCP | of_outer;
                let tunnel =
                    Tunnel { class, ..Tunnel::new(outer, kind, packet(inner, INNER_DSCP | of_inner)) };
                let name = format!("v{inner} in v{outer} {kind:?}, {of_inner:02b} in {of_outer:02b}");
                let left = expected.map(|ecn| tunnel.opened(&packet(inner, INNER_DSCP | ecn)));
                let outcome = if left.is_some() { taken_off(kind) } else { Outcome::Ecn };
                check(&decap, &name, &tunnel.bytes(), outcome, left.as_deref())?;
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_nobody_elses_passes_untouched() -> Result<()> {
    let decap = load()?;
    for (name, tunnel, outcome) in untouched() {
        let frame = tunnel.bytes();
        check(&decap, name, &frame, outcome, Some(&frame))?;
    }
    Ok(())
}

/// A frame that is truncated at any length passes unchanged.
#[test]
fn what_is_cut_short_passes_untouched() -> Result<()> {
    let decap = load()?;
    for (outer, kind, inner) in TUNNELS {
        let frame = Tunnel { tags: 2, ..Tunnel::new(outer, kind, packet(inner, 0)) }.bytes();
        for len in 14..frame.len() {
            let out = run_once(decap.program()?, &frame[..len])?;
            ensure!(
                out.verdict == Verdict::Pass,
                "v{inner} in v{outer} {kind:?} cut to {len}: {:?}",
                out.verdict
            );
            ensure!(out.frame == frame[..len], "v{inner} in v{outer} {kind:?} cut to {len} was changed");
        }
    }
    let counts = decap.counts()?;
    let opened = |outcome| counts.iter().any(|(of, counter)| *of == outcome && counter.packets > 0);
    ensure!(!opened(Outcome::Ipip) && !opened(Outcome::Gue), "{counts:?}");
    Ok(())
}

/// Bytes beyond the first buffer count as length; the program does not need to read them.
#[test]
fn several_buffers_are_one_frame() -> Result<()> {
    let decap = load()?;
    for (outer, kind, inner) in TUNNELS {
        let from_to = ends(inner);
        let tunnel = Tunnel::new(outer, kind, datagram(from_to.0, from_to.1, 0, &[7; 7000]));
        let name = format!("v{inner} in v{outer} {kind:?}, long");
        check(&decap, &name, &tunnel.bytes(), taken_off(kind), Some(&tunnel.opened(&tunnel.inner)))?;
    }
    Ok(())
}

#[test]
fn every_outcome_has_a_case() {
    let mut covered: Vec<_> = untouched().into_iter().map(|(_, _, outcome)| outcome).collect();
    // These outcomes have their own tests; the last one would need a helper that fails.
    covered.extend([Outcome::Ipip, Outcome::Gue, Outcome::Ecn, Outcome::Internal]);
    let missing: Vec<_> = Outcome::ALL.iter().filter(|outcome| !covered.contains(outcome)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

fn untouched() -> Vec<(&'static str, Tunnel, Outcome)> {
    let ipip = || Tunnel::new(4, IPIP, packet(4, 0));
    let ipip_6 = || Tunnel::new(6, IPIP, packet(6, 0));
    let gue = || Tunnel::new(4, GUE, packet(4, 0));
    let gue_6 = || Tunnel::new(6, GUE, packet(6, 0));
    let from = |source: &str, tunnel| Tunnel { source: source.parse().expect("an address"), ..tunnel };
    let with_inner = |change: fn(&mut Vec<u8>), mut tunnel: Tunnel| {
        change(&mut tunnel.inner);
        tunnel
    };
    let own_len = |tunnel: &Tunnel| u16::try_from(tunnel.inner.len()).expect("a test frame");
    let whole = own_len(&ipip());
    let whole_6 = own_len(&ipip_6());
    vec![
        ("no tunnel", Tunnel { protocol: Some(6), ..ipip() }, Outcome::Passed),
        ("no tunnel, IPv6", Tunnel { protocol: Some(58), ..ipip_6() }, Outcome::Passed),
        ("IPv6 in IPv4", Tunnel::new(4, IPIP, packet(6, 0)), Outcome::Passed),
        ("another UDP port", Tunnel { port: 6081, ..gue() }, Outcome::Passed),
        ("another UDP port, IPv6", Tunnel { port: 6081, ..gue_6() }, Outcome::Passed),
        ("under three tags", Tunnel { tags: 3, ..ipip() }, Outcome::Passed),
        ("for another host", Tunnel { destination_mac: [2, 0, 0, 0, 0xb, 2], ..ipip() }, Outcome::Passed),
        ("for all hosts", Tunnel { destination_mac: [0xff; 6], ..gue() }, Outcome::Passed),
        ("a later fragment of GUE", Tunnel { fragment: 5, ..gue() }, Outcome::Passed),
        ("ipip of somebody", from("10.9.1.0", ipip()), Outcome::Foreign),
        ("gue of somebody", from("10.8.255.255", gue()), Outcome::Foreign),
        ("IPv6 ipip of somebody", from("fd00:9:0:1::7", ipip_6()), Outcome::Foreign),
        ("IPv6 gue of somebody", from("fd00:8::7", gue_6()), Outcome::Foreign),
        ("a v4-mapped balancer", from("::ffff:10.9.0.7", ipip_6()), Outcome::Foreign),
        ("a balancer's bits under IPv6", from("::10.9.0.7", ipip_6()), Outcome::Foreign),
        ("IPv4 options", Tunnel { options: vec![1; 4], ..ipip() }, Outcome::Unsupported),
        ("IPv4 options before GUE", Tunnel { options: vec![1; 4], ..gue() }, Outcome::Unsupported),
        ("a first fragment", Tunnel { fragment: MORE_FRAGMENTS, ..ipip() }, Outcome::Unsupported),
        ("a first fragment of GUE", Tunnel { fragment: MORE_FRAGMENTS, ..gue() }, Outcome::Unsupported),
        ("a later fragment", Tunnel { fragment: 5, ..ipip() }, Outcome::Unsupported),
        ("an IPv6 fragment", extended(44, [41, 0, 0, 1, 0, 0, 0, 9], ipip_6()), Outcome::Unsupported),
        ("an atomic fragment", extended(44, [17, 0, 0, 0, 0, 0, 0, 9], gue_6()), Outcome::Unsupported),
        ("a tunnel's limit", extended(60, [41, 0, 4, 1, 4, 1, 0, 0], ipip_6()), Outcome::Unsupported),
        ("hop-by-hop options", extended(0, [17, 0, 1, 4, 0, 0, 0, 0], gue_6()), Outcome::Unsupported),
        ("a routing header", extended(43, [41, 0, 0, 0, 0, 0, 0, 0], ipip_6()), Outcome::Unsupported),
        ("IP version 5 outside", Tunnel { version: Some(5), ..ipip() }, Outcome::Unsupported),
        ("IP version 4 outside IPv6", Tunnel { version: Some(4), ..ipip_6() }, Outcome::Malformed),
        ("a wrong outer checksum", Tunnel { ip_checksum_wrong: true, ..ipip() }, Outcome::Malformed),
        ("outer length beyond the frame", Tunnel { ip_len: Some(whole + 21), ..ipip() }, Outcome::Malformed),
        ("outer length too short", Tunnel { ip_len: Some(whole + 19), ..ipip() }, Outcome::Malformed),
        ("outer length of the header", Tunnel { ip_len: Some(20), ..ipip() }, Outcome::Malformed),
        ("outer length 0", Tunnel { ip_len: Some(0), ..ipip() }, Outcome::Malformed),
        ("IPv6 outer length beyond", Tunnel { ip_len: Some(whole_6 + 1), ..ipip_6() }, Outcome::Malformed),
        ("IPv6 outer length 0", Tunnel { ip_len: Some(0), ..ipip_6() }, Outcome::Malformed),
        (
            "outer length into padding",
            Tunnel { ip_len: Some(whole + 19), padding: vec![0; 8], ..ipip() },
            Outcome::Malformed,
        ),
        ("UDP length too long", Tunnel { udp_len: Some(whole + 9), ..gue() }, Outcome::Malformed),
        ("UDP length too short", Tunnel { udp_len: Some(whole + 7), ..gue_6() }, Outcome::Malformed),
        ("UDP length 0", Tunnel { udp_len: Some(0), ..gue() }, Outcome::Malformed),
        ("nothing inside", Tunnel { protocol: Some(4), inner: vec![], ..ipip() }, Outcome::Malformed),
        ("nothing inside GUE", Tunnel { inner: vec![], ..gue() }, Outcome::Malformed),
        ("GUE variant 0", with_inner(|inner| inner[0] = 0x00, gue()), Outcome::Malformed),
        ("GUE control", with_inner(|inner| inner[0] = 0x20, gue()), Outcome::Malformed),
        ("GUE variant 1, IP version 5", with_inner(|inner| inner[0] = 0x55, gue()), Outcome::Malformed),
        ("GUE variant 2", with_inner(|inner| inner[0] = 0x85, gue()), Outcome::Malformed),
        ("IPv6 where IPv4 is said", Tunnel { protocol: Some(4), ..ipip_6() }, Outcome::Malformed),
        (
            "IPv4 where IPv6 is said",
            Tunnel { protocol: Some(41), ..Tunnel::new(6, IPIP, packet(4, 0)) },
            Outcome::Malformed,
        ),
        ("inner header too short", with_inner(|inner| inner[0] = 0x44, ipip()), Outcome::Malformed),
        ("inner header beyond its packet", with_inner(|inner| inner[0] = 0x4f, ipip()), Outcome::Malformed),
        (
            "inner length of less than a header",
            with_inner(|inner| inner[2..4].fill(0), ipip()),
            Outcome::Malformed,
        ),
        ("inner length beyond the outer one", with_inner(|inner| inner[3] += 1, gue()), Outcome::Malformed),
        ("IPv6 inner length beyond", with_inner(|inner| inner[5] += 1, gue_6()), Outcome::Malformed),
        ("half an inner IPv6 header", with_inner(|inner| inner.truncate(39), ipip_6()), Outcome::Malformed),
    ]
}

/// Adds an extension header.
fn extended(kind: u8, header: [u8; 8], tunnel: Tunnel) -> Tunnel {
    Tunnel { protocol: Some(kind), options: header.to_vec(), ..tunnel }
}

const fn taken_off(kind: Kind) -> Outcome {
    match kind {
        Kind::Ipip => Outcome::Ipip,
        Kind::Gue { .. } => Outcome::Gue,
    }
}

fn packet(version: u8, class: u8) -> Vec<u8> {
    let (client, service) = ends(version);
    datagram(client, service, class, b"Hello, backend!")
}

fn ends(version: u8) -> (SocketAddr, SocketAddr) {
    let address = |text: &str| text.parse().expect("an address");
    match version {
        4 => (address("198.51.100.9:40000"), address("203.0.113.10:7777")),
        _ => (address("[2001:db8:9::9]:40000"), address("[2001:db8::10]:7777")),
    }
}

/// Loads the program with a prefix of each family, and with single addresses.
fn load() -> Result<Decap> {
    let balancers = ["192.0.2.1", "10.9.0.0/24", "fd00:9::/64"].map(|text| text.parse().expect("a prefix"));
    Ok(Decap::load(embedded_object()?, BACKEND_MAC, &balancers)?)
}

/// Runs the program on a frame. `left` is the resulting frame, or `None` if it is dropped. One counter increases by
/// one.
fn check(decap: &Decap, name: &str, frame: &[u8], outcome: Outcome, left: Option<&[u8]>) -> Result<()> {
    let before = decap.counts()?;
    let out = run_once(decap.program()?, frame)?;
    let after = decap.counts()?;
    let moved: Vec<_> = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before != after)
        .map(|((outcome, before), (_, after))| {
            (*outcome, after.packets - before.packets, after.bytes - before.bytes)
        })
        .collect();
    ensure!(moved == [(outcome, 1, frame.len() as u64)], "{name}: {moved:?} moved, not {outcome:?}");
    match left {
        None => ensure!(out.verdict == Verdict::Drop, "{name}: {:?}", out.verdict),
        Some(left) => {
            ensure!(out.verdict == Verdict::Pass, "{name}: {:?}", out.verdict);
            ensure!(out.frame == left, "{name}: left {}\nnot {}", hex::encode(&out.frame), hex::encode(left));
        }
    }
    Ok(())
}
