//! `mode = "observe"`: a packet that enforce mode would drop is counted under the same reason and delivered
//! unchanged.

use anyhow::Result;
use lb_common::{
    backend::Backend,
    reason::Reason,
    service::{FLAG_OBSERVE, FLAG_STRIP, FORWARD_GUE, FORWARD_L2, FORWARD_LOCAL, Service},
    token::Source,
};
use lb_tests::model::{
    case::{Case, Expected, both, check_all},
    fixture::{self, Fixture, SERVICE_INDEX, SESSION},
    forwarding,
    packet::{self, Family, MORE_FRAGMENTS, Packet, UdpChecksum},
    program::{Outcome, Program, Verdict},
};

use crate::matrix::{Subject, case_groups};

/// Dropped in observe mode too: packets that cannot be parsed or delivered.
const DROPPED: [Reason; 2] = [Reason::Malformed, Reason::NoBackend];

case_groups! {
    /// Every refused case of the other modules, in observe mode: the reason stays, and the packet goes to the backend
    /// of the client's address.
    what_enforce_drops_is_delivered_unstripped: "Refused packets in `mode = \"observe\"`" => observed_cases();
}

fn observed_cases() -> Vec<Case> {
    let cases: Vec<_> = refused().into_iter().map(observed).collect();
    assert!(cases.len() > 200, "only {} cases", cases.len());
    cases
}

#[test]
fn locally_too() -> Result<()> {
    let local = |service: &mut Service| service.forward = FORWARD_LOCAL;
    let no_backend = |case: &Case| case.expected.reason == Reason::NoBackend;
    let cases: Vec<_> = refused()
        .into_iter()
        .filter(|case| !no_backend(case))
        .map(|case| observed_with(case, &local))
        .collect();
    crate::check_each(&cases)
}

/// Refused cases, and cases that pass because an earlier refused packet used up no limit.
fn refused() -> Vec<Case> {
    let of_sessions = [crate::revocation::subjects(), crate::proof::subjects(), crate::limits::subjects()];
    let of_sessions = of_sessions.into_iter().flatten().flat_map(Subject::into_cases).collect();
    let all = [crate::parse::cases(), crate::token::cases(), crate::delivery::cases(), of_sessions].concat();
    // A packet of no service has no mode.
    let is_refused =
        |case: &Case| case.expected.outcome.verdict == Verdict::Drop && case.expected.service != 0;
    all.into_iter().filter(|case| case.in_order().any(is_refused)).collect()
}

/// The same packets under the same service in observe mode.
pub fn observed(case: Case) -> Case {
    observed_with(case, &|_| {})
}

fn observed_with(case: Case, change: &impl Fn(&mut Service)) -> Case {
    let client = case.sender().unwrap_or(fixture::CLIENT.ip());
    let before = case.before.into_iter().map(|case| observed_with(case, change)).collect();
    let mut fixture = case.fixture;
    for (_, service) in &mut fixture.services {
        service.flags |= FLAG_OBSERVE;
        change(service);
    }
    let mut expected = case.expected;
    let verdict = expected.outcome.verdict;
    if verdict == Verdict::Drop && !DROPPED.contains(&expected.reason) {
        expected = delivered(&fixture, &case.frame, client, expected.reason);
    } else if verdict == Verdict::Transmit && fixture.services[0].1.forward == FORWARD_LOCAL {
        expected.outcome.verdict = Verdict::Pass;
        expected.outcome.frame[..12].copy_from_slice(&case.frame[..12]);
        expected.backend = None;
    }
    Case::of_frame(format!("observed: {}", case.name), fixture, case.frame, expected).after(before)
}

fn delivered(fixture: &Fixture, frame: &[u8], client: std::net::IpAddr, reason: Reason) -> Expected {
    let mut frame = frame.to_vec();
    if fixture.services[0].1.forward == FORWARD_LOCAL {
        let outcome = Outcome { verdict: Verdict::Pass, frame };
        return Expected { outcome, service: SERVICE_INDEX, reason, backend: None };
    }
    let Backend { destination_mac, source_mac, counter, .. } = fixture.picked(Source::new(client, 0).address);
    frame[..12].copy_from_slice(&[destination_mac, source_mac].concat());
    let outcome = Outcome { verdict: Verdict::Transmit, frame };
    Expected { outcome, service: SERVICE_INDEX, reason, backend: Some(counter) }
}

fn observing() -> Fixture {
    let flags = fixture::service().flags | FLAG_OBSERVE;
    Fixture::with_service(Service { flags, ..fixture::service() })
}

