//! The flood: one kernel thread sends frames without skbs, at the highest possible rate or at a given one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::programs::XdpMode;
use lb_common::token::Header;
use nix::net::if_::if_nametoindex;

use super::{
    Cpus,
    junk::TOKENS,
    pair::{CLIENTS, Pair},
};
use crate::{
    model::program::pin_to_cpu,
    tools::replay::{Replay, Window},
};

/// The approximate duration of one run. Starting a run takes milliseconds, during which nothing is sent.
const RUN: Duration = Duration::from_millis(50);
/// Frames per run if only the machine limits the rate.
const ALL_OUT: u32 = 50_000;

/// The sender of floods on a pair.
pub struct Flooder<'a> {
    replay: Replay,
    pair: &'a Pair,
    cpu: usize,
    ifindex: u32,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Number of frames.
    pub frames: u64,
    /// Duration of sending.
    pub elapsed: Duration,
}

impl<'a> Flooder<'a> {
    /// Creates a sender at the clients' end of a pair.
    ///
    /// # Errors
    /// If the programs cannot be loaded.
    pub fn new(pair: &'a Pair, cpus: Cpus) -> Result<Self> {
        let mut replay = Replay::load(TOKENS)?;
        let ifindex = pair.clients.enter(|| {
            // Frames leave only through interfaces that have a program.
            replay
                .program("discard")?
                .attach(CLIENTS, XdpMode::Driver)
                .context("cannot attach to the clients' end")?;
            anyhow::Ok(if_nametoindex(CLIENTS)?)
        })??;
        Ok(Self { replay, pair, cpu: cpus.sending, ifindex })
    }

    /// Sends a flood for this long, at this many frames per second or at the highest possible rate.
    ///
    /// # Errors
    /// If the kernel sends nothing.
    pub fn run(
        &mut self,
        frame: &[u8],
        tokens: &[Header],
        rate: Option<u32>,
        time: Duration,
    ) -> Result<Sent> {
        self.replay.write(0, tokens)?;
        self.replay.open(&Window::new(0..TOKENS), frame)?;
        self.replay.pace(rate.map_or(0, |rate| 1_000_000_000 / u64::from(rate)))?;
        let Self { replay, pair, cpu, ifindex } = self;
        pair.clients.enter(|| {
            pin_to_cpu(*cpu)?;
            let once = rate.map_or(ALL_OUT, |rate| (f64::from(rate) * RUN.as_secs_f64()) as u32);
            let (start, mut frames) = (Instant::now(), 0);
            while start.elapsed() < time {
                replay.send(*ifindex, frame, once)?;
                frames += u64::from(once);
            }
            Ok(Sent { frames, elapsed: start.elapsed() })
        })?
    }
}

impl Sent {
    /// Frames per second.
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64()
    }
}

/// The program that drops a flood and passes all other packets, attached to the node's interface while this value
/// lives.
pub struct EmptyProgram(#[expect(dead_code, reason = "attached while it is held")] Replay);

impl EmptyProgram {
    /// Attaches it.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn attach(pair: &Pair) -> Result<Self> {
        let mut replay = Replay::load(1)?;
        pair.node.enter(|| {
            anyhow::Ok(replay.program("discard_flood")?.attach(super::pair::NODE, XdpMode::Driver)?)
        })??;
        Ok(Self(replay))
    }
}
