//! What goes over the control socket, as JSON: the stable form of what the commands print.

use serde::{Deserialize, Serialize};

use crate::keyring::KeyState;

/// The largest request, bytes: a keyset of as many keys as there are slots has half of it.
pub const BODY_MAX: usize = 2 << 20;

/// Integers that JavaScript and jq would round are strings, and both are read.
pub mod big {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const EXACT: u64 = 1 << 53;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }

    /// A number, or above 2^53 a string.
    ///
    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        if *value > EXACT { super::text::serialize(value, to) } else { to.serialize_u64(*value) }
    }

    /// Either form.
    ///
    /// # Errors
    /// For anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        match Either::deserialize(from)? {
            Either::Number(value) => Ok(value),
            Either::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// 64-bit identifiers: always strings, so that nobody meets a change of type.
pub mod text {
    use serde::{Deserializer, Serializer};

    /// A string.
    ///
    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    /// A string or a number.
    ///
    /// # Errors
    /// For anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        super::big::deserialize(from)
    }
}

/// `tollgate status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// Of the daemon.
    pub version: String,
    /// It was built from.
    pub commit: String,
    /// The layout of the maps.
    pub abi: u32,
    /// Whether it filters.
    pub ready: bool,
    /// Why it does not.
    pub not_ready: Vec<String>,
    /// The daemon's process.
    pub pid: u32,
    /// How long it has been running, seconds.
    pub uptime_seconds: u64,
    /// Where it filters.
    pub interfaces: Vec<InterfaceStatus>,
    /// What it protects.
    pub services: Vec<ServiceStatus>,
    /// All keys.
    pub keys: Vec<KeyStatus>,
    /// All backends.
    pub backends: Vec<BackendStatus>,
    /// The clock.
    pub clock: ClockStatus,
    /// What is revoked by name.
    pub revocations: RevocationCounts,
    /// Where the kernel differed from what is desired at the last comparison and could not be mended.
    pub differences: Vec<String>,
    /// What went wrong at the last comparison.
    pub errors: Vec<String>,
    /// Of the store.
    #[serde(with = "big")]
    pub store_revision: u64,
    /// Whether the store can be used.
    pub store_connected: bool,
    /// Tokens in the caches.
    #[serde(with = "big")]
    pub sessions: u64,
    /// Those of them of which something is counted: PROOF tokens, and those of services with limits.
    #[serde(with = "big", default)]
    pub sessions_tracked: u64,
    /// Room for those, and for the others.
    pub sessions_max: u32,
    /// Clients behind a port of this node, where a service has `forward = "nat"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_translations: Option<u64>,
    /// Full checks made.
    #[serde(with = "big")]
    pub hmacs: u64,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Whether the program is on it.
    pub attached: bool,
    /// `native` or `generic`.
    pub mode: Option<String>,
    /// The kernel's number for the program.
    pub program_id: Option<u32>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Where it is reached.
    pub address: String,
    /// Where it is reached.
    pub port: u16,
    /// `enforce` or `observe`.
    pub mode: String,
    /// `local`, `l2`, `ipip`, `gue` or `nat`.
    pub forward: String,
    /// Whether the token is taken off.
    pub strip: bool,
    /// The key that signs.
    pub active_key: Option<u32>,
    /// Backends that may be used.
    pub backends_up: usize,
    /// Backends.
    pub backends: usize,
    /// Its tokens issued before this unix second are revoked; 0 for none.
    pub revoked_before: u32,
}

