//! Mints and inspects tokens.

mod inspect;
mod mint;

use lb_common::{
    control::SECOND_NS,
    keyslot::{KeyId, KeySlot, STATE_OFF, STATE_VERIFY},
    reason::Reason,
    token::{
        header,
        keys::{DerivedKeys, MasterKey},
        mint::PrefixLength,
    },
};

pub use inspect::inspect;
pub use mint::{allowed, mint};

use crate::keyring::{ExportedKey, Key, KeyState};

/// Why a token cannot be minted, inspected or revoked.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token would be dropped as `lifetime`.
    #[error(
        "a ttl of {ttl} s is more than {max_ttl} s, the service's max_ttl: it would be dropped as `lifetime`"
    )]
    Ttl {
        /// Requested lifetime.
        ttl: u64,
        /// Maximum lifetime of the service.
        max_ttl: u64,
    },
    /// The token would expire before its first packet.
    #[error("a token must be valid for a second or longer; use a longer --ttl")]
    NoTime,
    /// The token would be dropped as `bad_fast_tag`, because no client sends from this port.
    #[error(
        "no client sends from port 0; bind to the port that the client sends from, or leave --bind-port out"
    )]
    PortZero,
    /// The token would be dropped as `policy`, because it is not bound.
    #[error("the service requires tokens bound to an address (bind = \"required\"); add --bind ADDR")]
    Unbound,
    /// The token would be dropped as `bad_fast_tag`, because no client has an address of this family.
    #[error("--bind {address}: clients of the service have {family} addresses; bind to one of those")]
    OtherFamily {
        /// The requested address.
        address: std::net::IpAddr,
        /// Family of the service.
        family: &'static str,
    },
    /// The token would be dropped as `policy`, because the service does not accept its type.
    #[error("the service does not accept {0} tokens; see `accept` in its configuration")]
    NotAccepted(&'static str),
    /// The token would be dropped as `no_backend`.
    #[error("the service has no backend {0}; see `tollgate backends list`")]
    NoSuchBackend(u16),
    /// The prefix is too long or too short.
    #[error(transparent)]
    Prefix(#[from] PrefixLength),
    /// A prefix length without an address.
    #[error("a prefix length needs an address: --bind ADDR/LEN")]
    LengthWithoutAddress,
    /// The system provided no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The clock is past 2106 or before 1970.
    #[error(
        "the clock is at {0} s since 1970, which does not fit into the 32 bits of a token; correct the clock"
    )]
    Clock(u64),
    /// An empty argument.
    #[error("the token is empty; enter the {digits} hexadecimal digits of its header", digits = 2 * header::LEN)]
    Nothing,
    /// The token is not hexadecimal.
    #[error("a token is {digits} hexadecimal digits: {0}", digits = 2 * header::LEN)]
    Hex(#[from] hex::FromHexError),
    /// Not a token, or a token of another version.
    #[error("not a token: it would be dropped as `{}`", .0.name())]
    NoToken(Reason),
    /// The key of the token is unknown.
    #[error(
        "key {0} is not known here, so its tokens are refused as `unknown_key`; to revoke one anyway, add --service S"
    )]
    UnknownKey(u32),
    /// The token belongs to another service.
    #[error("key {key_id} belongs to service `{service}`; use that service, or leave --service out")]
    OtherService {
        /// The key that signed it.
        key_id: u32,
        /// The service of the key.
        service: String,
    },
    /// The token has expired.
    #[error("the token expired at {}; there is nothing to revoke", humantime::format_rfc3339_seconds(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(*.0)))]
    Expired(u64),
    /// The token was never valid.
    #[error(
        "the token is valid for longer than the service's max_ttl of {max_ttl} s, or expires before it is \
             issued: it is refused as `lifetime`, and there is nothing to revoke"
    )]
    NeverValid {
        /// Maximum lifetime of the service.
        max_ttl: u64,
    },
    /// The token is damaged.
    #[error(
        "the fast tag is wrong: the token is refused as `bad_fast_tag`, and there is nothing to revoke; to revoke a \
         token by its claims alone, enter their 80 digits"
    )]
    Forged,
    /// The keyset has no active key.
    #[error("the keyset has no active key; export it again with `tollgate keys export`")]
    NoSigner,
}

/// A key of the keyring or of a keyset.
#[derive(Debug)]
pub struct KnownKey {
    id: KeyId,
    service_id: u32,
    state: KeyState,
    not_after: Option<u64>,
    master: MasterKey,
}

impl From<&Key> for KnownKey {
    fn from(key: &Key) -> Self {
        Self {
            id: key.id,
            service_id: key.service_id,
            state: key.state,
            not_after: key.not_after,
            master: key.master.clone(),
        }
    }
}

impl KnownKey {
    /// A key of a service's keyset.
    pub fn exported(service_id: u32, key: &ExportedKey) -> Self {
        let id = KeyId(key.key_id);
        let not_after = Some(key.not_after);
        Self { id, service_id, state: key.state, not_after, master: key.master.clone() }
    }

    /// Whether it signs.
    pub fn signs(&self) -> bool {
        self.state == KeyState::Active
    }

    fn to_slot(&self, keys: &DerivedKeys) -> KeySlot {
        KeySlot {
            key_id: self.id.0,
            state: if self.state == KeyState::Revoked { STATE_OFF } else { STATE_VERIFY },
            service_id: self.service_id,
            not_after_ns: self.not_after.map_or(u64::MAX, |end| end.saturating_mul(SECOND_NS)),
            fast: keys.fast,
            seal: keys.seal,
            full: keys.full,
            proof: keys.proof,
            ..KeySlot::default()
        }
    }
}
