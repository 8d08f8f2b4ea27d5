//! The control page: values that the daemon changes by single atomic stores while packets are processed. They are the
//! clock and the choice of the active tables.

/// The control page: the only value of its map, mapped into the daemon's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ControlPage {
    /// Unix time minus `jiffies * tick_ns`, in nanoseconds. Time advances without the daemon, so tokens expire on time
    /// even if the daemon stops. 0: never published; the resulting time is in 1970, when no token is valid.
    pub offset_ns: u64,
    /// The length of one kernel tick in nanoseconds, as reported by `clock_getres(CLOCK_MONOTONIC_COARSE)`.
    pub tick_ns: u64,
    /// The active [`Tables`].
    pub tables: u64,
    /// Changes after every addition to the revocations, so that earlier lookups are repeated. Only its low 32 bits are
    /// compared. 0: there has been no addition.
    pub revocations: u64,
    /// When the daemon last confirmed `offset_ns` (`jiffies * tick_ns`).
    pub confirmed_ns: u64,
    /// The generation of the tables that the daemon began to write most recently. It is stored before the first write.
    /// It equals the generation in `tables`, or is one ahead while the next generation is written.
    pub begun: u64,
}

const _: () = assert!(size_of::<ControlPage>() == 48 && align_of::<ControlPage>() == 8);
crate::map_value!(ControlPage);

/// The active bank of the tables, and how to read it. Services, Maglev tables and backends are published together: each
/// of their arrays has two banks, and one word selects the active bank. The daemon writes the inactive bank completely
/// before it changes the word. Therefore every packet sees one consistent state, and a daemon that dies during a write
/// has not changed that state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// 0 or 1.
    pub bank: u32,
    /// The seed of the service hash in this bank.
    pub seed: u32,
    /// Counts publications, so that a check against one publication is repeated after the next. It has 31 bits.
    pub generation: u32,
}

impl Tables {
    /// Decodes the word in [`ControlPage`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { bank: word as u32 & 1, seed: (word >> 1) as u32, generation: (word >> 33) as u32 }
    }

    /// Whether the daemon may have written to these tables since they were read. `begun` is [`ControlPage::begun`],
    /// read after the last table lookup.
    ///
    /// The next generation is written to the other bank, and the generation after that to this bank. The daemon waits
    /// for running packets before it writes a bank again, but a hypervisor can stop a CPU for longer than any wait.
    #[inline(always)]
    pub const fn may_be_overwritten(self, begun: u64) -> bool {
        (begun as u32).wrapping_sub(self.generation) & GENERATION_MASK > 1
    }

    /// Encodes the word in [`ControlPage`].
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.generation as u64) << 33 | (self.seed as u64) << 1 | self.bank as u64
    }
}

/// The bits of a generation that the word of [`ControlPage`] holds.
const GENERATION_MASK: u32 = u32::MAX >> 1;

/// The value that the program `clock` writes over the start of its packet in a test run: two clocks, read at the same
/// moment. The daemon derives the offset to publish from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClockReading {
    /// Ticks since boot, plus the kernel's initial value (`INITIAL_JIFFIES`).
    pub jiffies: u64,
    /// CLOCK_MONOTONIC_COARSE: CLOCK_MONOTONIC at the last tick, nanoseconds.
    pub monotonic_ns: u64,
}

const _: () = assert!(size_of::<ClockReading>() == 16 && align_of::<ClockReading>() == 8);

/// Nanoseconds per second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// The tolerated difference between the clocks of issuers and balancers (token.md).
pub const SKEW_NS: u64 = 2 * SECOND_NS;

/// How long an offset is used without confirmation by the daemon. The kernel's ticks follow CLOCK_MONOTONIC, whose
/// error without discipline is at most 500 ppm (`MAXFREQ`, linux/timex.h): after this time, the error can reach
/// [`SKEW_NS`]. From then on, no new token is admitted. Admitted tokens stay valid until they expire.
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
        // The generation wraps to 0.
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

    /// At 500 ppm, an uncorrected clock is off by the skew after 4,000 s.
    #[test]
    fn an_offset_is_believed_until_it_may_be_off_by_the_skew() {
        assert_eq!(OFFSET_STALE_NS, 4000 * SECOND_NS);
        assert_eq!(OFFSET_STALE_NS / 1_000_000 * 500, SKEW_NS);
    }
}