/// A key, without its secret. Times are unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// The service's name, or its number where the configuration has none of it.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// Its id.
    pub key_id: u32,
    /// What it may do.
    pub state: KeyState,
    /// Whether the kernel verifies with it.
    pub installed: bool,
    /// When it was made or imported.
    pub created_at: u64,
    /// When it began to sign.
    pub activated_at: Option<u64>,
    /// When it ends.
    pub not_after: Option<u64>,
    /// Whether another node made it.
    pub imported: bool,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// The service's name.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// Its id.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Its share.
    pub weight: u32,
    /// `up`, or why not, in a word.
    pub state: String,
    /// Why not, and what to look at.
    pub detail: String,
    /// Whether it gets sessions.
    pub up: bool,
    /// Its MAC address or that of the router before it, where known.
    pub mac: Option<String>,
    /// The interface that its frames leave through.
    pub interface: Option<String>,
    /// The router before it, if there is one.
    pub gateway: Option<String>,
    /// The VLAN tags of its frames, the outermost first, as in `802.1Q 10`.
    pub tags: Vec<String>,
    /// The longest IP packet that the way takes.
    pub mtu: Option<u16>,
    /// Where packets for it come from, if they are not the client's own: an address, or a prefix of addresses.
    pub source: Option<String>,
    /// Packets sent to it.
    #[serde(with = "big")]
    pub packets: u64,
    /// Bytes sent to it, as they came in.
    #[serde(with = "big")]
    pub bytes: u64,
}

/// `tollgate counters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// What was for no service.
    pub not_ours: Count,
    /// Dropped as `unsupported` under so many VLAN tags that nobody can tell whose they were.
    pub buried: Count,
    /// By service.
    pub services: Vec<ServiceCounters>,
}

/// A service's counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounters {
    /// Its name.
    pub service: String,
    /// Its id.
    pub service_id: u32,
    /// By reason: all of them, in the order of their numbers, but `not_ours`.
    pub reasons: Vec<ReasonCount>,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    #[serde(with = "big")]
    pub packets: u64,
    /// Bytes of their frames, as they came in.
    #[serde(with = "big")]
    pub bytes: u64,
}

/// Packets and bytes of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Its name.
    pub reason: String,
    /// How many.
    #[serde(flatten)]
    pub count: Count,
}

/// `tollgate keys rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateRequest {
    /// The service, by name or id; all services if not given.
    pub service: Option<String>,
}

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The service's name.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// The new key.
    pub key_id: u32,
    /// `active`, or `staged` while a kernel does not have it.
    pub state: KeyState,
    /// The key before it.
    pub previous: Option<u32>,
}

/// `tollgate keys revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeRequest {
    /// The key.
    pub key_id: u32,
}

/// What a revocation did. The kernel refuses the key by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The key.
    pub key_id: u32,
    /// The service it belongs to.
    pub service_id: u32,
    /// What it was.
    pub was: KeyState,
    /// The key that signs now.
    pub active_key: Option<u32>,
}

/// `tollgate keys export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRequest {
    /// The service, by name or id.
    pub service: String,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Keys that are new here.
    pub added: Vec<u32>,
    /// Keys that were here.
    pub known: Vec<u32>,
    /// Keys that were left out, for they were revoked or have ended.
    pub skipped: Vec<u32>,
}

/// How many revocations are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationCounts {
    /// Sessions.
    pub sessions: u32,
    /// Tokens.
    pub tokens: u32,
    /// For both together.
    pub room: u32,
}

/// A revocation: of a session, or of one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationStatus {
    /// The service's name, or its number where the configuration has none of it.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// The session, where one is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The token's nonce in hex, where one is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Unix second.
    pub until: u64,
}

/// `tollgate sessions revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeSessionsRequest {
    /// The service, by name or id.
    pub service: String,
    /// The sessions: all or none.
    pub sessions: Vec<u64>,
    /// For how long; as long as a token of theirs may live if not given.
    pub seconds: Option<u64>,
}

/// `tollgate sessions unrevoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnrevokeSessionsRequest {
    /// The service, by name or id.
    pub service: String,
    /// The sessions: all or none.
    pub sessions: Vec<u64>,
}

/// `tollgate token revoke` and `tollgate token unrevoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeTokenRequest {
    /// Its header, or the 40 bytes of its claims, in hex.
    pub token: String,
    /// The service, by name or id; that of its key if not given.
    pub service: Option<String>,
}