/// Clients without tokens spread over the backends. All packets of a client go to one backend, including fragments.
#[test]
fn by_the_clients_address() -> Result<()> {
    let fixture = observing();
    let mut cases = Vec::new();
    for (family, number) in
        Family::BOTH.into_iter().flat_map(|family| (0..200).map(move |number| (family, number)))
    {
        let from = packet::client(number);
        let whole = Packet { from, ..Packet::with_payload(vec![1; 30]) };
        let other_port = Packet { from: std::net::SocketAddr::new(from.ip(), 9), ..whole.clone() };
        let fragment = Packet { fragment: 99, ..whole.clone() };
        for (packet, reason) in
            [(whole, Reason::NoToken), (other_port, Reason::NoToken), (fragment, Reason::Fragment)]
        {
            let frame = packet.over(family).bytes();
            let expected = delivered(&fixture, &frame, family.twin(from.ip()), reason);
            let name = format!("client {number} over {family}, {}", reason.name());
            cases.push(Case::of_frame(name, fixture.clone(), frame, expected));
        }
    }
    for id in 1..=3 {
        let counter = Some(fixture::backend(id).counter);
        let hits = cases.iter().filter(|case| case.expected.backend == counter).count();
        assert!(hits > 180, "backend {id} gets {hits} of 1200 packets");
    }
    check_all(&mut Program::load()?, &cases)
}

/// A refused packet is forwarded unchanged in every mode. Its transport header is not read, so an outer UDP header has
/// no checksum.
#[test]
fn in_every_mode() -> Result<()> {
    let mut cases = Vec::new();
    for (forward, mode, family, backend) in crate::forwarding::MODES {
        let refused = [
            (Packet::with_payload(vec![1; 30]), Reason::NoToken),
            (Packet { fragment: MORE_FRAGMENTS, ..Packet::default() }, Reason::Fragment),
            (Packet { fragment: 99, padding: vec![0; 5], ..Packet::default() }, Reason::Fragment),
            (Packet::with_payload(vec![1; 64]).tagged(2), Reason::NoToken),
            (
                Packet { udp_checksum: UdpChecksum::Partial, ..Packet::with_payload(vec![1; 33]) },
                Reason::NoToken,
            ),
        ];
        let only_here = match family {
            Family::V4 => Packet { options: vec![1; 8], ..Packet::default() },
            Family::V6 => {
                let extensions = vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])];
                Packet { extensions, ..Packet::default() }
            }
        };
        for (packet, reason) in refused.into_iter().chain([(only_here, Reason::Unsupported)]) {
            let packet = packet.over(family);
            let fixture =
                fixture::sending(forward, FLAG_OBSERVE | FLAG_STRIP, fixture::backend_at(1, backend));
            let (service, backend) = (fixture.services[0].1, fixture.backends[0]);
            let client = Source::new(packet.from.ip(), 0).address;
            let mut sent = forwarding::leaving(&packet, &service, &backend, client, None);
            if forward == FORWARD_GUE {
                sent.udp_checksum = UdpChecksum::None;
            }
            cases.push(Case::sent(format!("observed by {mode}"), fixture, &packet, &sent, &backend, reason));
        }
        if forward != FORWARD_L2 {
            let packet = Packet { ttl: 1, ..Packet::with_payload(vec![1; 30]).over(family) };
            let fixture =
                fixture::sending(forward, FLAG_OBSERVE | FLAG_STRIP, fixture::backend_at(1, backend));
            cases.push(Case::refused(format!("hop limit 1 by {mode}"), fixture, &packet, Reason::HopLimit));
        }
    }
    crate::check_each(&cases)
}

#[test]
fn valid_tokens_as_in_enforce() -> Result<()> {
    let backend = observing().picked(SESSION);
    let packet = Packet::default();
    let stripped = packet.clone().stripped();
    let case =
        Case::sent("observed: a valid token", observing(), &packet, &stripped, &backend, Reason::Forwarded);
    crate::check_each(&both(|_| vec![case.clone()]))
}

/// Without a backend, a refused packet is dropped, and counted under `no_backend`.
#[test]
fn without_a_backend() -> Result<()> {
    let fixture = Fixture { backends: vec![], ..observing() };
    let packet = Packet::with_payload(vec![1; 30]);
    Case::refused("observed: no token, no backend", fixture, &packet, Reason::NoBackend)
        .check(&mut Program::load()?)
}
