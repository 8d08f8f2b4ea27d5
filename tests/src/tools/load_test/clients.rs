//! Legitimate traffic: sockets, sessions with BEARER and PROOF tokens, packets at a steady rate, and the application
//! that receives them.

use std::{
    io::{ErrorKind, IoSliceMut},
    net::UdpSocket,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::token::{header, mint::ProofToken};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            ControlMessageOwned, MsgFlags, recvmsg, setsockopt,
            sockopt::{RcvBufForce, ReceiveTimestampns},
        },
        time::{TimeSpec, TimeValLike as _},
    },
    time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep},
    unistd::Pid,
};

use super::{Cpus, pair::Pair, realtime};
use crate::{
    model::{packet::Family, program::pin_to_cpu},
    testbed::{
        daemon::wait_for,
        issuer::{Issuer, session, unix_now},
    },
};

/// Number of sessions of each type.
const SESSIONS: u64 = 10;
/// Packets per second of all sessions.
pub const RATE: u32 = 10_000;
/// Length of a payload: phase, number, time of sending, and padding to the usual length of a game packet.
const PAYLOAD_LEN: usize = 64;
/// The payload of junk tokens.
pub const NOBODY: [u8; PAYLOAD_LEN] = [0xff; PAYLOAD_LEN];
/// Receive buffer of the application.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A client.
enum Session {
    Bearer([u8; header::LEN]),
    Proof { token: ProofToken, issued_at: u32, seq: u32 },
}

/// All clients.
pub struct Clients(Vec<Session>);

/// The packets of one phase.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    /// Packets sent.
    pub sent: u64,
    /// Latencies of the packets that arrived, nanoseconds, in ascending order.
    pub took: Vec<u64>,
}

/// State that both threads share.
#[derive(Default)]
pub struct Stage {
    phase: AtomicUsize,
    listens: AtomicBool,
    ended: AtomicBool,
}

impl Stage {
    /// Waits until the application listens: nothing is sent before.
    ///
    /// # Errors
    /// If it does not listen in time.
    pub fn wait_for_the_application(&self) -> Result<()> {
        wait_for("the application", || Ok(self.listens.load(Ordering::Relaxed)))
    }

    /// Starts the next phase.
    pub fn next(&self) {
        self.phase.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends sending.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Clients {
    /// Creates clients with tokens of this issuer.
    pub fn new(issuer: &Issuer) -> Self {
        let issued_at = unix_now();
        let bearer = |number| issuer.token_at(session(number, 0), issued_at, super::TTL).to_bytes();
        let proof = |number| issuer.proof_at(session(100 + number, 0), issued_at, super::TTL);
        let pair = |number| {
            [Session::Bearer(bearer(number)), Session::Proof { token: proof(number), issued_at, seq: 0 }]
        };
        Self((1..=SESSIONS).flat_map(pair).collect())
    }

    /// The token of a PROOF session, as an observer of the traffic sees it.
    pub fn a_proof_token(&self) -> &ProofToken {
        let proofs = self.0.iter().find_map(|session| match session {
            Session::Proof { token, .. } => Some(token),
            Session::Bearer(_) => None,
        });
        proofs.expect("half of the sessions have one")
    }

    /// Sends until the stage ends; returns the number of packets in each phase.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn send(&mut self, pair: &Pair, stage: &Stage, cpus: Cpus, phases: usize) -> Result<Vec<u64>> {
        pair.clients.enter(|| {
            // Clients stand for other hosts than the flood's, so the flood must not delay them.
            realtime(Pid::from_raw(0), super::CLIENTS)?;
            pin_to_cpu(cpus.sending)?;
            let socket = UdpSocket::bind((Pair::client(), 0))?;
            socket.connect(Family::V4.service())?;
            let mut sent = vec![0; phases];
            let mut next = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
            let interval = TimeSpec::nanoseconds(1_000_000_000 / i64::from(RATE));
            let turns = 0..self.0.len();
            for turn in turns.cycle() {
                if stage.ended.load(Ordering::Relaxed) {
                    break;
                }
                next = next + interval;
                match clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &next) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
                let phase = stage.phase.load(Ordering::Relaxed);
                socket.send(&self.0[turn].datagram(phase, unix_ns()))?;
                sent[phase] += 1;
            }
            Ok(sent)
        })?
    }
}

