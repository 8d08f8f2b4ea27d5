//! Loads and runs the XDP programs of tests/replay, which give the program under test a different packet in every run.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, ProgramArray},
    programs::Xdp,
};
use lb_common::token::{Header, header};

use crate::model::packet::{
    ETHER_TYPE_IPV6, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, TAG_8021AD, TAG_8021Q, TAG_LEN, UDP_LEN,
};

/// Frames that a live run sends in one batch.
const BATCH: u32 = 64;

/// A token as the table contains it.
type Words = [u64; header::LEN / 8];

/// The start of a frame, as the programs restore it.
type Head = [u32; 18];

/// The kind of program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A program that changes neither the length of frames nor header fields that matter.
    Keeping,
    /// A program that changes them: the replay restores them.
    Restoring {
        /// For a program that keeps them, beside one that changes the length of a frame: by how many bytes the replay
        /// changes the length, alternately up and down. 0 beside a program that does not.
        alternate: u32,
    },
}

impl Mode {
    const fn program(self) -> &'static str {
        match self {
            Self::Keeping => "replay",
            Self::Restoring { .. } => "replay_restored",
        }
    }
}

/// The range of tokens of the table to use, and the next one.
#[derive(Clone, Debug)]
pub struct Window {
    first: u32,
    end: u32,
    next: u32,
}

impl Window {
    /// Starts with the first token, and wraps around.
    pub const fn new(range: Range<u32>) -> Self {
        Self { first: range.start, end: range.end, next: range.start }
    }

    /// The index of its first token.
    pub const fn first(&self) -> u32 {
        self.first
    }
}

/// The loaded programs.
pub struct Replay {
    ebpf: Ebpf,
}

impl Replay {
    /// Loads the programs, with a table for this many tokens.
    ///
    /// # Errors
    /// If the object is not next to the program's object, or the kernel refuses it.
    pub fn load(tokens: u32) -> Result<Self> {
        let path = std::env::var_os("TOLLGATE_BPF_OBJECT")
            .map(|object| std::path::Path::new(&object).with_file_name("replay-xdp"))
            .context("TOLLGATE_BPF_OBJECT does not name the XDP programs\ntry: cargo xtask test")?;
        let object = std::fs::read(&path).with_context(|| {
            format!("cannot read {}\ntry: cargo xtask build, which makes it", path.display())
        })?;
        let mut ebpf = EbpfLoader::new().map_max_entries("tokens", tokens).load(&object)?;
        for (_, program) in ebpf.programs_mut() {
            <&mut Xdp>::try_from(program)?.load()?;
        }
        Ok(Self { ebpf })
    }

    /// Writes tokens into the table, from index `at` on.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn write(&mut self, at: u32, tokens: &[Header]) -> Result<()> {
        let mut table: Array<_, Words> = self.ebpf.map_mut("tokens").context("no table")?.try_into()?;
        for (place, token) in (at..).zip(tokens) {
            table.set(place, token.words(), 0)?;
        }
        Ok(())
    }

    /// Runs a program behind the replay, each time with the next token of the window in the frame. Returns its last
    /// action and the mean time, nanoseconds.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn run(
        &mut self,
        mode: Mode,
        tested: &Xdp,
        window: &mut Window,
        frame: &[u8],
        repeat: u32,
    ) -> Result<(u32, u64)> {
        let mut programs: ProgramArray<_> = self.ebpf.map_mut("tested").context("no array")?.try_into()?;
        programs.set(0, tested.fd()?, 0)?;
        self.open_as(mode, window, frame)?;
        let result = self.program(mode.program())?.test_run(TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::default()
        })?;
        ensure!(result.return_value != 0, "{} could not put a token into its frame", mode.program());
        window.next = self.window()?.get(&0, 0)?[2];
        Ok((result.return_value, u64::try_from(result.duration.as_nanos())?))
    }

    /// Activates a window, for frames that keep their length.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn open(&mut self, window: &Window, frame: &[u8]) -> Result<()> {
        self.open_as(Mode::Keeping, window, frame)
    }

    fn open_as(&mut self, mode: Mode, window: &Window, frame: &[u8]) -> Result<()> {
        let Window { first, end, next } = *window;
        let frame_len = u32::try_from(frame.len())?;
        let alternate = match mode {
            Mode::Keeping => 0,
            Mode::Restoring { alternate } => alternate,
        };
        self.window()?.set(0, [first, end, next, frame_len, token_at(frame), alternate], 0)?;
        let (words, _) = frame.as_chunks::<4>();
        let words = words.first_chunk::<{ size_of::<Head>() / 4 }>().context("a longer frame")?;
        let mut heads: Array<_, Head> = self.ebpf.map_mut("heads").context("no heads")?.try_into()?;
        Ok(heads.set(0, words.map(u32::from_ne_bytes), 0)?)
    }

    /// Sets the minimum interval between frames that [`Self::send`] sends; 0: the highest possible rate.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn pace(&mut self, interval_ns: u64) -> Result<()> {
        let mut pace: Array<_, [u64; 2]> = self.ebpf.map_mut("pace").context("no pace")?.try_into()?;
        Ok(pace.set(0, [interval_ns, 0], 0)?)
    }

    /// Sends copies of a frame, each with the next token of the window, out of an interface of this thread's
    /// namespace: a live test run, without skbs. The interface needs an XDP program itself.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn send(&mut self, ifindex: u32, frame: &[u8], frames: u32) -> Result<()> {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, u32::try_from(frame.len())?, 0, ifindex, 0, 0].map(u32::to_ne_bytes);
        self.program("send")?.test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context.as_flattened()),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        })?;
        Ok(())
    }

    /// One of the replay's programs.
    ///
    /// # Errors
    /// If there is no program of this name.
    pub fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn window(&mut self) -> Result<Array<&mut aya::maps::MapData, [u32; 6]>> {
        Ok(self.ebpf.map_mut("window").context("no window")?.try_into()?)
    }
}

/// The position of the token in a frame without IP options and extension headers.
fn token_at(frame: &[u8]) -> u32 {
    let ether_type = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let tags = (0..2).take_while(|tags| [TAG_8021Q, TAG_8021AD].contains(&ether_type(12 + 4 * tags))).count();
    let ip_at = ETHERNET_LEN + TAG_LEN * tags;
    let ip_len = if ether_type(ip_at - 2) == ETHER_TYPE_IPV6 { IPV6_LEN } else { IPV4_LEN };
    (ip_at + ip_len + UDP_LEN) as u32
}
