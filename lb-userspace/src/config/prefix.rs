//! An address prefix.

use std::{fmt, net::IpAddr};

/// An address prefix with at least one host bit; all host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// `None` if there are no host bits, or one of them is set.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (bits, width): (u128, u32) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let host = width.checked_sub(u32::from(length)).filter(|host| *host > 0)?;
        let others = u128::MAX >> (128 - host);
        (bits & others == 0).then_some(Self { address, length })
    }

    /// The first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// The host bits in the last four bytes, as a mask.
    pub const fn last_host_bits(&self) -> u32 {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        let host = width - self.length as u32;
        if host >= 32 { u32::MAX } else { (1 << host) - 1 }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_do_not_count_are_zero() {
        let prefix = |address: &str, length| Prefix::new(address.parse().unwrap(), length);
        for (address, length, bits) in [
            ("10.9.0.0", 24, Some(0xff)),
            ("10.9.0.2", 31, Some(1)),
            ("10.9.0.2", 32, None),
            ("10.9.0.2", 24, None),
            ("10.9.0.0", 33, None),
            ("fd00:9::", 64, Some(u32::MAX)),
            ("fd00:9::", 112, Some(0xffff)),
            ("fd00:9::1", 64, None),
            ("fd00:9::1", 128, None),
        ] {
            let found = prefix(address, length).map(|prefix| prefix.last_host_bits());
            assert_eq!(found, bits, "{address}/{length}");
        }
    }
}
