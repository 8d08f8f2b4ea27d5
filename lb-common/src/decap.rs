//! The contract of `tollgate decap`, which takes the outer headers of `ipip` and `gue` off at a backend.

/// The program.
pub const PROGRAM: &str = "decap";
/// One [`Settings`].
pub const SETTINGS: &str = "settings";
/// Per CPU: [`Outcome`] → [`Counter`](crate::counter::Counter).
pub const COUNTERS: &str = "counters";

/// Where GUE is received (IANA).
pub const GUE_PORT: u16 = 6080;
/// Prefixes that balancers may send from. They lie in one array value, whose look-up is inlined, and are compared one
/// after the other up to the first that fits; a trie's look-up is a call. A backend has few balancers.
pub const SOURCES_MAX: usize = 16;

/// What the program is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The balancers. The first with version 0 ends them.
    pub sources: [Source; SOURCES_MAX],
    /// The interface's MAC address, as three words in memory order.
    pub mac: [u16; 3],
    /// Zero.
    pub reserved: u16,
}

/// A range of addresses: those that begin alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Source {
    /// IP version, 4 or 6; 0 for none.
    pub version: u32,
    /// The first address, as its bytes lie in memory; IPv4 has the last word alone.
    pub address: [u32; 4],
    /// The bits that count.
    pub mask: [u32; 4],
}

impl Source {
    /// Whether an address of this version is in the range.
    #[inline(always)]
    pub const fn holds(&self, version: u32, address: [u32; 4]) -> bool {
        let [a, b, c, d] = address;
        let [e, f, g, h] = self.address;
        let [i, j, k, l] = self.mask;
        self.version == version && ((a ^ e) & i) | ((b ^ f) & j) | ((c ^ g) & k) | ((d ^ h) & l) == 0
    }
}

const _: () = {
    assert!(size_of::<Source>() == 36 && align_of::<Source>() == 4);
    assert!(size_of::<Settings>() == SOURCES_MAX * 36 + 8 && align_of::<Settings>() == 4);
};
crate::map_value!(Settings);

/// What became of a frame. Numbers are places among the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// No tunnel's packet, or for another host: passed on.
    Passed = 0,
    /// An IP header was taken off.
    Ipip = 1,
    /// An IP and a UDP header were taken off.
    Gue = 2,
    /// A tunnel's packet from nobody who is configured: passed on as it is.
    Foreign = 3,
    /// Fragments, options, extension headers, from a balancer: passed on as it is.
    Unsupported = 4,
    /// Lengths, versions or a checksum that contradict each other, from a balancer: passed on as it is.
    Malformed = 5,
    /// Dropped as RFC 6040 asks.
    Ecn = 6,
    /// A helper failed where it never should: dropped.
    Internal = 7,
}

impl Outcome {
    /// All of them, by number.
    pub const ALL: [Self; 8] = [
        Self::Passed,
        Self::Ipip,
        Self::Gue,
        Self::Foreign,
        Self::Unsupported,
        Self::Malformed,
        Self::Ecn,
        Self::Internal,
    ];

    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Foreign => "foreign",
            Self::Unsupported => "unsupported",
            Self::Malformed => "malformed",
            Self::Ecn => "ecn",
            Self::Internal => "internal",
        }
    }

    /// What happened, in one sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Passed => "no tunnel's packet, or for another host; passed on untouched",
            Self::Ipip => "an outer IP header was taken off",
            Self::Gue => "outer IP and UDP headers were taken off",
            Self::Foreign => "a tunnel's packet from nobody in --from; passed on untouched",
            Self::Unsupported => {
                "a balancer's, with fragments, options or extension headers; passed on untouched"
            }
            Self::Malformed => {
                "a balancer's, whose lengths or versions contradict each other; passed on untouched"
            }
            Self::Ecn => "congestion on the way of a packet that cannot say so; dropped (RFC 6040)",
            Self::Internal => "something failed that never should; dropped",
        }
    }

    /// Where it is counted.
    pub const fn index(self) -> u32 {
        self as u32
    }
}

/// Counters of all outcomes.
pub const COUNTERS_MAX: u32 = Outcome::ALL.len() as u32;

/// The ECN field that a packet goes on with (RFC 6040 §4.2): `inner` and `outer` are traffic classes as they came, of
/// which the two last bits are ECN. `None`: it is to be dropped, for it met congestion that it cannot tell of.
#[inline(always)]
pub const fn ecn(inner: u8, outer: u8) -> Option<u8> {
    match (inner & CE, outer & CE) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040, figure 4: a row for each inner field, a column for each outer one.
    #[test]
    fn ecn_is_that_of_the_rfc() {
        let order = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (inner, row) in order.into_iter().zip(table) {
            for (outer, expected) in order.into_iter().zip(row) {
                // DSCP has no say.
                assert_eq!(ecn(inner | 0xb8, outer | 0x28), expected, "{inner:02b} in {outer:02b}");
            }
        }
    }

    #[test]
    fn outcomes_are_at_their_places() {
        for (place, outcome) in (0..).zip(Outcome::ALL) {
            assert_eq!(outcome.index(), place);
        }
    }

    #[test]
    fn a_range_holds_what_begins_alike() {
        let be = |address: [u8; 4]| [0, 0, 0, u32::from_ne_bytes(address)];
        let range = Source { version: 4, address: be([10, 9, 0, 0]), mask: be([255, 255, 255, 0]) };
        assert!(range.holds(4, be([10, 9, 0, 0])) && range.holds(4, be([10, 9, 0, 255])));
        assert!(!range.holds(4, be([10, 9, 1, 0])) && !range.holds(6, be([10, 9, 0, 0])));
        assert!(!Source::default().holds(4, be([0; 4])) && !Source::default().holds(6, be([0; 4])));
    }

    /// The same as the RFCs have it: the first bits of two numbers.
    #[test]
    fn every_bit_of_an_address_counts() {
        let words = |bits: u128| core::array::from_fn(|i| ((bits >> (96 - 32 * i)) as u32).to_be());
        let address = 0x2001_0db8_8000_0001_7fff_fffe_5555_aaaa_u128;
        for len in 0..=128 {
            let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
            let range = Source { version: 6, address: words(address & mask), mask: words(mask) };
            assert!(range.holds(6, words(address)) && !range.holds(4, words(address)));
            for bit in 0..128 {
                let other = address ^ 1 << (127 - bit);
                assert_eq!(range.holds(6, words(other)), bit >= len, "bit {bit} of /{len}");
                // The same difference in two words.
                let other = other ^ 1 << ((127 - bit + 32) % 128);
                assert_eq!(
                    range.holds(6, words(other)),
                    bit.min((bit + 96) % 128) >= len,
                    "bit {bit} of /{len}"
                );
            }
        }
    }

    #[test]
    fn outcomes_have_names_and_meanings() {
        let names: std::collections::BTreeSet<_> =
            Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        assert!(names.iter().all(|name| name.len() > 2 && name.chars().all(|c| c.is_ascii_lowercase())));
        let page = include_str!("../../docs/operations.md");
        for outcome in Outcome::ALL {
            assert!(page.contains(&format!("| `{}` |", outcome.name())), "docs/operations.md: {outcome:?}");
        }
        let meanings: std::collections::BTreeSet<_> =
            Outcome::ALL.iter().map(|outcome| outcome.meaning()).collect();
        assert_eq!(meanings.len(), Outcome::ALL.len());
        assert!(meanings.iter().all(|meaning| meaning.contains(' ')));
    }
}
