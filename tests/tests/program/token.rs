//! Steps 2 to 6: invalid tokens.

use anyhow::Result;
use lb_common::{
    control::SECOND_NS,
    keyslot::{KeyId, STATE_OFF},
    reason::Reason,
    service::{ACCEPT_PROOF, BIND_REQUIRED, Service},
    token::{
        Claims, Header,
        header::{FLAG_BIND_ADDR, FLAG_BIND_PORT, FLAG_BIND_V6, LEN, MAGIC},
        mint::{Grant, Prefix},
    },
};
use lb_tests::model::{
    case::{Case, both, check_all},
    fixture::{self, Fixture, Key, NOW, SERVICE_ID},
    packet::{Family, Packet},
    program::Program,
};
use tollgate::datapath::DatapathError;

use crate::matrix::{Subject, case_groups};

case_groups! {
    form: "Token format" => form_cases();
    keys: "Token key" => both(|_| key_cases());
    time: "Token time" => both(|_| time_cases());
    tags: "Token tags and binding" => tag_cases();
}

/// All 128 bits of the full tag are compared. The fast tag is recomputed for each, because it covers the full tag.
#[test]
fn every_bit_of_the_full_tag() -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        let cases: Vec<Case> = (0..128)
            .map(|bit| {
                let packet = Packet::with_token(&with_wrong_full_tag(&fixture::key(), bit));
                refused(&format!("bit {bit} of the full tag"), &packet, Reason::BadFullTag).over(family)
            })
            .collect();
        check_all(&mut program, &cases)?;
    }
    anyhow::ensure!(program.hmacs()? == 256 && program.remembered()? == 0);
    Ok(())
}

/// The life of a key in its slot, as the daemon writes it: on, off, and the next generation.
#[test]
fn a_slot_through_generations() -> Result<()> {
    let fixture = Fixture { keys: vec![], ..Fixture::default() };
    let key = fixture::key();
    let id = KeyId::new(key.id.slot(), key.id.generation() + 1).expect("in range");
    let next = Key::new([8; 32], id);
    let (of_key, of_next) = (Packet::default(), Packet::with_token(&next.bearer(&fixture::grant())));
    let refused = |packet, reason: Reason| Case::refused(reason.name(), fixture.clone(), packet, reason);
    let admitted = |packet| admitted("admitted", fixture.clone(), packet);

    let mut program = Program::load()?;
    refused(&of_key, Reason::UnknownKey).check(&mut program)?;
    program.datapath().key_slots.install(&key.slot(SERVICE_ID))?;
    admitted(&of_key).check(&mut program)?;
    let taken = program.datapath().key_slots.install(&next.slot(SERVICE_ID));
    anyhow::ensure!(matches!(taken, Err(DatapathError::SlotInUse { .. })), "{taken:?}");
    admitted(&of_key).check(&mut program)?;
    program.datapath().key_slots.stop(key.id.slot())?;
    refused(&of_key, Reason::InactiveKey).check(&mut program)?;
    program.datapath().key_slots.install(&next.slot(SERVICE_ID))?;
    refused(&of_key, Reason::UnknownKey).check(&mut program)?;
    admitted(&of_next).check(&mut program)
}

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    subjects().into_iter().flat_map(Subject::into_cases).collect()
}

fn form_cases() -> Vec<Case> {
    both(|_| [no_token(), bad_header(), policy()].concat())
}

fn tag_cases() -> Vec<Case> {
    [both(|_| [bad_fast_tag(), full_check()].concat()), both(bound)].concat()
}

fn refused(name: &str, packet: &Packet, reason: Reason) -> Case {
    Case::refused(name, Fixture::default(), packet, reason)
}

