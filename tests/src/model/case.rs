//! A test case: data, and the one function that checks it.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::{backend::Backend, reason::Reason};

use crate::model::{
    fixture::{Fixture, LOOPBACK, SERVICE_INDEX},
    packet::{Family, Packet},
    program::{Counts, Outcome, Program, Verdict},
};

/// A packet, the fixture for it, and the expected outcome.
#[derive(Clone, Debug)]
pub struct Case {
    /// Describes the packet.
    pub name: String,
    /// The state of the program.
    pub fixture: Fixture,
    /// The frame that arrives.
    pub frame: Vec<u8>,
    /// The expected outcome.
    pub expected: Expected,
    /// The cases that run before this one.
    pub before: Vec<Case>,
    /// The packets that the incoming and the outgoing frame were made from.
    packets: Option<(Packet, Packet)>,
}

/// The expected outcome of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Verdict and whole frame.
    pub outcome: Outcome,
    /// Index of the service whose counter increases; 0 for none.
    pub service: u32,
    /// The reason whose counter increases.
    pub reason: Reason,
    /// Index of the backend counter that increases.
    pub backend: Option<u32>,
}

impl Case {
    /// Any frame.
    pub fn of_frame(name: impl Into<String>, fixture: Fixture, frame: Vec<u8>, expected: Expected) -> Self {
        Self { name: name.into(), fixture, frame, expected, before: vec![], packets: None }
    }

    /// A packet of the default service that is refused.
    pub fn refused(name: impl Into<String>, fixture: Fixture, packet: &Packet, reason: Reason) -> Self {
        Self::new(name, fixture, packet, packet, Verdict::Drop, (SERVICE_INDEX, reason, None))
    }

    /// A packet for no service.
    pub fn not_ours(name: impl Into<String>, fixture: Fixture, packet: &Packet) -> Self {
        Self::new(name, fixture, packet, packet, Verdict::Pass, (0, Reason::NotOurs, None))
    }

    /// A packet of the default service that is sent to this backend as `sent`, with the MAC addresses of the backend.
    pub fn sent(
        name: impl Into<String>,
        fixture: Fixture,
        packet: &Packet,
        sent: &Packet,
        backend: &Backend,
        reason: Reason,
    ) -> Self {
        let Backend { destination_mac, source_mac, counter, ifindex, .. } = *backend;
        let sent = Packet { destination_mac, source_mac, ..sent.clone() };
        let verdict = if ifindex == LOOPBACK { Verdict::Transmit } else { Verdict::Redirect };
        Self::new(name, fixture, packet, &sent, verdict, (SERVICE_INDEX, reason, Some(counter)))
    }

    /// A packet of the default service that is passed to this host's stack as `delivered`.
    pub fn local(
        name: impl Into<String>,
        fixture: Fixture,
        packet: &Packet,
        delivered: &Packet,
        reason: Reason,
    ) -> Self {
        Self::new(name, fixture, packet, delivered, Verdict::Pass, (SERVICE_INDEX, reason, None))
    }

    /// A packet that is sent back out of its interface as `sent`, counted for the default service.
    pub fn answered(
        name: impl Into<String>,
        fixture: Fixture,
        packet: &Packet,
        sent: &Packet,
        reason: Reason,
    ) -> Self {
        Self::new(name, fixture, packet, sent, Verdict::Transmit, (SERVICE_INDEX, reason, None))
    }

    fn new(
        name: impl Into<String>,
        fixture: Fixture,
        packet: &Packet,
        out: &Packet,
        verdict: Verdict,
        (service, reason, backend): (u32, Reason, Option<u32>),
    ) -> Self {
        let outcome = Outcome { verdict, frame: out.bytes() };
        let expected = Expected { outcome, service, reason, backend };
        let packets = Some((packet.clone(), out.clone()));
        Self { name: name.into(), fixture, frame: packet.bytes(), expected, before: vec![], packets }
    }

    /// The same case after these cases.
    pub fn after(self, before: Vec<Self>) -> Self {
        Self { before, ..self }
    }

    /// The cases before it, then the case itself.
    pub fn in_order(&self) -> impl Iterator<Item = &Self> {
        self.before.iter().chain([self])
    }

    /// The same case over this family: see [`Packet::over`]. A case that was made of a frame is not changed.
    pub fn over(mut self, family: Family) -> Self {
        let Some((packet, out)) = self.packets else { return self };
        let (packet, out) = (packet.over(family), out.over(family));
        self.frame = packet.bytes();
        self.expected.outcome.frame = out.bytes();
        self.packets = Some((packet, out));
        self.before = self.before.into_iter().map(|case| case.over(family)).collect();
        self
    }

    /// The sender's address, if the case was made of packets.
    pub fn sender(&self) -> Option<IpAddr> {
        self.packets.as_ref().map(|(packet, _)| packet.from.ip())
    }

    /// The family of the packet, if the case was made of packets.
    pub fn family(&self) -> Option<Family> {
        self.packets.as_ref().map(|(packet, _)| packet.family())
    }

    /// The same case with another name.
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The same case in another fixture.
    pub fn with_fixture(self, fixture: Fixture) -> Self {
        Self { fixture, ..self }
    }

    /// Runs the case and checks the verdict, every byte of the outgoing frame, the counters that increase, and that no
    /// other counter does.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, program: &mut Program) -> Result<()> {
        check_all(program, std::slice::from_ref(self))
    }
}

/// The cases of both families. `of` makes the cases of one family. Cases that it makes of IPv4 packets for both
/// families are converted with [`Case::over`].
pub fn both(of: impl Fn(Family) -> Vec<Case>) -> Vec<Case> {
    Family::BOTH
        .into_iter()
        .flat_map(|family| of(family).into_iter().map(move |case| case.over(family)))
        .collect()
}

/// [`Case::check`] of each, one after the other; counters are read once, around all of them.
///
/// # Errors
/// The first difference, or a difference of the counters alone.
pub fn check_all(program: &mut Program, cases: &[Case]) -> Result<()> {
    let before = program.counts()?;
    let mut expected = Counts::default();
    for case in cases.iter().flat_map(Case::in_order) {
        program.enter(&case.fixture)?;
        let outcome = program.run(&case.frame).with_context(|| case.name.clone())?;
        let Expected { outcome: wanted, service, reason, backend } = &case.expected;
        // The content of a dropped packet is not visible.
        let same = if wanted.verdict == Verdict::Drop {
            outcome.verdict == wanted.verdict
        } else {
            outcome == *wanted
        };
        ensure!(
            same,
            "{}{}: {:?} where {:?} as {} was expected\n  came in  {}\n  came out {}\n  expected {}",
            case.name,
            case.family().map_or(String::new(), |family| format!(" ({family})")),
            outcome.verdict,
            wanted.verdict,
            reason.name(),
            Hex(&case.frame),
            Hex(&outcome.frame),
            Hex(&wanted.frame),
        );
        expected.add(*service, *reason, *backend, case.frame.len());
    }
    let moved = program.counts()?.since(&before);
    let what = if let [case] = cases { case.name.as_str() } else { "all of these cases" };
    ensure!(moved == expected, "{what}: counted as\n  {moved:?}\nwhere this was expected:\n  {expected:?}");
    Ok(())
}

/// Bytes in hexadecimal, for a packet dissector.
pub struct Hex<'a>(pub &'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
