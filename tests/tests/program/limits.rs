//! Step 9: packets per session by class, and source addresses per token. Only packets that pass all earlier steps
//! count.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use lb_common::{
    reason::Reason,
    service::{FLAG_RATED, Service},
    token::{Claims, mint::Grant},
};
use lb_tests::model::{
    case::{Case, both, check_all},
    fixture::{self, CLIENT, ClassRate, Fixture, SESSION},
    oracle::Model,
    packet::{Family, Packet},
    program::{Program, Verdict},
};

use crate::{
    matrix::case_groups,
    observe::observed,
    proof::{TS, forged, forwarded, refused},
};

case_groups! {
    rates: "Packet rate of a session" => both(|_| rate_cases());
    sources: "Source addresses of a token" => source_cases();
}

/// While the kernel's clock advances, a session may send a burst and then packets at its rate.
#[test]
fn a_burst_and_so_many_a_second() -> Result<()> {
    let mut program = Program::load()?;
    for (family, first_tick) in Family::BOTH.into_iter().zip([1, 6]) {
        program.forget()?;
        let mut model = Model::at(program.jiffies()?);
        let rate = ClassRate { class: 1, per_second: 2, burst: 13 };
        let packet = Packet::default().over(family);
        let mut passed = Vec::new();
        // Each step advances the clock by about 4.3 s.
        for tick_ns in first_tick..first_tick + 5 {
            let fixture = Fixture { tick_ns, ..rated(vec![rate]) };
            let cases: Vec<Case> = (0..20)
                .map(|number| {
                    judged(&mut model, &format!("packet {number} of step {tick_ns}"), &fixture, &packet)
                })
                .collect();
            passed.push(cases.iter().filter(|case| case.expected.reason == Reason::Forwarded).count());
            check_all(&mut program, &cases)?;
        }
        assert_eq!(passed[0], 13, "a burst");
        assert!(passed[1..].iter().all(|passed| (8..=9).contains(passed)), "{passed:?}");
    }
    Ok(())
}

