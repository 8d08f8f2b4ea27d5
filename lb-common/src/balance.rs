//! From a session to an index in the Maglev table of its service.

/// Positions of a Maglev table: a prime, more than 100 times the backends of most services, so that shares differ
/// by about a percent (Eisenbud et al., NSDI 2016, §5.3).
pub const TABLE_LEN: usize = 16_381;

/// Length of the array: a power of two, so the verifier can tell that every position is inside.
pub const TABLE_ROOM: usize = 16_384;

/// The Maglev table of one service: for each of [`TABLE_LEN`] positions the place of a backend in its bank of the
/// backends, and one more; 0 where the service has none.
pub type MaglevTable = [u16; TABLE_ROOM];

/// The position of a session: its mix, then Lemire's fast range.
#[inline(always)]
pub const fn position(session: u64) -> u32 {
    (((mix(session) >> 32) * TABLE_LEN as u64) >> 32) as u32
}

/// The hash that spreads sessions over the sources of outer headers: other bits of the mix than the position.
#[inline(always)]
pub const fn spread(session: u64) -> u32 {
    mix(session) as u32
}

/// A full-avalanche mix (the finaliser of MurmurHash3).
///
/// Sessions are chosen by issuers that hold the key, so the mix need not be keyed.
#[inline(always)]
pub const fn mix(session: u64) -> u64 {
    let mut x = session;
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_in_range_and_spread() {
        let mut hits = vec![0u32; TABLE_LEN];
        for session in 0..TABLE_LEN as u64 * 64 {
            hits[position(session) as usize] += 1;
        }
        let (least, most) = (hits.iter().min().unwrap(), hits.iter().max().unwrap());
        assert!(*least > 16 && *most < 128, "64 expected at each, found {least}..{most}");
        assert!((position(u64::MAX) as usize) < TABLE_LEN);
    }

    /// Nodes of different versions send a session to the same backend: these numbers never change. The mix of 1 is that
    /// of MurmurHash3's own tests.
    #[test]
    fn a_session_has_its_position_for_good() {
        for (session, mixed, at) in [
            (0, 0, 0),
            (1, 0xb456_bcfc_34c2_cb2c, 11_539),
            (2, 0x3abf_2a20_6506_83e7, 3759),
            (7, 0x7407_29cb_e468_d1dd, 7424),
            (0xdead_beef, 0xd24b_d59f_862a_1dac, 13_456),
            (u64::MAX, 0x64b5_720b_4b82_5f21, 6444),
        ] {
            assert_eq!((mix(session), position(session), spread(session)), (mixed, at, mixed as u32));
        }
    }
}
