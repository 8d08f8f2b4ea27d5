//! The rows: their packets, the outcome of each packet, and the measured cost.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, ensure};
use aya::{TestRun as _, TestRunOptions, programs::Xdp};
use lb_common::{
    maps::{PROGRAM, PROGRAM_PASS},
    reason::Reason,
    service::Service,
    token::{
        Header,
        header::{self, Binding},
        mint::Grant,
        tags,
    },
};
use lb_tests::{
    model::{
        fixture::{self, Fixture, SERVICE_INDEX},
        packet::Packet,
        program::{Counts, Program},
    },
    tools::replay::{Mode, Replay, Window},
};

use crate::{
    Effort, Programs, forwarding,
    proofs::{self, Proofs},
};

/// Number of tokens in the large cache.
const LIVE: u32 = 1_000_000;
/// Number of tokens in the default cache.
const LIVE_USUAL: u32 = 100_000;
/// How many of these tokens the rows use.
const WINDOWS: [(&str, u32); 4] =
    [("live_1", 1), ("live_1000", 1000), ("live_100000", LIVE_USUAL), ("live_1000000", LIVE)];

/// One row of the table.
pub struct Row {
    /// Name, as in the documentation.
    pub name: &'static str,
    /// The goal, nanoseconds without the empty program.
    pub goal: Option<u64>,
    /// The mean of each sample, nanoseconds, including the time of the empty program.
    pub samples: Vec<u64>,
    /// The means of the empty program, sampled alternately.
    pub empty: Vec<u64>,
}

/// A row to be measured.
struct Plan {
    name: &'static str,
    goal: Option<u64>,
    frame: Vec<u8>,
    service: u32,
    reason: Reason,
    repeat: u32,
    hmacs: bool,
    large_cache: bool,
    replayed: Option<Replayed>,
    /// The session whose packets fill the window, with new packets for each run.
    proofs: Option<Proofs>,
}

/// The tokens for the frames of a row.
struct Replayed {
    mode: Mode,
    empty_mode: Mode,
    window: Window,
    empty_window: Window,
}

/// Capacity of the table of tokens.
pub const fn tokens_len(effort: &Effort) -> u32 {
    proofs_at(effort) + PROOFS
}

/// Packets of a session in a sample: each is new only once.
const PROOFS: u32 = 20_000;

const fn proofs_at(effort: &Effort) -> u32 {
    LIVE + new_tokens(effort) + forwarding::COUNT
}

const fn new_tokens(effort: &Effort) -> u32 {
    effort.first_packets * effort.samples as u32
}

/// Measures all rows, alternating between them after each sample.
///
/// # Errors
/// If a packet had another outcome than the row names.
pub fn measure(programs: &mut Programs, replay: &mut Replay, effort: &Effort) -> Result<Vec<Row>> {
    fill(programs, replay, effort)?;
    let mut plans = plans(programs, effort)?;
    let mut rows: Vec<Row> = plans
        .iter()
        .map(|Plan { name, goal, .. }| Row { name, goal: *goal, samples: vec![], empty: vec![] })
        .collect();
    for sample in 0..effort.samples {
        if std::io::stderr().is_terminal() {
            eprint!("\rbench: sample {} of {} ", sample + 1, effort.samples);
        }
        for (plan, row) in plans.iter_mut().zip(&mut rows) {
            let program = if plan.large_cache { &mut programs.large } else { &mut programs.usual };
            row.empty.push(plan.empty(program, replay)?);
            row.samples.push(plan.sample(program, replay).with_context(|| plan.name)?);
        }
    }
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    Ok(rows)
}

/// The default service keeps tokens and forwards by l2; each of the other rows has its own service.
fn fixture() -> Fixture {
    let plain = Service { flags: 0, ..fixture::service() };
    let mut fixture = Fixture::with_service(plain);
    for row in forwarding::all() {
        fixture.services.push((row.at(), row.service()));
        fixture.keys.push(row.key().held(row.service().id));
        fixture.backends.push(row.backend());
    }
    fixture.services.push((proofs::at(), proofs::service()));
    fixture.keys.push(proofs::key().held(proofs::service().id));
    fixture.backends.push(proofs::backend());
    fixture.repeated()
}