fn no_token() -> Vec<Case> {
    let short = fixture::token().to_bytes()[..LEN - 1].to_vec();
    let mut other_first_byte = Packet::default();
    other_first_byte.payload[0] = MAGIC ^ 1;
    let case = |name, packet: Packet| refused(name, &packet, Reason::NoToken);
    vec![
        case("an empty datagram", Packet::with_payload(vec![])),
        case("one byte", Packet::with_payload(vec![MAGIC])),
        case("a header less one byte", Packet::with_payload(short.clone())),
        case(
            "a header whose last byte is padding",
            Packet { padding: vec![0; 20], ..Packet::with_payload(short) },
        ),
        case("another first byte", other_first_byte),
        case("application data alone", Packet::with_payload(vec![0x7f; 1200])),
    ]
}

fn bad_header() -> Vec<Case> {
    // Bytes 0..4 of a header that is correct in everything else, including the tags.
    let first_bytes = |name: &str, bytes: [u8; 4]| {
        let header = fixture::key().resign(&fixture::token(), |claims| {
            claims[0] = claims[0] & !0xffff_ffff | u64::from(u32::from_le_bytes(bytes));
        });
        refused(name, &Packet::with_token(&header), Reason::BadHeader)
    };
    let v6 = FLAG_BIND_ADDR | FLAG_BIND_V6;
    vec![
        first_bytes("version 0", [MAGIC, 0x01, 0, 0]),
        first_bytes("version 2", [MAGIC, 0x21, 0, 0]),
        first_bytes("type 0", [MAGIC, 0x10, 0, 0]),
        first_bytes("type KNOCK", [MAGIC, 0x13, 0, 0]),
        first_bytes("type QUIC", [MAGIC, 0x14, 0, 0]),
        first_bytes("flag 0x08", [MAGIC, 0x11, 0x08, 0]),
        first_bytes("flag 0x80", [MAGIC, 0x11, 0x80 | FLAG_BIND_ADDR, 32]),
        first_bytes("bound to no bits", [MAGIC, 0x11, FLAG_BIND_ADDR, 0]),
        first_bytes("bound to 33 bits of IPv4", [MAGIC, 0x11, FLAG_BIND_ADDR, 33]),
        first_bytes("bound to 65 bits of IPv6", [MAGIC, 0x11, v6, 65]),
        first_bytes("bits without a binding", [MAGIC, 0x11, FLAG_BIND_PORT, 1]),
        first_bytes("IPv6 without a binding", [MAGIC, 0x11, FLAG_BIND_V6, 0]),
    ]
}

fn policy() -> Vec<Case> {
    let proof_header = || {
        let proof = fixture::grant().proof(fixture::key().id, &fixture::key().derived);
        Packet::with_token(&proof.header(1, 10_000, b""))
    };
    let proof_alone = Service { accept: ACCEPT_PROOF, ..fixture::service() };
    let bound = Service { bind: BIND_REQUIRED, ..fixture::service() };
    let to_a_port = Grant { bind_port: Some(fixture::CLIENT.port()), ..fixture::grant() };
    let case = |name, service, packet: &Packet| {
        Case::refused(name, Fixture::with_service(service), packet, Reason::Policy)
    };
    vec![
        case("a PROOF token where BEARER is accepted", fixture::service(), &proof_header()),
        case("a BEARER token where PROOF is accepted", proof_alone, &Packet::default()),
        case("an unbound token where a binding is required", bound, &Packet::default()),
        case(
            "a token bound to a port alone where a binding is required",
            bound,
            &Packet::with_token(&fixture::key().bearer(&to_a_port)),
        ),
    ]
}