/// Thousands of wrong proofs, replays and packets from too many sources use no part of the limits of the session that
/// they name, whether they are dropped or, in observe mode, delivered.
#[test]
fn junk_takes_nothing() -> Result<()> {
    let fixture = Fixture {
        services: limited(FLAG_RATED, 1),
        ..rated(vec![ClassRate { class: 1, per_second: 1, burst: 3 }])
    };
    let token = fixture::proof_number(SESSION);
    let packet = |seq| Packet::with_proof(&token, seq, TS);
    let mut elsewhere = packet(1000);
    elsewhere.from.set_ip(Ipv4Addr::new(192, 0, 2, 9).into());
    let case = |case: Case| case.with_fixture(fixture.clone());
    let mut program = Program::load()?;
    for family in Family::BOTH {
        program.forget()?;
        let mut cases = vec![case(forwarded("the first", SESSION, &packet(0)))];
        for number in 0..1000 {
            let wrong = forged(&Packet::with_proof(&token, number, TS));
            cases.push(case(refused("a wrong proof", &wrong, Reason::BadProof)));
            cases.push(case(refused("a replay", &packet(0), Reason::Replay)));
            let early = Packet::with_proof(&token, number, TS + 6000);
            cases.push(case(refused("a proof of another time", &early, Reason::StaleProof)));
        }
        cases.push(case(refused("from elsewhere", &elsewhere, Reason::TooManySources)));
        cases.push(case(forwarded("the second", SESSION, &packet(1001))));
        cases.push(case(forwarded("the third", SESSION, &packet(1002))));
        cases.push(case(refused("the fourth", &packet(1003), Reason::RateLimited)));
        let cases: Vec<Case> = cases.into_iter().map(|case| case.over(family)).collect();
        check_all(&mut program, &cases)?;
        program.forget()?;
        check_all(&mut program, &cases.into_iter().map(observed).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// A new table does not reset the state of a session: with two tables that differ in the burst, a session gets at most
/// the larger burst.
#[test]
fn rates_that_change() -> Result<()> {
    let mut program = Program::load()?;
    let with_burst = |burst| rated(vec![ClassRate { class: 1, per_second: 1, burst }]);
    let steps =
        [(with_burst(3), 3), (with_burst(5), 2), (with_burst(3), 0), (with_burst(4), 0), (with_burst(9), 4)];
    for family in Family::BOTH {
        program.forget()?;
        let packet = Packet::default();
        let mut cases = Vec::new();
        for (fixture, more) in &steps {
            let mut case = |case: Case| cases.push(case.with_fixture(fixture.clone()).over(family));
            (0..*more).for_each(|_| case(forwarded("within what this burst is larger by", SESSION, &packet)));
            (0..3).for_each(|_| case(refused("beyond", &packet, Reason::RateLimited)));
        }
        check_all(&mut program, &cases)?;
    }
    Ok(())
}

/// The default services with limits.
fn limited(flags: u8, max_sources: u8) -> Vec<(std::net::SocketAddr, Service)> {
    let service = fixture::proving();
    fixture::at_both(Service { flags: service.flags | flags, max_sources, ..service })
}

fn rated(rates: Vec<ClassRate>) -> Fixture {
    Fixture { services: limited(FLAG_RATED, 0), rates, ..Fixture::default() }
}

fn judged(model: &mut Model, name: &str, fixture: &Fixture, packet: &Packet) -> Case {
    let frame = packet.bytes();
    let expected = model.judge(fixture, &frame);
    Case::of_frame(name, fixture.clone(), frame, expected)
}

fn rate_cases() -> Vec<Case> {
    let two = ClassRate { class: 1, per_second: 1, burst: 2 };
    let fixture = rated(vec![two]);
    let good = |session, packet: &Packet| forwarded("before", session, packet).with_fixture(fixture.clone());
    let limited =
        |name, packet: &Packet| refused(name, packet, Reason::RateLimited).with_fixture(fixture.clone());
    let packet = Packet::default();
    let of_class = |class| {
        let claims = Claims { class, ..fixture::grant().claims };
        Packet::with_token(&fixture::key().bearer(&Grant { claims, ..fixture::grant() }))
    };
    let twice = |packet: &Packet| vec![good(SESSION, packet), good(SESSION, packet)];
    let in_fixture = |name, fixture: Fixture, before: Vec<Case>, case: Case| {
        let before = before.into_iter().map(|case| case.with_fixture(fixture.clone())).collect();
        case.named(name).with_fixture(fixture.clone()).after(before)
    };
    let highest = rated(vec![ClassRate { class: 255, ..two }]);
    let unrated = Fixture { services: fixture::at_both(fixture::proving()), ..fixture.clone() };
    let other = Packet::with_token(&fixture::token_number(5));
    let proof = |seq| Packet::with_proof(&fixture::key().proof(&fixture::grant()), seq, TS);
    vec![
        good(SESSION, &packet).named("the second of a burst of two").after(vec![good(SESSION, &packet)]),
        limited("the third of a burst of two", &packet).after(twice(&packet)),
        limited("the third proof of a burst of two", &proof(3))
            .after(vec![good(SESSION, &proof(1)), good(SESSION, &proof(2))]),
        limited("a proof that was refused comes again: its number is used", &proof(4)).after(
            [vec![good(SESSION, &proof(1)), good(SESSION, &proof(2))], vec![limited("before", &proof(3))]]
                .concat(),
        ),
        good(5, &other).named("another session's first").after(twice(&packet)),
        in_fixture(
            "a class without a rate",
            fixture.clone(),
            [twice(&of_class(0)), twice(&of_class(0))].concat(),
            good(SESSION, &of_class(0)),
        ),
        in_fixture(
            "the third of a burst of two, of the last class there is",
            highest,
            twice(&of_class(255)),
            limited("", &of_class(255)),
        ),
        in_fixture("a service without rates", unrated, twice(&packet), good(SESSION, &packet)),
    ]
}

fn source_cases() -> Vec<Case> {
    let from = |packet: Packet, address: IpAddr| {
        let family = Family::of(address);
        let mut packet = packet.over(family);
        packet.from.set_ip(address);
        packet
    };
    let case = |max_sources, case: Case| {
        let fixture = Fixture { services: limited(0, max_sources), ..Fixture::default() };
        let before = case.before.iter().map(|case| case.clone().with_fixture(fixture.clone())).collect();
        case.with_fixture(fixture.clone()).after(before)
    };
    let good = |name, packet: &Packet| forwarded(name, SESSION, packet);
    let many = |name, packet: &Packet| refused(name, packet, Reason::TooManySources);
    let proof = |seq| Packet::with_proof(&fixture::key().proof(&fixture::grant()), seq, TS);
    let mut cases = Vec::new();
    for family in Family::BOTH {
        let address = |last: u8| match family {
            Family::V4 => IpAddr::from(Ipv4Addr::new(192, 0, 2, last)),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(last), 0, 0, 0, 1).into(),
        };
        let at = |last| from(Packet::default(), address(last));
        let first = |count: u8| (0..count).map(|last| good("before", &at(last))).collect::<Vec<_>>();
        let mut other_port = at(0);
        other_port.from.set_port(CLIENT.port() ^ 1);
        cases.extend([
            case(1, good("the first source", &at(0))),
            case(1, good("the only source again, from another port", &other_port).after(first(1))),
            case(1, many("a second source of one", &at(1)).after(first(1))),
            case(2, good("a second source of two", &at(1)).after(first(1))),
            case(2, many("a third source of two", &at(2)).after(first(2))),
            case(
                2,
                good("the first of two again, after a third was refused", &at(0))
                    .after([first(2), vec![many("before", &at(2))]].concat()),
            ),
            case(8, good("an eighth source of eight", &at(7)).after(first(7))),
            case(8, many("a ninth source of eight", &at(8)).after(first(8))),
            case(0, good("a ninth source of any number", &at(8)).after(first(8))),
            case(
                1,
                many("a proof from a second source of one", &from(proof(2), address(1)))
                    .after(vec![good("before", &from(proof(1), address(0)))]),
            ),
        ]);
    }
    let in_network = |last: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 7, 0, 0, 0, last));
    let at = |last| from(Packet::default(), in_network(last));
    cases.push(case(
        1,
        good("another address of the only source's network", &at(2)).after(vec![good("before", &at(1))]),
    ));
    let of_other_family = from(Packet::default(), CLIENT.ip());
    cases.push(case(
        1,
        many("a second source of one, of the other family", &of_other_family)
            .after(vec![good("before", &at(1))]),
    ));
    cases
}