/// Fills the token caches in one order, and the table in another order.
fn fill(programs: &mut Programs, replay: &mut Replay, effort: &Effort) -> Result<()> {
    eprintln!("bench: signing {} tokens", LIVE + new_tokens(effort));
    let mut tokens: Vec<Header> =
        (0..u64::from(LIVE + new_tokens(effort))).map(fixture::token_number).collect();
    replay.write(0, &tokens)?;
    let mode_tokens: Vec<_> = forwarding::all().iter().map(forwarding::Row::token).collect();
    replay.write(LIVE + new_tokens(effort), &mode_tokens)?;

    let frame = frame(&Packet::default());
    for (program, len) in [(&mut programs.usual, LIVE_USUAL), (&mut programs.large, LIVE)] {
        program.enter(&fixture())?;
        replay.run(Mode::Keeping, tested(program)?, &mut Window::new(0..len), &frame, len)?;
        ensure!(program.hmacs()? == u64::from(len), "not every token came into the cache");
    }

    let mut random = fastrand::Rng::with_seed(7);
    let mut from = 0;
    for (_, len) in WINDOWS {
        random.shuffle(&mut tokens[from..len as usize]);
        from = len as usize;
    }
    replay.write(0, &tokens[..LIVE as usize])
}

fn plans(programs: &mut Programs, effort: &Effort) -> Result<Vec<Plan>> {
    let one = |name, goal, packet: &Packet, reason| Plan {
        name,
        goal,
        frame: frame(packet),
        service: if reason == Reason::NotOurs { 0 } else { SERVICE_INDEX },
        reason,
        repeat: effort.repeat,
        hmacs: false,
        large_cache: false,
        replayed: None,
        proofs: None,
    };
    let replayed = |range: std::ops::Range<u32>| Replayed {
        mode: Mode::Keeping,
        empty_mode: Mode::Keeping,
        window: Window::new(range),
        empty_window: Window::new(0..LIVE),
    };
    let elsewhere = Packet { to: packet_elsewhere(), ..Packet::default() };
    let mut no_token = Packet::default();
    no_token.payload[0] ^= 1;
    let expired = fixture::key().bearer(&Grant { issued_at: 1, expires_at: 2, ..fixture::grant() });
    let changed = |byte: usize| {
        let mut packet = Packet::default();
        packet.payload[byte] ^= 1;
        packet
    };

    let mut plans = vec![
        one("not_ours", None, &elsewhere, Reason::NotOurs),
        one("no_token", Some(15), &no_token, Reason::NoToken),
        one("bad_header", None, &changed(2), Reason::BadHeader),
        one("unknown_key", None, &changed(4), Reason::UnknownKey),
        one("expired", None, &Packet::with_token(&expired), Reason::Expired),
        one("bad_fast_tag", Some(60), &changed(40), Reason::BadFastTag),
        // An HMAC verification without the following steps: the HMAC's part of a first packet.
        Plan {
            hmacs: true,
            ..one("bad_full_tag", None, &Packet::with_token(&with_wrong_full_tag()), Reason::BadFullTag)
        },
        one("cached_l2", None, &Packet::with_token(&fixture::token_number(0)), Reason::Forwarded),
        Plan {
            repeat: effort.first_packets,
            hmacs: true,
            replayed: Some(replayed(LIVE..LIVE + new_tokens(effort))),
            ..one("first_packet", Some(1000), &Packet::default(), Reason::Forwarded)
        },
    ];
    plans.extend(WINDOWS.map(|(name, len)| Plan {
        large_cache: len > LIVE_USUAL,
        replayed: Some(Replayed { empty_window: Window::new(0..len), ..replayed(0..len) }),
        ..one(name, (len == 1000).then_some(120), &Packet::default(), Reason::Forwarded)
    }));
    plans.extend(proof_plans(effort, one));
    for (row, place) in forwarding::all().iter().zip(LIVE + new_tokens(effort)..) {
        let window = || Window::new(place..place + 1);
        let (packet, reason) = row.packet(&programs.usual)?;
        let changes = row.changes_headers().then(|| Replayed {
            mode: Mode::Restoring { alternate: 0 },
            empty_mode: Mode::Restoring { alternate: row.changes_length() },
            window: window(),
            empty_window: window(),
        });
        plans.push(Plan {
            service: row.service().index,
            replayed: changes,
            ..one(row.name, row.goal, &packet, reason)
        });
    }
    Ok(plans)
}