fn key_cases() -> Vec<Case> {
    let now = Fixture::default().now_ns;
    let key = fixture::key();
    let held = key.held(SERVICE_ID);
    let next_generation = KeyId::new(key.id.slot(), key.id.generation() + 1).expect("in range");
    let other_slot = KeyId::new(key.id.slot() + 1, key.id.generation()).expect("in range");
    let id_zero = Key::new([7; 32], KeyId(0));
    let with = |name, held, reason| Case::refused(name, Fixture::with_key(held), &Packet::default(), reason);
    let changed = |change: fn(&mut lb_common::keyslot::KeySlot, u64)| {
        let mut changed = held.clone();
        change(&mut changed.slot, now);
        changed
    };
    vec![
        Case::refused(
            "no keys at all",
            Fixture { keys: vec![], ..Fixture::default() },
            &Packet::default(),
            Reason::UnknownKey,
        ),
        with(
            "the slot's next key",
            Key { id: next_generation, ..key.clone() }.held(SERVICE_ID),
            Reason::UnknownKey,
        ),
        with(
            "the key in another slot",
            Key { id: other_slot, ..key.clone() }.held(SERVICE_ID),
            Reason::UnknownKey,
        ),
        Case::refused(
            "key id 0, the id of an empty slot",
            Fixture { keys: vec![], ..Fixture::default() },
            &Packet::with_token(&id_zero.bearer(&fixture::grant())),
            Reason::UnknownKey,
        ),
        with("a key that is off", changed(|slot, _| slot.state = STATE_OFF), Reason::InactiveKey),
        with("a key in an unknown state", changed(|slot, _| slot.state = 2), Reason::InactiveKey),
        with("another service's key", changed(|slot, _| slot.service_id += 1), Reason::InactiveKey),
        with("a key before its time", changed(|slot, now| slot.not_before_ns = now + 1), Reason::InactiveKey),
        with(
            "a key at the end of its time",
            changed(|slot, now| slot.not_after_ns = now),
            Reason::InactiveKey,
        ),
        admitted(
            "a key in its first and last nanosecond",
            Fixture::with_key(changed(|slot, now| {
                slot.not_before_ns = now;
                slot.not_after_ns = now + 1;
            })),
            &Packet::default(),
        ),
    ]
}

fn time_cases() -> Vec<Case> {
    let token = fixture::grant();
    let second = |seconds: u32| u64::from(seconds) * SECOND_NS;
    let refused_at =
        |name, now_ns, reason| Case::refused(name, Fixture::at(now_ns), &Packet::default(), reason);
    let with_times = |issued_at, expires_at| {
        Packet::with_token(&fixture::key().bearer(&Grant { issued_at, expires_at, ..fixture::grant() }))
    };
    let revoked_before =
        |second| Fixture::with_service(Service { revoked_before: second, ..fixture::service() });
    let valid = Packet::default();
    vec![
        refused_at("issued 2 s and 1 ns from now", second(token.issued_at - 2) - 1, Reason::NotYetValid),
        admitted("issued 2 s from now", Fixture::at(second(token.issued_at - 2)), &valid),
        admitted("expired 1 ns less than 2 s ago", Fixture::at(second(token.expires_at + 2) - 1), &valid),
        refused_at("expired 2 s ago", second(token.expires_at + 2), Reason::Expired),
        refused_at("expired for years", u64::MAX / 2, Reason::Expired),
        refused_at("a clock that was never published", 0, Reason::NotYetValid),
        admitted("a life of max_ttl", Fixture::default(), &with_times(NOW, NOW + 3600)),
        refused("a life of a second more", &with_times(NOW, NOW + 3601), Reason::Lifetime),
        refused("the longest life", &with_times(0, u32::MAX), Reason::Lifetime),
        refused("ended before it began, within the skew", &with_times(NOW + 1, NOW), Reason::Lifetime),
        admitted("a life of no length", Fixture::default(), &with_times(NOW, NOW)),
        Case::refused(
            "issued a second before the revocation",
            revoked_before(token.issued_at + 1),
            &valid,
            Reason::Revoked,
        ),
        admitted("issued in the second of the revocation", revoked_before(token.issued_at), &valid),
    ]
}

fn bad_fast_tag() -> Vec<Case> {
    let of_other_key = Key::new([8; 32], fixture::key().id).bearer(&fixture::grant());
    let bad = |name, packet: &Packet| refused(name, packet, Reason::BadFastTag);
    let last_bit = |byte: usize| {
        let mut packet = Packet::default();
        packet.payload[byte] ^= 1;
        packet
    };
    vec![
        bad("signed with another key", &Packet::with_token(&of_other_key)),
        bad("a flipped bit in the nonce", &last_bit(23)),
        bad("a flipped bit in the sealed claims", &last_bit(39)),
        bad("a flipped bit in the fast tag", &last_bit(47)),
        bad("a flipped bit in the full tag", &last_bit(63)),
    ]
}

