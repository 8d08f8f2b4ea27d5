//! The backends' applications: real sockets, which remember every datagram they got.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::Result;
use lb_tests::topology::Topology;

/// What an application sends: session and sequence number, then bytes that follow from both.
pub const PAYLOAD_LEN: usize = 64;

/// The payload of a session's datagram.
pub fn payload(session: u32, sequence: u32) -> [u8; PAYLOAD_LEN] {
    let mut payload = [0; PAYLOAD_LEN];
    payload[..4].copy_from_slice(&session.to_be_bytes());
    payload[4..8].copy_from_slice(&sequence.to_be_bytes());
    let mut random = fastrand::Rng::with_seed(u64::from(session) << 32 | u64::from(sequence));
    random.fill(&mut payload[8..]);
    payload
}

/// What a backend's application got.
#[derive(Default)]
pub struct Received {
    /// Session and sequence number of every datagram that is whole and stripped.
    pub datagrams: Vec<(u32, u32)>,
    /// Everything else.
    pub strange: Vec<Vec<u8>>,
}

/// The applications, while they listen.
pub struct Receivers {
    threads: Vec<JoinHandle<Result<Received>>>,
    stop: Arc<AtomicBool>,
    /// Datagrams all of them got so far.
    pub total: Arc<AtomicU64>,
}

impl Receivers {
    /// Listens at every backend.
    pub fn start(topology: &Topology) -> Result<Self> {
        let (stop, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for index in 0..topology.backends.len() {
            let socket = topology.backend_socket(index)?;
            let (stop, total) = (Arc::clone(&stop), Arc::clone(&total));
            threads.push(thread::spawn(move || listen(&socket, &stop, &total)));
        }
        Ok(Self { threads, stop, total })
    }

    /// Ends once no more comes, and returns what each backend got.
    pub fn finish(self) -> Result<Vec<Received>> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    }
}

fn listen(socket: &UdpSocket, stop: &AtomicBool, total: &AtomicU64) -> Result<Received> {
    let mut received = Received::default();
    let mut buffer = [0; 2048];
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => {
                let datagram = &buffer[..len];
                match read(datagram) {
                    Some(found) => received.datagrams.push(found),
                    None => received.strange.push(datagram.to_vec()),
                }
                total.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing for 50 ms.
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

/// Session and sequence number of a datagram that is exactly what an application has sent.
fn read(datagram: &[u8]) -> Option<(u32, u32)> {
    let (session, rest) = datagram.split_first_chunk()?;
    let (sequence, _) = rest.split_first_chunk()?;
    let (session, sequence) = (u32::from_be_bytes(*session), u32::from_be_bytes(*sequence));
    (datagram == payload(session, sequence)).then_some((session, sequence))
}
