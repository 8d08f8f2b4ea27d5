//! Session hashing: the position of a session in the Maglev table of its service.

/// The number of positions of a Maglev table. It is a prime, and more than 100 times the number of backends of most
/// services, so that the backends' shares differ by about one percent (Eisenbud et al., NSDI 2016, §5.3).
pub const TABLE_LEN: usize = 16_381;

/// The length of the array. It is a power of two, so that the verifier can prove that every position is within bounds.
pub const TABLE_ROOM: usize = 16_384;

/// The Maglev table of one service: for each of the [`TABLE_LEN`] positions, 1 plus the index of a backend within its
/// bank of the backend table; 0: the service has no usable backend.
pub type MaglevTable = [u16; TABLE_ROOM];

/// The position of a session: its mixed id, reduced to the table length by Lemire's fast range.
#[inline(always)]
pub const fn position(session: u64) -> u32 {
    (((mix(session) >> 32) * TABLE_LEN as u64) >> 32) as u32
}

/// The hash that spreads sessions over the source addresses of outer headers. It consists of the bits of the mix that
/// [`position`] does not use.
#[inline(always)]
pub const fn spread(session: u64) -> u32 {
    mix(session) as u32
}

/// A full-avalanche mix (the finaliser of MurmurHash3).
///
/// The mix has no key, because session ids are chosen by issuers, which have the token key, and not by clients.
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

    /// These numbers must never change, because nodes of different versions must send a session to the same backend.
    /// The mix of 1 is the value in MurmurHash3's own tests.
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