/// Tokens bound to their source: an IPv4 prefix, or the IPv6 prefix that is its twin.
fn bound(family: Family) -> Vec<Case> {
    let packet = |bind: Option<Prefix>, bind_port| {
        Packet::with_token(&fixture::key().bearer(&Grant { bind, bind_port, ..fixture::grant() }))
            .over(family)
    };
    let prefix = |address: &str, len| Prefix::new(address.parse().expect("an address"), len).ok();
    // The last `host` bits of the client's longest bound prefix are free.
    let network = |address: &str, host: u8| {
        let address = family.twin(address.parse().expect("an address"));
        Prefix::new(address, Prefix::longest(address) - host).ok()
    };
    let (half, other_half, others) = match family {
        Family::V4 => ("255.255.255.255", "1.2.3.4", ["c633:6417::", "8000::"]),
        Family::V6 => ("1::", "8000::", ["32.1.13.184", "1.2.3.4"]),
    };
    let longest = Prefix::longest(others[0].parse().expect("an address"));
    let port = Some(fixture::CLIENT.port());
    let bad = |name, packet: &Packet| refused(name, packet, Reason::BadFastTag);
    let good = |name, packet: &Packet| admitted(name, Fixture::default(), packet);
    vec![
        good("bound to the client", &packet(network("198.51.100.23", 0), None)),
        bad("bound to its neighbour", &packet(network("198.51.100.22", 0), None)),
        good("bound to the client's and its neighbour's prefix", &packet(network("198.51.100.22", 1), None)),
        good("bound to the client's half of the internet", &packet(prefix(half, 1), None)),
        bad("bound to the other half", &packet(prefix(other_half, 1), None)),
        good("bound to the client's port", &packet(None, port)),
        bad("bound to another port", &packet(None, Some(fixture::CLIENT.port() ^ 1))),
        bad("bound to the port with its bytes swapped", &packet(None, port.map(u16::swap_bytes))),
        good("bound to client and port", &packet(network("198.51.100.0", 8), port)),
        bad("bound to a network of the other family", &packet(prefix(others[0], longest), None)),
        bad("bound to a network of the other family, of one bit", &packet(prefix(others[1], 1), None)),
    ]
}

fn full_check() -> Vec<Case> {
    let key = fixture::key();
    let resigned = |damage: fn(&mut [u64; 5])| Packet::with_token(&key.resign(&fixture::token(), damage));
    let other = Claims { service_id: SERVICE_ID + 1, ..fixture::grant().claims };
    let other = key.bearer(&Grant { claims: other, ..fixture::grant() });
    vec![
        refused(
            "a full tag made with the fast key alone",
            &Packet::with_token(&with_wrong_full_tag(&key, 127)),
            Reason::BadFullTag,
        ),
        // The sealed claims are XORed with a keystream: flipping a bit there flips the same bit of the claims.
        refused("reserved claim byte set", &resigned(|claims| claims[3] ^= 1 << 40), Reason::BadHeader),
        refused("a token of another service", &Packet::with_token(&other), Reason::WrongService),
        admitted("another class", Fixture::default(), &resigned(|claims| claims[3] ^= 0xff << 32)),
    ]
}

/// A header whose fast tag is correct and whose full tag differs from the correct one in this bit.
fn with_wrong_full_tag(key: &Key, bit: usize) -> Header {
    let mut words = fixture::token().words();
    words[6 + bit / 64] ^= 1 << (bit % 64);
    words[5] = lb_common::token::tags::fast(
        key.derived.fast,
        &Header::from_verified(words),
        &lb_common::token::header::Binding::default(),
    );
    Header::from_verified(words)
}

/// A packet that is stripped and sent to the backend of the default session.
fn admitted(name: &str, fixture: Fixture, packet: &Packet) -> Case {
    let backend = fixture.picked(fixture::SESSION);
    Case::sent(name, fixture, packet, &packet.clone().stripped(), &backend, Reason::Forwarded)
}
