//! Valid packets truncated to every possible length.

use anyhow::Result;
use lb_common::{reason::Reason, token::header};
use lb_tests::model::{
    case::{Case, Expected, both, check_all},
    fixture::{Fixture, SERVICE_INDEX, SESSION},
    packet::{ETHERNET_LEN, Family, Packet, UDP_LEN},
    program::{Outcome, Program, Verdict},
};

/// Number of bytes of a UDP header that identify the service.
const PORTS_LEN: usize = 4;

fn dropped(name: String, frame: Vec<u8>, reason: Reason) -> Case {
    let outcome = Outcome { verdict: Verdict::Drop, frame: frame.clone() };
    let expected = Expected { outcome, service: SERVICE_INDEX, reason, backend: None };
    Case::of_frame(name, Fixture::default(), frame, expected)
}

fn passed(name: String, frame: Vec<u8>) -> Case {
    let outcome = Outcome { verdict: Verdict::Pass, frame: frame.clone() };
    let expected = Expected { outcome, service: 0, reason: Reason::NotOurs, backend: None };
    Case::of_frame(name, Fixture::default(), frame, expected)
}

/// Truncated, with unchanged length fields: passed until the address can be read, dropped from there on.
#[test]
fn cut_with_its_lengths_kept() -> Result<()> {
    let mut cases = Vec::new();
    for (family, tags) in Family::BOTH.into_iter().flat_map(|family| (0..=4).map(move |tags| (family, tags)))
    {
        let packet = Packet::default().tagged(tags).over(family);
        let frame = packet.bytes();
        let ports = packet.ip_offset() + family.header_len();
        for len in ETHERNET_LEN..frame.len() {
            let cut = frame[..len].to_vec();
            let name = format!("{family}, {tags} tags, cut to {len} of {} bytes", frame.len());
            cases.push(match len {
                _ if len < ports => passed(name, cut),
                _ if len < ports + PORTS_LEN || tags <= 2 => dropped(name, cut, Reason::Malformed),
                _ => dropped(name, cut, Reason::Unsupported),
            });
        }
    }
    check_all(&mut Program::load()?, &cases)
}

/// Truncated, with consistent length fields: the outcome is `no_token` until the token is complete.
#[test]
fn cut_with_its_lengths_adapted() -> Result<()> {
    let mut cases = Vec::new();
    for tags in 0..=2 {
        let whole = Packet::default().tagged(tags);
        for len in 0..whole.payload.len() {
            let packet = Packet { payload: whole.payload[..len].to_vec(), ..whole.clone() };
            let name = format!("{tags} tags, payload cut to {len} bytes");
            cases.push(if len < header::LEN {
                Case::refused(name, Fixture::default(), &packet, Reason::NoToken)
            } else {
                let backend = Fixture::default().picked(SESSION);
                let sent = packet.clone().stripped();
                Case::sent(name, Fixture::default(), &packet, &sent, &backend, Reason::Forwarded)
            });
        }
    }
    cases = both(|_| cases.clone());
    for (family, tags) in Family::BOTH.into_iter().flat_map(|family| (0..=2).map(move |tags| (family, tags)))
    {
        let whole = Packet::default().tagged(tags).over(family);
        for len in 0..UDP_LEN {
            let (ip_len, udp_len) = (Some(i32::try_from(len)?), Some(u16::try_from(len)?));
            let frame = Packet { ip_len, udp_len, ..whole.clone() }.bytes();
            let name = format!("{family}, {tags} tags, datagram cut to {len} bytes");
            cases.push(dropped(name, frame[..whole.transport_offset() + len].to_vec(), Reason::Malformed));
        }
    }
    check_all(&mut Program::load()?, &cases)
}

/// Truncated, then padded to the minimum Ethernet length: padding is not part of a packet.
#[test]
fn cut_and_padded() -> Result<()> {
    let whole = Packet::default();
    let cases: Vec<_> = (0..whole.payload.len())
        .filter(|len| *len < header::LEN)
        .map(|len| {
            let (payload, padding) = whole.payload.split_at(len);
            let packet = Packet { padding: padding.to_vec(), ..Packet::with_payload(payload.to_vec()) };
            let name = format!("payload cut to {len} bytes, the rest as padding");
            Case::refused(name, Fixture::default(), &packet, Reason::NoToken)
        })
        .collect();
    check_all(&mut Program::load()?, &both(|_| cases.clone()))
}

/// The kernel runs no program on less than an Ethernet header, and `run_once` reports that.
#[test]
fn shorter_than_ethernet() -> Result<()> {
    let error = Program::load()?.run(&[0; 13]).err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("13 bytes")));
    Ok(())
}
