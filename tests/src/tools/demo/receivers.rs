//! The applications of the backends: real sockets that record every datagram they receive.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::Result;
use lb_common::token::header;
use lb_tests::testbed::topology::Topology;

use crate::{junk::Junk, script::Options};

/// Length of what an application sends: session and sequence number, then bytes that follow from both.
pub const PAYLOAD_LEN: usize = 64;

/// Length of what an application answers: the same session and sequence number.
pub const ANSWER_LEN: usize = 8;

/// The payload of a session's datagram.
pub fn payload(session: u32, sequence: u32) -> [u8; PAYLOAD_LEN] {
    let mut payload = [0; PAYLOAD_LEN];
    payload[..4].copy_from_slice(&session.to_be_bytes());
    payload[4..8].copy_from_slice(&sequence.to_be_bytes());
    let mut random = fastrand::Rng::with_seed(u64::from(session) << 32 | u64::from(sequence));
    random.fill(&mut payload[8..]);
    payload
}

/// The datagrams that a backend's application received.
#[derive(Default)]
pub struct Received {
    /// Session and sequence number of every valid datagram that arrived complete and stripped.
    pub valid: Vec<(u32, u32)>,
    /// Junk, by kind, stripped or not.
    pub junk: BTreeMap<Junk, u64>,
    /// Number of datagrams that the client did not send in this form.
    pub strange: u64,
}

impl Received {
    fn add(&mut self, datagram: &[u8]) {
        if let Some((session, sequence)) = read(datagram)
            && Junk::of_sequence(sequence).is_none()
        {
            self.valid.push((session, sequence));
            return;
        }
        match junk(datagram) {
            Some(kind) => *self.junk.entry(kind).or_default() += 1,
            None => self.strange += 1,
        }
    }
}

/// The applications, while they listen.
pub struct Receivers {
    threads: Vec<JoinHandle<Result<Received>>>,
    stop: Arc<AtomicBool>,
    /// Number of valid datagrams that all applications received so far.
    pub valid: Arc<AtomicU64>,
}

impl Receivers {
    /// Listens at every application of the service.
    pub fn start(options: Options, topology: &Topology) -> Result<Self> {
        let (stop, valid) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        let (forward, family) = (options.forward, options.family);
        for socket in forward.applications(topology, family.service(), family)? {
            let (stop, valid) = (Arc::clone(&stop), Arc::clone(&valid));
            threads.push(thread::spawn(move || listen(&socket, options.answers(), &stop, &valid)));
        }
        Ok(Self { threads, stop, valid })
    }

    /// Ends when no more datagrams arrive, and returns what each backend received.
    pub fn finish(self) -> Result<Vec<Received>> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    }
}

fn listen(socket: &UdpSocket, answers: bool, stop: &AtomicBool, valid: &AtomicU64) -> Result<Received> {
    let mut received = Received::default();
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                let before = received.valid.len();
                received.add(&buffer[..len]);
                let added = received.valid.len() - before;
                if answers && added > 0 {
                    socket.send_to(&buffer[..ANSWER_LEN], from)?;
                }
                valid.fetch_add(added as u64, Ordering::Relaxed);
            }
            // No datagram for 50 ms.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(received);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Session and sequence number of a datagram that is exactly one payload.
fn read(datagram: &[u8]) -> Option<(u32, u32)> {
    let (session, rest) = datagram.split_first_chunk()?;
    let (sequence, _) = rest.split_first_chunk()?;
    let (session, sequence) = (u32::from_be_bytes(*session), u32::from_be_bytes(*sequence));
    (datagram == payload(session, sequence)).then_some((session, sequence))
}

/// The kind of junk that a datagram was sent as. A truncated token has no payload, but is unlike all others.
fn junk(datagram: &[u8]) -> Option<Junk> {
    match datagram.len().checked_sub(PAYLOAD_LEN) {
        Some(start) => read(&datagram[start..]).and_then(|(_, sequence)| Junk::of_sequence(sequence)),
        None => (datagram.first() == Some(&header::MAGIC)).then_some(Junk::Truncated),
    }
}
