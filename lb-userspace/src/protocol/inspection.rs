//! The content of a token, and the checks that it passes.

use hyper::Method;
#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Access, Request, TokenKind, text};

/// `tollgate token inspect`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InspectToken {
    /// Header of the token in hex.
    pub token: String,
    /// Source address of its packet: needed to check a token that is bound to an address.
    pub from: Option<std::net::IpAddr>,
    /// Source port of its packet: needed to check a token that is bound to a port.
    pub from_port: Option<u16>,
}

impl Request for InspectToken {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/token/inspect";
    const ACCESS: Access = Access::Read;
    type Answer = Inspection;
}

/// The content of a token, and the checks in the order of the XDP program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Inspection {
    /// The fields of the header; absent if the input is not a token.
    #[serde(flatten)]
    pub header: Option<HeaderFields>,
    /// The sealed claims; `null` without the key, or if a tag is wrong.
    pub claims: Option<OpenClaims>,
    /// The checks, up to the first that fails.
    pub steps: Vec<Step>,
    /// `valid`, the reason of the drop, or `unchecked` if a check was skipped.
    pub verdict: String,
}

/// The fields of a token header that need no key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct HeaderFields {
    /// Type of the token.
    #[serde(rename = "type")]
    pub kind: TokenKind,
    /// Id of the key that signed the token.
    pub key_id: u32,
    /// When the token was issued.
    pub issued_at: u64,
    /// When the token expires.
    pub expires_at: u64,
    /// Nonce of the token in hex.
    pub nonce: String,
    /// Length of the address prefix that the token is bound to; 0 if it is bound to none.
    pub bind_len: u8,
    /// Whether the token is bound to a port.
    pub bind_port: bool,
}

/// The sealed claims of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct OpenClaims {
    /// Id of the service that the token is for.
    pub service_id: u32,
    /// Id of the session.
    #[serde(with = "text")]
    #[cfg_attr(test, schemars(with = "text::Schema"))]
    pub session_id: u64,
    /// Rate class.
    pub class: u8,
    /// Id of the backend that the token names; 0 if it names none.
    pub backend_id: u16,
}

/// One check of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Step {
    /// What is checked.
    pub check: String,
    /// `passed`, `skipped`, or the reason of the drop.
    pub outcome: String,
    /// What the outcome means; empty if the check passed.
    pub detail: String,
}
