//! The contents of a token, and the checks that it passes.

use std::net::IpAddr;

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{Access, Request, TokenKind, text};

/// `tollgate token inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectToken {
    /// The header, in hex.
    pub token: String,
    /// Where its packet came from: needed for the tags of a token that is bound to it.
    pub from: Option<IpAddr>,
    /// And from which port.
    pub from_port: Option<u16>,
}

impl Request for InspectToken {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/token/inspect";
    const ACCESS: Access = Access::Read;
    type Answer = Inspection;
}

/// What is in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// What anybody can read; nothing where it is no token.
    #[serde(flatten)]
    pub header: Option<HeaderFields>,
    /// The sealed claims, where a key opens them and the tags are right.
    pub claims: Option<OpenClaims>,
    /// Each check in the program's order, up to the first that fails.
    pub steps: Vec<Step>,
    /// `valid`, the reason it would be dropped, or `unchecked` where something could not be checked.
    pub verdict: String,
}

/// What anybody can read in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderFields {
    /// `bearer` or `proof`.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// The key that signed it.
    pub key_id: u32,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// The nonce, in hex.
    pub nonce: String,
    /// Bits of the bound prefix; 0: not bound to an address.
    pub bind_len: u8,
    /// Whether it is bound to a port.
    pub bind_port: bool,
}

/// The sealed claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenClaims {
    /// The audience.
    pub service_id: u32,
    /// The session.
    #[serde(with = "text")]
    pub session_id: u64,
    /// The rate class.
    pub class: u8,
    /// The backend it is pinned to; 0: none.
    pub backend_id: u16,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was checked.
    pub check: String,
    /// `passed`, `skipped`, or the reason of the drop.
    pub outcome: String,
    /// What that means.
    pub detail: String,
}