/// `tollgate services revoke-before`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeBeforeRequest {
    /// The service, by name or id.
    pub service: String,
    /// Unix second; the next one if not given.
    pub at: Option<u64>,
}

/// What `services revoke-before` did. The kernel refuses those tokens by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedBefore {
    /// The service's name.
    pub service: String,
    /// The service.
    pub service_id: u32,
    /// Its tokens issued before this unix second are refused.
    pub revoked_before: u32,
}

/// `tollgate sessions list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// How many there are.
    pub matching: u64,
    /// As many of them as were asked for.
    pub sessions: Vec<SessionStatus>,
}

/// A token in a cache. Times are unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// The service's name, or its number where the configuration has none of it.
    pub service: String,
    /// The service; 0 where its key is no longer here.
    pub service_id: u32,
    /// The session.
    #[serde(with = "text")]
    pub session_id: u64,
    /// `bearer` or `proof`.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// The rate class.
    pub class: u8,
    /// The backend it is pinned to; 0: none.
    pub backend: u16,
    /// The key that signed it.
    pub key_id: u32,
    /// The nonce, in hex.
    pub nonce: String,
    /// When it was issued.
    pub issued_at: u64,
    /// When it ends.
    pub expires_at: u64,
    /// Addresses it is used from, where `max_sources` has them counted.
    pub sources: usize,
    /// Whether its packets are refused as `revoked`.
    pub revoked: bool,
}

/// `tollgate clock`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// The wall clock, unix seconds.
    pub wall: f64,
    /// The program's clock, unix seconds.
    pub program: f64,
    /// The wall clock less the program's.
    pub difference_seconds: f64,
    /// Whether the program keeps the time it had, because the wall clock was set back.
    pub held: bool,
    /// Since the program's clock was last found to be right.
    pub confirmed_age_seconds: f64,
    /// Whether that is so long ago that new tokens are refused.
    pub stale: bool,
    /// How often the wall clock was set forward while this daemon ran.
    pub jumps_forward: u64,
    /// How often it was set back.
    pub jumps_backward: u64,
}

/// What `clock accept` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAccepted {
    /// By how much the program's clock went back.
    pub seconds_back: u64,
    /// What all services issued before this unix second is refused.
    pub revoked_before: u64,
}

/// What a token is to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MintRequest {
    /// The service, by name or id.
    pub service: String,
    /// The session.
    #[serde(with = "text")]
    pub session: u64,
    /// `bearer` or `proof`.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// Seconds.
    pub ttl: u64,
    /// The address that its client must send from,
    pub bind: Option<std::net::IpAddr>,
    /// so many bits of it; all that can be bound if not given,
    pub bind_len: Option<u8>,
    /// and the port.
    pub bind_port: Option<u16>,
    /// The rate class.
    pub class: u8,
    /// The backend to be pinned to; 0: none.
    pub backend: u16,
}

/// The type of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// Whoever holds it is in.
    #[default]
    Bearer,
    /// Each packet proves that its sender holds the session key.
    Proof,
}

/// A minted token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    /// The 64 bytes of a BEARER header; of a PROOF token the first header's, with `seq` 0 and an empty payload.
    pub header: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// The key that signed it.
    pub key_id: u32,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// PROOF: the claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<String>,
    /// PROOF: the fast tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_tag: Option<String>,
    /// PROOF: the session's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
}

impl std::fmt::Debug for Minted {
    /// Without what lets somebody in.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minted")
            .field("kind", &self.kind)
            .field("key_id", &self.key_id)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The cause and the next thing to try.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_integers_are_strings() {
        let count = Count { packets: 1 << 53, bytes: (1 << 53) + 1 };
        let json = serde_json::to_string(&count).unwrap();
        assert_eq!(json, r#"{"packets":9007199254740992,"bytes":"9007199254740993"}"#);
        assert_eq!(serde_json::from_str::<Count>(&json).unwrap(), count);
    }
}
