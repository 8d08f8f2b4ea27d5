//! The client: 500 sessions with valid tokens, and everybody else among them.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use lb_common::{
    reason::Reason,
    token::{Claims, header},
};
use lb_tests::{
    issuer::{Issuer, session, unix_now},
    topology::Topology,
};

use crate::{not_interrupted, receivers::payload};

/// Sessions.
pub const SESSIONS: u32 = 500;
/// Valid datagrams that may be under way at once: what the backends' sockets hold, many times over.
const WINDOW: u64 = 1024;
/// How long valid datagrams may take before they count as lost.
const LOST_AFTER: Duration = Duration::from_secs(5);
const TTL: u32 = 600;

/// Datagrams that nobody should get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Junk {
    /// No token at all.
    Tokenless,
    /// A valid token, cut short.
    Truncated,
    /// A valid token's claims under tags made up.
    Forged,
    /// A token that was valid an hour ago.
    Expired,
    /// A token that the right key has signed for another service.
    WrongService,
}

impl Junk {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Tokenless, Self::Truncated, Self::Forged, Self::Expired, Self::WrongService];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tokenless => "without a token",
            Self::Truncated => "truncated",
            Self::Forged => "forged",
            Self::Expired => "expired",
            Self::WrongService => "wrong service",
        }
    }

    /// What the program is to count it as.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Tokenless | Self::Truncated => Reason::NoToken,
            Self::Forged => Reason::BadFastTag,
            Self::Expired => Reason::Expired,
            Self::WrongService => Reason::WrongService,
        }
    }
}

/// Sends, and remembers what.
pub struct Sender<'a> {
    sockets: Vec<UdpSocket>,
    tokens: Vec<[u8; header::LEN]>,
    issuer: Issuer,
    received: &'a AtomicU64,
    /// Next sequence number of each session.
    pub sequences: Vec<u32>,
    /// Valid datagrams sent.
    pub valid: u64,
    /// Others sent.
    pub junk: BTreeMap<Junk, u64>,
    random: fastrand::Rng,
}

impl<'a> Sender<'a> {
    /// With tokens of this issuer for all sessions. `received` counts what all backends got.
    pub fn new(topology: &Topology, issuer: Issuer, received: &'a AtomicU64) -> Result<Self> {
        let tokens = (0..SESSIONS).map(|number| issuer.token(claims(number), TTL).to_bytes()).collect();
        Ok(Self {
            sockets: (0..10).map(|_| topology.client_socket()).collect::<Result<_>>()?,
            tokens,
            issuer,
            received,
            sequences: vec![0; SESSIONS as usize],
            valid: 0,
            junk: BTreeMap::new(),
            random: fastrand::Rng::with_seed(1),
        })
    }

    /// From now on tokens are signed with a newer keyset. Every other session gets a new token at once; the others
    /// go on with what they have, which stays valid.
    pub fn renew(&mut self, issuer: Issuer) {
        self.issuer = issuer;
        for number in (0..SESSIONS).step_by(2) {
            self.tokens[number as usize] = self.issuer.token(claims(number), TTL).to_bytes();
        }
    }

    /// Sends a valid datagram, and after two of them a bad one.
    pub fn step(&mut self) -> Result<()> {
        self.wait_for_room()?;
        let number = self.random.u32(0..SESSIONS);
        let sequence = self.sequences[number as usize];
        self.send(number, &[&self.tokens[number as usize][..], &payload(number, sequence)].concat())?;
        self.sequences[number as usize] += 1;
        self.valid += 1;
        if self.valid.is_multiple_of(2) {
            let kind = Junk::ALL[self.random.usize(0..Junk::ALL.len())];
            let datagram = self.bad(kind, number);
            self.send(number, &datagram)?;
            *self.junk.entry(kind).or_default() += 1;
        }
        Ok(())
    }

    /// Waits until all valid datagrams have arrived.
    pub fn drain(&self) -> Result<()> {
        self.wait_until(0)
    }

    fn bad(&mut self, kind: Junk, number: u32) -> Vec<u8> {
        let data = payload(number, u32::MAX);
        let valid = self.tokens[number as usize];
        match kind {
            Junk::Tokenless => data.repeat(2),
            Junk::Truncated => valid[..self.random.usize(1..header::LEN)].to_vec(),
            Junk::Forged => {
                let mut forged = valid;
                self.random.fill(&mut forged[40..]);
                [&forged[..], &data].concat()
            }
            Junk::Expired => {
                let expired = self.issuer.token_at(claims(number), unix_now() - 3600, TTL);
                [&expired.to_bytes()[..], &data].concat()
            }
            Junk::WrongService => {
                let other = Claims { service_id: 43, ..claims(number) };
                [&self.issuer.token(other, TTL).to_bytes()[..], &data].concat()
            }
        }
    }

    fn send(&self, number: u32, datagram: &[u8]) -> Result<()> {
        let socket = &self.sockets[number as usize % self.sockets.len()];
        loop {
            match socket.send(datagram) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => not_interrupted()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait_for_room(&self) -> Result<()> {
        self.wait_until(WINDOW)
    }

    fn wait_until(&self, under_way: u64) -> Result<()> {
        let mut since = Instant::now();
        let mut before = self.received.load(Ordering::Relaxed);
        while self.valid > self.received.load(Ordering::Relaxed) + under_way {
            not_interrupted()?;
            let now = self.received.load(Ordering::Relaxed);
            if now != before {
                (since, before) = (Instant::now(), now);
            }
            if since.elapsed() > LOST_AFTER {
                bail!("of {} valid datagrams only {now} have arrived, and no more come", self.valid);
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// Every tenth session names its backend.
pub fn claims(number: u32) -> Claims {
    let pinned = if number.is_multiple_of(10) { 1 + number / 10 % 3 } else { 0 };
    session(session_id(number), pinned as u16)
}

/// The session's id.
pub fn session_id(number: u32) -> u64 {
    0x5e55_0000_0000_0000 | u64::from(number)
}
