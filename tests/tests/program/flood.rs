//! Millions of junk packets: they cost no HMAC, and none of them passes.

use anyhow::{Result, ensure};
use lb_common::{
    maps,
    reason::Reason,
    token::{
        Header,
        header::{LEN, MAGIC},
    },
};
use lb_tests::{
    model::{
        fixture::{self, SERVICE_INDEX},
        packet::{Family, Packet},
        program::{Program, at_scale},
    },
    tools::replay::{Mode, Replay, Window},
};

use crate::proof;

/// Headers in the replay's table.
const TABLE: usize = 500_000;
/// How often the table is filled with new headers.
const ROUNDS: usize = 20;

/// The random fields of a header besides nonce, sealed claims and tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Junk {
    /// All fields except the magic byte and the key id.
    Everything,
    /// Nothing: only its tags are wrong.
    Nothing,
}

/// Ten million headers with a correct magic and key id.
#[test]
fn ten_million_forged_headers() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(10_000_000);
    let table = at_scale(TABLE);
    let mut program = Program::load()?;
    program.enter(&proof::fixture())?;
    let mut replay = Replay::load(table as u32)?;
    for round in 0..ROUNDS {
        let junk = if round % 2 == 0 { Junk::Everything } else { Junk::Nothing };
        let family = Family::BOTH[round / 2 % 2];
        let headers: Vec<Header> = (0..table).map(|_| junk.header(&mut random)).collect();
        replay.write(0, &headers)?;
        let before = program.counts()?;
        let frame = Packet::default().over(family).bytes();
        let (tested, mut window) = (program.datapath().program(maps::PROGRAM)?, Window::new(0..table as u32));
        replay.run(Mode::Keeping, tested, &mut window, &frame, table as u32)?;
        let moved = program.counts()?.since(&before);
        ensure!(moved.packets() == table as u64, "{junk:?} over {family}, round {round}: {moved:?}");
        let counted =
            |(service, reason): &(u32, Reason)| *service == SERVICE_INDEX && junk.reasons().contains(reason);
        ensure!(moved.reasons.keys().all(counted), "{junk:?} over {family}, round {round}: {moved:?}");
        ensure!(moved.backends.is_empty(), "{moved:?}");
    }
    ensure!(program.hmacs()? == 0, "{} HMACs for junk", program.hmacs()?);
    ensure!(program.remembered()? == 0);
    Ok(())
}

impl Junk {
    fn header(self, random: &mut fastrand::Rng) -> Header {
        let mut bytes = [0; LEN];
        random.fill(&mut bytes);
        match self {
            Self::Everything => {
                bytes[0] = MAGIC;
                bytes[4..8].copy_from_slice(&fixture::key_id().0.to_be_bytes());
            }
            Self::Nothing => {
                let grant = fixture::grant();
                bytes[..4].copy_from_slice(&[MAGIC, if random.bool() { 0x11 } else { 0x12 }, 0, 0]);
                bytes[4..8].copy_from_slice(&fixture::key_id().0.to_be_bytes());
                bytes[8..12].copy_from_slice(&grant.issued_at.to_be_bytes());
                bytes[12..16].copy_from_slice(&grant.expires_at.to_be_bytes());
            }
        }
        let (words, _) = bytes.as_chunks::<8>();
        Header::from_verified(std::array::from_fn(|word| u64::from_le_bytes(words[word])))
    }

    /// The possible reasons for refusing its headers: those that need no HMAC.
    const fn reasons(self) -> &'static [Reason] {
        match self {
            Self::Everything => &[
                Reason::BadHeader,
                Reason::NotYetValid,
                Reason::Expired,
                Reason::Lifetime,
                Reason::BadFastTag,
            ],
            Self::Nothing => &[Reason::BadFastTag],
        }
    }
}
