//! Frames in several buffers, of which the program sees the first.

use anyhow::{Result, ensure};
use lb_common::{
    backend::Backend,
    reason::Reason,
    service::{FLAG_STRIP, FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_LOCAL},
};
use lb_tests::{
    case::{Case, both},
    packet::{Family, Packet},
    program::{FIRST_BUFFER_MAX, Outcome, Program, Verdict},
    way,
    world::{self, SESSION, World},
};

use crate::matrix::Subject;

#[test]
fn whole() -> Result<()> {
    crate::check_each(&cases())
}

/// Of what is for no service, only the first buffer is counted: asking for all would cost every frame a call.
#[test]
fn not_ours() -> Result<()> {
    let program = Program::load()?;
    for family in Family::BOTH {
        let frame = Packet { protocol: Some(6), ..jumbo(&[]) }.over(family).bytes();
        ensure!(program.run(&frame)? == Outcome { verdict: Verdict::Pass, frame });
    }
    let counted = program.counts()?.reasons[&(0, Reason::NotOurs)];
    ensure!(counted.packets == 2 && counted.bytes == 2 * FIRST_BUFFER_MAX as u64, "{counted:?}");
    Ok(())
}

/// What this module's cases are about.
pub fn subjects() -> Vec<Subject> {
    vec![Subject::new("Frames in several buffers", "jumbo::whole", cases())]
}

fn jumbo(token: &[u8]) -> Packet {
    let data = std::iter::repeat(0..=250_u8).flatten().take(8001);
    Packet::with_payload(token.iter().copied().chain(data).collect())
}

fn cases() -> Vec<Case> {
    let packet = jumbo(&world::token().to_bytes());
    assert!(packet.bytes().len() > FIRST_BUFFER_MAX);
    let mut cases = Vec::new();
    for (forward, mode) in [(FORWARD_L2, "l2"), (FORWARD_IPIP, "ipip"), (FORWARD_GUE, "gue")] {
        for (flags, strip) in [(FLAG_STRIP, "stripped"), (0, "unstripped")] {
            for family in Family::BOTH {
                let packet = packet.clone().over(family);
                let backend = Backend { mtu: 9000, ..world::backend_at(1, family) };
                let world = world::sending(forward, flags, backend);
                let inner = if flags == 0 { packet.clone() } else { packet.clone().stripped() };
                let sent = way::leaving(&inner, &world.services[0].1, &backend, SESSION, None);
                let name = format!("a valid token, {strip}: {mode}");
                cases.push(Case::sent(name, world, &packet, &sent, &backend, Reason::Forwarded));
            }
        }
    }
    let local = world::sending(FORWARD_LOCAL, FLAG_STRIP, world::backend(1));
    let delivered = packet.clone().stripped();
    cases.extend(both(&[
        Case::local("a valid token, stripped: local", local, &packet, &delivered, Reason::Forwarded),
        Case::refused("no token", World::default(), &jumbo(&[]), Reason::NoToken),
        Case::refused(
            "a length that is one more than the frame's",
            World::default(),
            &one_more(packet),
            Reason::Malformed,
        ),
    ]));
    cases
}

/// Both lengths are one more.
fn one_more(packet: Packet) -> Packet {
    let len = packet.payload.len() + lb_tests::packet::UDP_LEN + 1;
    let ip_len = i32::try_from(len).ok();
    Packet { ip_len, udp_len: u16::try_from(len).ok(), ..packet }
}