impl Session {
    fn datagram(&mut self, phase: usize, now_ns: u64) -> [u8; header::LEN + PAYLOAD_LEN] {
        let mut payload = [0; PAYLOAD_LEN];
        payload[..8].copy_from_slice(&(phase as u64).to_be_bytes());
        payload[8..16].copy_from_slice(&now_ns.to_be_bytes());
        let token = match self {
            Self::Bearer(bytes) => *bytes,
            Self::Proof { token, issued_at, seq } => {
                let since_issued = Duration::from_nanos(now_ns) - Duration::from_secs((*issued_at).into());
                let header = token.header(*seq, since_issued.as_millis() as u32, &payload);
                *seq += 1;
                header.to_bytes()
            }
        };
        let mut datagram = [0; header::LEN + PAYLOAD_LEN];
        datagram[..header::LEN].copy_from_slice(&token);
        datagram[header::LEN..].copy_from_slice(&payload);
        datagram
    }
}

/// The application of the node. Receives until the stage has ended and no more packets arrive. Returns the latencies of
/// the packets of each phase: from the client's `send` to the timestamp of the kernel after the program.
///
/// # Errors
/// If the socket fails.
pub fn receive(pair: &Pair, stage: &Stage, cpus: Cpus, phases: usize) -> Result<Vec<Vec<u64>>> {
    pair.node.enter(|| {
        realtime(Pid::from_raw(0), super::APPLICATION)?;
        pin_to_cpu(cpus.receiving)?;
        let socket = UdpSocket::bind(Family::V4.service())?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut took = vec![Vec::new(); phases];
        stage.listens.store(true, Ordering::Relaxed);
        loop {
            match next(&socket) {
                Ok(None) => {}
                Ok(Some((phase, ns))) => took.get_mut(phase).context("a phase that there is not")?.push(ns),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if stage.ended.load(Ordering::Relaxed) {
                        return Ok(took);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    })?
}

/// Phase and nanoseconds of a client's packet; `None` for other packets.
fn next(socket: &UdpSocket) -> std::io::Result<Option<(usize, u64)>> {
    let mut buffer = [0; 256];
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let len = message.bytes;
    let stamp = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(stamp),
        _ => None,
    });
    let stamp = stamp.ok_or_else(|| std::io::Error::other("the kernel stamps no packets"))?;
    let payload = buffer.get(header::LEN..len).unwrap_or_default();
    let Some(([phase, sent_ns], _)) = payload.as_chunks::<8>().0.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let (phase, sent_ns) = (u64::from_be_bytes(*phase), u64::from_be_bytes(*sent_ns));
    let arrived_ns = stamp.num_nanoseconds() as u64;
    Ok((payload != NOBODY).then_some((phase as usize, arrived_ns.saturating_sub(sent_ns))))
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

impl Delivery {
    /// Packets that did not arrive.
    pub fn lost(&self) -> u64 {
        self.sent - self.took.len() as u64
    }

    /// The fraction that arrived.
    pub fn delivered(&self) -> f64 {
        self.took.len() as f64 / self.sent.max(1) as f64
    }

    /// The latency that this many of a thousand packets do not exceed, microseconds.
    pub fn microseconds(&self, of_thousand: usize) -> f64 {
        let at = (self.took.len() * of_thousand / 1000).min(self.took.len().saturating_sub(1));
        self.took.get(at).map_or(f64::NAN, |ns| *ns as f64 / 1000.0)
    }

    /// Created from the records of both threads.
    ///
    /// # Errors
    /// If more packets arrived than were sent.
    pub fn of(sent: u64, mut took: Vec<u64>) -> Result<Self> {
        ensure!(took.len() as u64 <= sent, "{} of {sent} packets arrived", took.len());
        took.sort_unstable();
        Ok(Self { sent, took })
    }
}
