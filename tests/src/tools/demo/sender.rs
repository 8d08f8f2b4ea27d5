//! The client: 500 sessions with valid tokens, and junk between their datagrams.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use lb_common::{
    keyslot::KeyId,
    token::{Claims, header},
};
use lb_tests::testbed::{
    issuer::{Issuer, session, unix_now},
    topology::Topology,
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::{
    junk::Junk,
    progress,
    receivers::{ANSWER_LEN, payload},
    script::Options,
};

/// Number of sessions.
pub const SESSIONS: u32 = 500;
/// The maximum number of valid datagrams in flight: a small part of what the backends' sockets can hold.
const WINDOW: u64 = 1024;
/// How long valid datagrams may take before they count as lost.
const LOST_AFTER: Duration = Duration::from_secs(5);
const TTL: u32 = 600;
/// Buffer for answers that have not been read yet.
const RECEIVE_BUFFER: usize = 16 << 20;

struct Token {
    bytes: [u8; header::LEN],
    key: KeyId,
}

/// Sends datagrams and records them.
pub struct Sender {
    sockets: Vec<UdpSocket>,
    tokens: Vec<Token>,
    issuer: Issuer,
    /// Number of valid datagrams that all backends received so far.
    received: Arc<AtomicU64>,
    /// Next sequence number of each session.
    pub sequences: Vec<u32>,
    /// Valid datagrams sent.
    pub valid: u64,
    /// Number of valid datagrams, by the key that has signed their tokens.
    pub by_key: BTreeMap<KeyId, u64>,
    /// Other datagrams sent.
    pub junk: BTreeMap<Junk, u64>,
    /// Session and sequence number of every answer, if answers pass the balancer.
    pub answers: Option<Vec<(u32, u32)>>,
    random: fastrand::Rng,
}

impl Sender {
    /// Creates a sender with tokens of this issuer for all sessions.
    pub fn new(
        options: Options,
        topology: &Topology,
        issuer: Issuer,
        received: Arc<AtomicU64>,
    ) -> Result<Self> {
        let socket = || {
            let socket = topology.client_socket(options.family.service())?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
            anyhow::Ok(socket)
        };
        Ok(Self {
            sockets: (0..10).map(|_| socket()).collect::<Result<_>>()?,
            tokens: (0..SESSIONS).map(|number| token(&issuer, number)).collect(),
            issuer,
            received,
            sequences: vec![0; SESSIONS as usize],
            valid: 0,
            by_key: BTreeMap::new(),
            junk: BTreeMap::new(),
            answers: options.answers().then(Vec::new),
            random: fastrand::Rng::with_seed(1),
        })
    }

    /// Signs tokens with a newer keyset from now on. Every other session gets a new token immediately; the others keep
    /// their tokens, which stay valid.
    pub fn renew(&mut self, issuer: Issuer) {
        self.issuer = issuer;
        for number in (0..SESSIONS).step_by(2) {
            self.tokens[number as usize] = token(&self.issuer, number);
        }
    }

    /// Sends this many valid datagrams, with junk between them.
    pub fn send_valid(&mut self, count: u64) -> Result<()> {
        (0..count).try_for_each(|_| self.step())
    }

    /// Sends while another thread executes `work`; returns the result and the number of datagrams sent meanwhile.
    pub fn send_during<T: Send>(&mut self, work: impl FnOnce() -> Result<T> + Send) -> Result<(T, u64)> {
        let before = self.valid;
        thread::scope(|scope| {
            let thread = scope.spawn(work);
            while !thread.is_finished() {
                self.step()?;
            }
            let made = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((made, self.valid - before))
        })
    }

    /// Waits until all valid datagrams, and the answers to them, have arrived.
    pub fn drain(&mut self) -> Result<()> {
        self.wait_for(0)?;
        let deadline = Instant::now() + LOST_AFTER;
        while self.answers.as_ref().is_some_and(|answers| (answers.len() as u64) < self.valid) {
            (0..self.sockets.len()).try_for_each(|index| self.read_answers(index))?;
            ensure!(Instant::now() < deadline, "some of {} answers have not arrived", self.valid);
        }
        progress::end(self.valid, self.received.load(Ordering::Relaxed));
        Ok(())
    }

    /// Sends a valid datagram, and after every second one a junk datagram.
    fn step(&mut self) -> Result<()> {
        self.wait_for(WINDOW)?;
        let number = self.random.u32(0..SESSIONS);
        let (token, sequence) = (&self.tokens[number as usize], &mut self.sequences[number as usize]);
        let datagram = [&token.bytes[..], &payload(number, *sequence)].concat();
        *sequence += 1;
        *self.by_key.entry(token.key).or_default() += 1;
        self.valid += 1;
        self.send(number, &datagram)?;
        if self.valid.is_multiple_of(2) {
            let kind = Junk::ALL[self.random.usize(0..Junk::ALL.len())];
            let datagram = self.bad(kind, number);
            *self.junk.entry(kind).or_default() += 1;
            self.send(number, &datagram)?;
        }
        self.read_answers(number as usize % self.sockets.len())?;
        progress::show(self.valid, self.received.load(Ordering::Relaxed));
        Ok(())
    }

    /// Reads the datagrams of a socket.
    fn read_answers(&mut self, index: usize) -> Result<()> {
        let Some(answers) = &mut self.answers else { return Ok(()) };
        let mut buffer = [0; 2048];
        loop {
            match self.sockets[index].recv(&mut buffer) {
                Ok(ANSWER_LEN) => {
                    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| buffer[at + byte]));
                    answers.push((word(0), word(4)));
                }
                Ok(len) => bail!("an answer of {len} bytes, which no backend has sent"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn bad(&mut self, kind: Junk, number: u32) -> Vec<u8> {
        let data = payload(number, kind.sequence());
        let valid = self.tokens[number as usize].bytes;
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
        socket.send(datagram)?;
        Ok(())
    }

    /// Waits until at most this many valid datagrams are in flight.
    fn wait_for(&self, under_way: u64) -> Result<()> {
        let mut since = Instant::now();
        let mut before = self.received.load(Ordering::Relaxed);
        loop {
            let now = self.received.load(Ordering::Relaxed);
            if self.valid <= now + under_way {
                return Ok(());
            }
            if now != before {
                (since, before) = (Instant::now(), now);
            }
            if since.elapsed() > LOST_AFTER {
                bail!("of {} valid datagrams only {now} have arrived, and no more come", self.valid);
            }
            thread::yield_now();
        }
    }
}

fn token(issuer: &Issuer, number: u32) -> Token {
    Token { bytes: issuer.token(claims(number), TTL).to_bytes(), key: issuer.active() }
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
