//! Revocations of single sessions and tokens. Each is kept until the last token that it affects has expired.

/// Key of the revocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RevocationKey {
    /// The service's id.
    pub service_id: u32,
    /// `REVOKED_*`.
    pub kind: u32,
    /// The session's id, or the token's nonce, loaded little-endian.
    pub of: u64,
}

/// All tokens of a session.
pub const REVOKED_SESSION: u32 = 1;
/// One token.
pub const REVOKED_TOKEN: u32 = 2;

const _: () = assert!(size_of::<RevocationKey>() == 16 && align_of::<RevocationKey>() == 8);
crate::map_value!(RevocationKey);
