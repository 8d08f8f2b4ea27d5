//! Datagrams that must not reach a backend.

use lb_common::reason::Reason;

/// A kind of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Junk {
    /// No token at all.
    Tokenless,
    /// A valid token, cut short.
    Truncated,
    /// A valid token's claims under tags made up.
    Forged,
    /// A token that was valid an hour ago.
    Expired,
    /// A token that the right key has signed for another service.
    WrongService,
}

impl Junk {
    /// All kinds, in the order they are declared in.
    pub const ALL: [Self; 5] =
        [Self::Tokenless, Self::Truncated, Self::Forged, Self::Expired, Self::WrongService];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tokenless => "without a token",
            Self::Truncated => "truncated",
            Self::Forged => "forged",
            Self::Expired => "expired",
            Self::WrongService => "wrong service",
        }
    }

    /// What the program is to count it as.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Tokenless | Self::Truncated => Reason::NoToken,
            Self::Forged => Reason::BadFastTag,
            Self::Expired => Reason::Expired,
            Self::WrongService => Reason::WrongService,
        }
    }

    /// The sequence number in its payload, by which it is known where it should not have come. Valid datagrams count
    /// from 0 and stay far below.
    pub const fn sequence(self) -> u32 {
        u32::MAX - self as u32
    }

    /// The kind that has this sequence number.
    pub fn of_sequence(sequence: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.sequence() == sequence)
    }
}