/// The two limits are checked together: a packet that one of them refuses uses no part of the other.
#[test]
fn one_refusal_takes_nothing_from_the_other() -> Result<()> {
    let rate = ClassRate { class: 1, per_second: 1, burst: 2 };
    let fixture = Fixture { services: limited(FLAG_RATED, 2), ..rated(vec![rate]) };
    let from = |last| {
        let mut packet = Packet::default();
        packet.from.set_ip(Ipv4Addr::new(192, 0, 2, last).into());
        packet
    };
    let mut program = Program::load()?;
    for (family, tick_ns) in Family::BOTH.into_iter().zip([1, 3]) {
        program.forget()?;
        let cases = [
            forwarded("the first source", SESSION, &from(1)),
            forwarded("the second source, and the end of the burst", SESSION, &from(2)),
            refused("a third source beyond the burst", &from(3), Reason::RateLimited),
            refused("a known source beyond the burst", &from(1), Reason::RateLimited),
        ];
        let fixture = Fixture { tick_ns, ..fixture.clone() };
        let in_fixture = |case: &Case| case.clone().with_fixture(fixture.clone()).over(family);
        check_all(&mut program, &cases.iter().map(in_fixture).collect::<Vec<_>>())?;
        // Four seconds later, the third source is still refused, and uses none of the other sources' packets.
        let later = Fixture { tick_ns: tick_ns + 1, ..fixture.clone() };
        let frames = [3, 3, 3, 1, 2].map(|last| from(last).over(family).bytes());
        program.enter(&later)?;
        let verdicts: Vec<Verdict> =
            frames.iter().map(|frame| Ok(program.run(frame)?.verdict)).collect::<Result<_>>()?;
        assert_eq!(
            verdicts,
            [Verdict::Drop, Verdict::Drop, Verdict::Drop, Verdict::Transmit, Verdict::Transmit]
        );
    }
    Ok(())
}
