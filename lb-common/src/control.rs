//! What the daemon changes under running packets, by one atomic store each: the clock, and which tables count.

/// The control page: the only value of its map, mapped into the daemon's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ControlPage {
    /// Unix time minus `jiffies * tick_ns`, nanoseconds. If the daemon stops, time goes on: tokens expire when they
    /// should. Zero: never published, and no token is valid in 1970.
    pub offset_ns: u64,
    /// Nanoseconds of one of the kernel's ticks, as `clock_getres(CLOCK_MONOTONIC_COARSE)` tells them.
    pub tick_ns: u64,
    /// The [`Tables`] that count.
    pub tables: u64,
    /// Changes after every addition to the revocations, so that what was looked up before is looked up once more; 32
    /// bits of it count. 0: there never was one.
    pub revocations: u64,
    /// When `offset_ns` was last found to be right (ticks * `tick_ns`).
    pub confirmed_ns: u64,
    /// The generation of tables that the daemon began to write last, stored before the first write. It equals the
    /// generation in `tables`, or is one ahead while the next generation is written.
    pub begun: u64,
}

const _: () = assert!(size_of::<ControlPage>() == 48 && align_of::<ControlPage>() == 8);
crate::map_value!(ControlPage);

/// Services, Maglev tables and backends are published together: each of their arrays has two banks, and one word
/// says which bank counts. The other is written in full before the word changes, so every packet is judged by one
/// whole state, and a daemon that dies while it writes has changed nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// 0 or 1.
    pub bank: u32,
    /// The seed of the service hash in this bank.
    pub seed: u32,
    /// Counts publications, so that what was checked against one is checked again after the next; 31 bits count.
    pub generation: u32,
}

impl Tables {
    /// From the word of [`ControlPage`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { bank: word as u32 & 1, seed: (word >> 1) as u32, generation: (word >> 33) as u32 }
    }

    /// Whether these tables may have been written to since they were read. `begun` is [`ControlPage::begun`] after the
    /// last read.
    ///
    /// The next generation is written to the other bank, the one after it to this bank. The daemon waits for running
    /// packets before it writes a bank again, but a hypervisor can stop a CPU for longer than any wait.
    #[inline(always)]
    pub const fn may_be_overwritten(self, begun: u64) -> bool {
        (begun as u32).wrapping_sub(self.generation) & GENERATION_MASK > 1
    }

    /// As the word of [`ControlPage`].
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.generation as u64) << 33 | (self.seed as u64) << 1 | self.bank as u64
    }
}

/// The bits of a generation that the word of [`ControlPage`] holds.
const GENERATION_MASK: u32 = u32::MAX >> 1;

/// What the program `clock` writes over the start of a test run's packet: two readings of one moment, from which the
/// daemon learns the offset to publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClockReading {
    /// Ticks since boot, from where the kernel begins to count.
    pub jiffies: u64,
    /// CLOCK_MONOTONIC_COARSE: CLOCK_MONOTONIC at the last tick, nanoseconds.
    pub monotonic_ns: u64,
}

const _: () = assert!(size_of::<ClockReading>() == 16 && align_of::<ClockReading>() == 8);

/// Nanoseconds of a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// By how much the clocks of issuers and balancers may differ (token.md).
pub const SKEW_NS: u64 = 2 * SECOND_NS;

/// How long an offset is believed that nobody confirms. The kernel's ticks follow CLOCK_MONOTONIC, which is off by at
/// most 500 ppm where nothing disciplines it (`MAXFREQ`, linux/timex.h): after this time by the skew. From then on no
/// new token is admitted; those that were go on, until they expire.
pub const OFFSET_STALE_NS: u64 = SKEW_NS * 1_000_000 / 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_bank_seed_and_generation() {
        for bank in [0, 1] {
            for seed in [0, 7, u32::MAX] {
                for generation in [0, 1, u32::MAX >> 1] {
                    let tables = Tables { bank, seed, generation };
                    assert_eq!(Tables::from_word(tables.to_word()), tables);
                }
            }
        }
        // The count of publications begins again at 0.
        let next = Tables { generation: (u32::MAX >> 1) + 1, ..Tables::default() };
        assert_eq!(Tables::from_word(next.to_word()), Tables::default());
    }

    #[test]
    fn tables_may_be_overwritten_from_the_second_generation_after_them_on() {
        for generation in [0, 5, GENERATION_MASK - 1, GENERATION_MASK] {
            let tables = Tables { generation, ..Tables::default() };
            let begun = |later: u32| u64::from(generation.wrapping_add(later) & GENERATION_MASK);
            assert!(!tables.may_be_overwritten(begun(0)));
            assert!(!tables.may_be_overwritten(begun(1)));
            assert!(tables.may_be_overwritten(begun(2)));
            assert!(tables.may_be_overwritten(begun(1000)));
        }
    }

    /// At 500 ppm, a clock that nobody corrects is off by the skew after 4,000 s.
    #[test]
    fn an_offset_is_believed_until_it_may_be_off_by_the_skew() {
        assert_eq!(OFFSET_STALE_NS, 4000 * SECOND_NS);
        assert_eq!(OFFSET_STALE_NS / 1_000_000 * 500, SKEW_NS);
    }
}