/// PROOF tokens: packets that are all new, and packets of an attacker who copies or forges them.
fn proof_plans(
    effort: &Effort,
    one: impl Fn(&'static str, Option<u64>, &Packet, Reason) -> Plan,
) -> Vec<Plan> {
    let payload = &frame_payload()[..];
    let of = |name, goal, packet: &Packet, reason| Plan {
        service: proofs::service().index,
        ..one(name, goal, packet, reason)
    };
    let mut forged = Proofs::of(2).packet(payload);
    forged.payload[63] ^= 1;
    let window = || Window::new(proofs_at(effort)..proofs_at(effort) + PROOFS);
    vec![
        Plan {
            repeat: PROOFS,
            replayed: Some(Replayed {
                mode: Mode::Keeping,
                empty_mode: Mode::Keeping,
                window: window(),
                empty_window: window(),
            }),
            proofs: Some(Proofs::of(1)),
            ..of("proof_cached_l2", Some(150), &Proofs::of(1).packet(payload), Reason::Forwarded)
        },
        of("stale_proof", None, &Proofs::of(2).stale_packet(payload), Reason::StaleProof),
        of("bad_proof", None, &forged, Reason::BadProof),
        of("replay", None, &Proofs::of(3).packet(payload), Reason::Replay),
    ]
}

/// Tokens that a holder of only the fast key can make.
fn with_wrong_full_tag() -> Header {
    let key = fixture::key().derived;
    let mut words = fixture::token().words();
    words[7] ^= 1;
    words[5] = tags::fast(key.fast, &Header::from_verified(words), &Binding::default());
    Header::from_verified(words)
}

fn packet_elsewhere() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([192, 0, 2, 1], 7777))
}

/// A frame of typical length: the data after the token matters for proofs only.
fn frame(packet: &Packet) -> Vec<u8> {
    let mut packet = packet.clone();
    packet.payload.resize(header::LEN, 0);
    packet.payload.extend(frame_payload());
    packet.bytes()
}

/// The data after the token.
const fn frame_payload() -> [u8; 86] {
    [0xd7; 86]
}

fn tested(program: &mut Program) -> Result<&Xdp> {
    Ok(program.datapath().program(PROGRAM)?)
}

impl Plan {
    /// The empty program's mean, nanoseconds.
    fn empty(&mut self, program: &mut Program, replay: &mut Replay) -> Result<u64> {
        let pass = program.datapath().program(PROGRAM_PASS)?;
        match &mut self.replayed {
            None => direct(pass, &self.frame, self.repeat),
            Some(Replayed { empty_mode, empty_window, .. }) => {
                Ok(replay.run(*empty_mode, pass, empty_window, &self.frame, self.repeat)?.1)
            }
        }
    }

    /// The program's mean, nanoseconds, after a check of the counters.
    fn sample(&mut self, program: &mut Program, replay: &mut Replay) -> Result<u64> {
        if !self.hmacs {
            // A warm-up run, for the state while no other work is done. Not for a new token, which is new only once.
            self.run(program, replay)?;
        }
        let (before, hmacs) = (program.counts()?, program.hmacs()?);
        let mean = self.run(program, replay)?;
        let Counts { reasons, .. } = program.counts()?.since(&before);
        let all = reasons.len() == 1
            && reasons
                .get(&(self.service, self.reason))
                .is_some_and(|counter| counter.packets == u64::from(self.repeat));
        ensure!(all, "{} packets had another outcome than {}: {reasons:?}", self.repeat, self.reason.name());
        let made = program.hmacs()? - hmacs;
        let expected = if self.hmacs { u64::from(self.repeat) } else { 0 };
        ensure!(made == expected, "{made} HMACs were made, not {expected}");
        Ok(mean)
    }

    fn run(&mut self, program: &mut Program, replay: &mut Replay) -> Result<u64> {
        if let (Some(proofs), Some(Replayed { window, .. })) = (&mut self.proofs, &self.replayed) {
            replay.write(window.first(), &proofs.next(self.repeat, &frame_payload()))?;
        }
        let tested = tested(program)?;
        match &mut self.replayed {
            None => direct(tested, &self.frame, self.repeat),
            Some(Replayed { mode, window, .. }) => {
                Ok(replay.run(*mode, tested, window, &self.frame, self.repeat)?.1)
            }
        }
    }
}

fn direct(program: &Xdp, frame: &[u8], repeat: u32) -> Result<u64> {
    let result =
        program.test_run(TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() })?;
    Ok(u64::try_from(result.duration.as_nanos())?)
}
