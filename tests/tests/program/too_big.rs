//! What does not fit the way to a backend is dropped.

use anyhow::Result;
use lb_common::{backend::Backend, reason::Reason, service::FORWARD_L2};
use lb_tests::{
    case::Case,
    packet::{Family, Packet, UDP_LEN},
    way,
    world::{self, OTHER_INTERFACE, World},
};

use crate::{
    matrix::Subject,
    ways::{FLAGS, WAYS},
};

/// The longest packet that the way takes.
const MTU: usize = 1300;

#[test]
fn clients_that_cannot_react() -> Result<()> {
    crate::check_each(&silent_cases())
}

/// What this module's cases are about.
pub fn subjects() -> Vec<Subject> {
    vec![Subject::new("What is too big for a way", "too_big::clients_that_cannot_react", silent_cases())]
}

fn world(forward: u8, flags: u8, backend: Family) -> World {
    let ifindex = if forward == FORWARD_L2 { OTHER_INTERFACE } else { world::LOOPBACK };
    let backend = Backend { ifindex, mtu: MTU as u16, ..world::backend_at(1, backend) };
    world::sending(forward, flags, backend)
}

/// A packet with so many bytes more than the way takes.
fn packet(world: &World, family: Family, more: usize) -> Packet {
    let (service, backend) = (world.services[0].1, world.backends[0]);
    let token = world::token().to_bytes();
    let stripped = if service.strips() { token.len() } else { 0 };
    let room = MTU + stripped - way::outer_len(&service, &backend);
    let data = room + more - family.header_len() - UDP_LEN - token.len();
    let packet = Packet::with_payload([&token[..], &vec![0xd7; data]].concat()).over(family);
    assert_eq!(packet.ip_packet().len(), room + more);
    packet
}

/// IPv4 packets that may be fragmented.
fn silent_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (forward, mode, _, backend) in WAYS.into_iter().filter(|(_, _, family, _)| *family == Family::V4) {
        for (flags, strip) in FLAGS {
            let world = world(forward, flags, backend);
            for more in [1, 100] {
                let packet = Packet { fragment: 0, ..packet(&world, Family::V4, more) };
                let name = format!("{more} bytes too many, {strip}, may be fragmented: {mode}");
                cases.push(Case::refused(name, world.clone(), &packet, Reason::TooBig));
            }
        }
    }
    cases
}
