//! The interface between the XDP program and the command of `tollgate decap`, which removes the outer headers of `ipip`
//! and `gue` on a backend.

/// The name of the program.
pub const PROGRAM: &str = "decap";
/// The name of the map with one [`Settings`].
pub const SETTINGS: &str = "settings";
/// The name of the per-CPU map: [`Outcome`] → [`Counter`](crate::counter::Counter).
pub const COUNTERS: &str = "counters";

/// The UDP port of GUE (IANA).
pub const GUE_PORT: u16 = 6080;
/// The maximum number of source prefixes of balancers. All prefixes are in one array value, and are compared in order
/// until one matches. An array lookup is inlined, while a lookup in an LPM trie is a call, and a backend has few
/// balancers.
pub const SOURCES_MAX: usize = 16;

/// The configuration of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The source prefixes of the balancers. An entry with version 0 ends the list.
    pub sources: [Source; SOURCES_MAX],
    /// The interface's MAC address, as three words in memory order.
    pub mac: [u16; 3],
    /// Zero.
    pub reserved: u16,
}

/// An address prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Source {
    /// IP version, 4 or 6; 0 for none.
    pub version: u32,
    /// The first address, in network byte order. IPv4 uses only the last word.
    pub address: [u32; 4],
    /// The mask of the bits that are compared.
    pub mask: [u32; 4],
}

impl Source {
    /// Whether an address of this IP version is in the prefix.
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

/// The outcome of a frame. Its number is the index of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// Not a tunnel packet, or for another MAC address: passed unchanged.
    Passed = 0,
    /// The outer IP header was removed.
    Ipip = 1,
    /// The outer IP and UDP headers were removed.
    Gue = 2,
    /// A tunnel packet whose source is not a configured balancer: passed unchanged.
    Foreign = 3,
    /// A tunnel packet of a balancer that is a fragment, or has IPv4 options or IPv6 extension headers: passed
    /// unchanged.
    Unsupported = 4,
    /// A tunnel packet of a balancer whose lengths or versions contradict each other, or whose outer IPv4 checksum is
    /// wrong: passed unchanged.
    Malformed = 5,
    /// The outer header has a congestion mark, and the inner packet does not support ECN: dropped (RFC 6040).
    Ecn = 6,
    /// A kernel helper failed unexpectedly: dropped.
    Internal = 7,
}

impl Outcome {
    /// All outcomes, by number.
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

    /// The name in output and documentation.
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

    /// A one-sentence explanation.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Passed => "not a tunnel packet, or for another MAC address; passed unchanged",
            Self::Ipip => "the outer IP header was removed",
            Self::Gue => "the outer IP and UDP headers were removed",
            Self::Foreign => "a tunnel packet whose source address is not in --from; passed unchanged",
            Self::Unsupported => {
                "a balancer's packet, but a fragment or with options or extension headers; passed unchanged"
            }
            Self::Malformed => {
                "a balancer's packet with a wrong length, IP version or checksum; passed unchanged"
            }
            Self::Ecn => "a congestion mark on a packet that does not support ECN; dropped (RFC 6040)",
            Self::Internal => "a kernel helper failed unexpectedly; dropped",
        }
    }

    /// The index of its counter.
    pub const fn index(self) -> u32 {
        self as u32
    }
}

/// The number of counters.
pub const COUNTERS_MAX: u32 = Outcome::ALL.len() as u32;

/// The ECN field of the decapsulated packet (RFC 6040 §4.2). `inner` and `outer` are the received traffic classes,
/// whose two low bits are ECN. `None`: the packet must be dropped, because its outer header has a congestion mark and
/// its inner header does not support ECN.
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
                // The DSCP does not matter.
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

    /// A prefix match compares the leading bits of two addresses.
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
                // With a second differing bit, in another word.
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
