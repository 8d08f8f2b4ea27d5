//! The session that an ICMP error about a client belongs to, if several sessions use the client's address
//! (docs/adr/0010).

use anyhow::Result;
use lb_common::{
    reason::Reason,
    service::{FORWARD_L2, Service},
    session::Admission,
    token::mint::{Grant, Prefix},
};
use lb_tests::model::{
    case::{Case, check_all},
    fixture::{self, Fixture, SERVICE_INDEX},
    packet::{self, Family, Packet},
    program::Program,
};

use crate::{icmp, proof::TS};

/// Seconds of the kernel's clock by which a tick of a fixture is longer than the previous one. A session that
/// sends no datagram for one such step is quiet.
const TICK: u64 = 4;
/// After this many ticks, a session in use checks its flow.
const PERIOD: u64 = 16 / TICK;

/// The datagrams of a session with its own backend.
#[derive(Clone)]
struct Sender {
    family: Family,
    grant: Grant,
    proof: bool,
    seq: u32,
}

impl Sender {
    /// The sender of the session with this number, to the backend with this number.
    fn new(family: Family, number: u8, proof: bool) -> Self {
        let mut grant = fixture::grant_number(number.into());
        grant.claims.backend_id = number.into();
        Self { family, grant, proof, seq: 0 }
    }

    fn bound(mut self) -> Self {
        let client = self.family.twin_at(fixture::CLIENT).ip();
        self.grant.bind = Some(Prefix::new(client, Prefix::longest(client)).expect("in range"));
        self
    }

    /// The sender with another token of the same session, which goes to another backend.
    fn renewed(&self, backend_id: u16) -> Self {
        let mut renewed = self.clone();
        renewed.grant.nonce = *b"renewed!";
        renewed.grant.claims.backend_id = backend_id;
        renewed
    }

    fn backend(&self) -> u8 {
        self.grant.claims.backend_id as u8
    }

    /// A datagram from the client's address, at this tick.
    fn sends(&mut self, at: u64) -> Case {
        self.sends_from(at, Packet::default())
    }

    fn sends_from(&mut self, at: u64, like: Packet) -> Case {
        self.seq += 1;
        let packet = match self.proof {
            true => Packet::with_proof(&fixture::key().proof(&self.grant), self.seq, TS),
            false => Packet {
                payload: fixture::key().bearer(&self.grant).to_bytes().to_vec(),
                ..Packet::default()
            },
        };
        let packet = Packet { from: like.from, ..packet }.over(self.family);
        let fixture = fixture(self.family, at);
        let backend = fixture.backends[usize::from(self.backend()) - 1];
        Case::sent("a datagram", fixture, &packet, &packet, &backend, Reason::Forwarded)
    }

    /// An ICMP error about the client, which must reach the backend of this session.
    fn told(&self, at: u64, why: &str) -> Case {
        let fixture = fixture(self.family, at);
        let backend = fixture.backends[usize::from(self.backend()) - 1];
        let error = icmp::unreachable(self.family);
        Case::sent(why, fixture, &error, &error, &backend, Reason::IcmpError)
    }
}

fn fixture(family: Family, tick_ns: u64) -> Fixture {
    let service = Service { flags: 0, forward: FORWARD_L2, ..fixture::proving() };
    let backends = (1..=3).map(|id| fixture::backend_at(id, family)).collect();
    Fixture { tick_ns, backends, ..Fixture::with_service(service) }
}

/// Runs a sequence of cases with each family, and with each type of token for the client and for the stranger.
fn with_all(story: impl Fn(Sender, Sender) -> Vec<Case>) -> Result<()> {
    let mut program = Program::load()?;
    for family in Family::BOTH {
        for (client, stranger) in [(false, false), (true, false), (false, true), (true, true)] {
            program.renew()?;
            let cases = story(Sender::new(family, 1, client), Sender::new(family, 2, stranger));
            check_all(&mut program, &cases)?;
        }
    }
    Ok(())
}

#[test]
fn a_session_in_use_keeps_its_flow() -> Result<()> {
    with_all(|mut client, mut stranger| {
        vec![
            client.sends(1),
            client.told(1, "an error about the client"),
            stranger.sends(1),
            client.told(1, "after a datagram of a stranger"),
            stranger.sends(1),
            stranger.sends(1),
            client.told(1, "after some more"),
            client.sends(1),
            client.told(1, "after one of the client"),
        ]
    })
}

#[test]
fn a_stolen_flow_comes_back() -> Result<()> {
    // The client was quiet when the stranger sent its first datagram.
    with_all(|mut client, mut stranger| {
        vec![
            client.sends(1),
            stranger.sends(2),
            stranger.told(2, "the stranger has taken the flow of a quiet session"),
            client.sends(2),
            client.sends(3),
            client.told(3, "the stranger was quiet, and the client was not"),
            stranger.sends(3),
            client.told(3, "the stranger comes again"),
        ]
    })?;
    // The stranger sent its first datagram before the client.
    with_all(|mut client, mut stranger| {
        vec![
            stranger.sends(1),
            client.sends(1),
            stranger.told(1, "the stranger was first"),
            client.sends(2),
            client.told(2, "the stranger was quiet, and the client was not"),
        ]
    })?;
    // The stranger moves to another address: the client gets its flow back with its next datagram.
    with_all(|mut client, mut stranger| {
        let elsewhere = Packet { from: packet::client(9), ..Packet::default() };
        vec![
            client.sends(1),
            stranger.sends(2),
            stranger.sends_from(2, elsewhere),
            client.sends(2),
            client.told(2, "the stranger is elsewhere"),
        ]
    })
}

#[test]
fn a_bound_token_comes_before_an_unbound_one() -> Result<()> {
    with_all(|client, mut stranger| {
        let mut client = client.bound();
        vec![
            stranger.sends(1),
            stranger.told(1, "the stranger was first"),
            client.sends(1),
            client.told(1, "the client's token is bound to its address"),
            stranger.sends(1),
            client.told(1, "the stranger comes again"),
        ]
    })
}

#[test]
fn a_renewed_token_takes_its_sessions_flow() -> Result<()> {
    with_all(|mut client, _| {
        let mut renewed = client.renewed(3);
        vec![
            client.sends(1),
            client.told(1, "the first token"),
            renewed.sends(1),
            renewed.told(1, "the second, which names another backend"),
            renewed.sends(1),
        ]
    })
}

#[test]
fn a_flow_that_was_pushed_out_comes_back() -> Result<()> {
    with_all(|mut client, _| {
        let pushed_out = |mut case: Case| {
            // Writing one flow removes all others.
            case.fixture.flows = vec![(packet::client(200), SERVICE_INDEX, Admission::default())];
            case
        };
        let error = icmp::unreachable(client.family);
        let untied = Case::not_ours("no flow", fixture(client.family, 1), &error);
        vec![
            client.sends(1),
            client.told(1, "before"),
            pushed_out(untied),
            pushed_out(client.sends(1 + PERIOD)),
            pushed_out(client.told(1 + PERIOD, "a while later")),
        ]
    })
}
