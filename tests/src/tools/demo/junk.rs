//! Datagrams that must not reach a backend.

use lb_common::reason::Reason;

/// A kind of junk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Junk {
    /// No token at all.
    Tokenless,
    /// A valid token, truncated.
    Truncated,
    /// The claims of a valid token with invented tags.
    Forged,
    /// A token that was valid an hour ago.
    Expired,
    /// A token that the correct key has signed for another service.
    WrongService,
}

impl Junk {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 5] =
        [Self::Tokenless, Self::Truncated, Self::Forged, Self::Expired, Self::WrongService];

    /// Name in the output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tokenless => "without a token",
            Self::Truncated => "truncated",
            Self::Forged => "forged",
            Self::Expired => "expired",
            Self::WrongService => "wrong service",
        }
    }

    /// The reason that the program must count for it.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Tokenless | Self::Truncated => Reason::NoToken,
            Self::Forged => Reason::BadFastTag,
            Self::Expired => Reason::Expired,
            Self::WrongService => Reason::WrongService,
        }
    }

    /// The sequence number in its payload, which identifies it where it should not have arrived. Valid datagrams count
    /// from 0 and stay far below.
    pub const fn sequence(self) -> u32 {
        u32::MAX - self as u32
    }

    /// The kind that has this sequence number.
    pub fn of_sequence(sequence: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.sequence() == sequence)
    }
}
