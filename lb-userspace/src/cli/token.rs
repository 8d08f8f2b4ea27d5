//! `tollgate token`: mints, inspects and revokes single tokens.

use std::{
    net::IpAddr,
    path::PathBuf,
    slice,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use tollgate::{
    api::client::ClientError,
    keyring::Keyset,
    protocol::{InspectToken, Inspection, MintToken, Minted, RevokeToken, Step, TokenKind, UnrevokeToken},
    token::{self, KnownKey, TokenError},
};

use super::{
    Global, keys,
    output::{self, columns},
    sessions,
};

/// Subcommands.
#[derive(clap::Subcommand)]
pub enum Token {
    /// Mint a token with the key of the daemon, or of a keyset
    Mint(Mint),
    /// Show the content of a token, and which checks of the XDP program it passes
    Inspect {
        /// Header of the token in hex, 64 bytes
        hex: String,
        /// Check with the keys of this file, the output of `keys export`, instead of those of the daemon
        #[arg(long, value_name = "FILE")]
        keyset: Option<PathBuf>,
        /// Source address of its packet, for a token that is bound to an address
        #[arg(long, value_name = "ADDR")]
        from: Option<IpAddr>,
        /// Source port of its packet, for a token that is bound to a port
        #[arg(long, value_name = "PORT")]
        from_port: Option<u16>,
    },
    /// Revoke one token, from the next packet on until it expires
    Revoke {
        /// Header of the token in hex, 64 bytes, or only its claims, 40 bytes
        hex: String,
        /// The service, by name or id [default: the service of the key of the token]
        #[arg(long, value_name = "S")]
        service: Option<String>,
    },
    /// Undo `token revoke`: the token is admitted again, from the next packet on
    Unrevoke {
        /// Header of the token in hex, 64 bytes, or only its claims, 40 bytes
        hex: String,
        /// The service, by name or id [default: the service of the key of the token]
        #[arg(long, value_name = "S")]
        service: Option<String>,
    },
}

/// Content of the token.
#[derive(clap::Args)]
pub struct Mint {
    /// The service, by name or id
    #[arg(long, value_name = "S")]
    service: String,
    /// Id of the session; all its packets go to one backend
    #[arg(long, value_name = "N")]
    session: u64,
    /// bearer: a copy of the token is enough; proof: each packet proves that its sender has the session key
    #[arg(long = "type", value_name = "TYPE", default_value = "bearer", value_parser = kind)]
    kind: TokenKind,
    /// Time until the token expires
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Bind the token to the address of the client, or a prefix of it
    #[arg(long, value_name = "ADDR[/LEN]", value_parser = prefix)]
    bind: Option<(IpAddr, Option<u8>)>,
    /// Bind the token to the port of the client
    #[arg(long, value_name = "PORT")]
    bind_port: Option<u16>,
    /// Rate class
    #[arg(long, value_name = "N", default_value_t = 0)]
    class: u8,
    /// Send the session to this backend [default: 0, decided by the Maglev table]
    #[arg(long, value_name = "ID", default_value_t = 0)]
    backend: u16,
    /// Sign with the active key of this file, the output of `keys export`, without a daemon
    #[arg(long, value_name = "FILE")]
    keyset: Option<PathBuf>,
}

/// Runs the command.
pub fn run(global: &Global, command: Token) -> anyhow::Result<()> {
    match command {
        Token::Mint(mint) => {
            let minted = minted(global, &mint)?;
            output::print(global.output, &minted, mint_lines)
        }
        Token::Inspect { hex, keyset, from, from_port } => {
            let request = InspectToken { token: hex, from, from_port };
            let inspection = inspection(global, &request, keyset)?;
            output::print(global.output, &inspection, inspection_lines)
        }
        Token::Revoke { hex, service } => {
            let revoked = global.client()?.ask(&RevokeToken { token: hex, service })?;
            output::print(global.output, &revoked, |revoked| sessions::revocations(slice::from_ref(revoked)))
        }
        Token::Unrevoke { hex, service } => {
            let lifted = global.client()?.ask(&UnrevokeToken { token: hex, service })?;
            output::print(global.output, &lifted, |lifted| sessions::no_longer(slice::from_ref(lifted)))
        }
    }
}

fn minted(global: &Global, mint: &Mint) -> anyhow::Result<Minted> {
    let (bind, bind_len) = mint.bind.unzip();
    let request = MintToken {
        service: mint.service.clone(),
        session_id: mint.session,
        kind: mint.kind,
        ttl: mint.ttl.as_secs(),
        bind,
        bind_len: bind_len.flatten(),
        bind_port: mint.bind_port,
        class: mint.class,
        backend_id: mint.backend,
    };
    let Some(file) = &mint.keyset else {
        return Ok(global.client()?.ask(&request)?);
    };
    let keyset = keys::read_keyset(file)?;
    if keyset.service != mint.service && keyset.service_id.to_string() != mint.service {
        bail!(
            "{}: the keyset is of service {} ({}), not of {}; export the keys of that service",
            file.display(),
            keyset.service,
            keyset.service_id,
            mint.service
        );
    }
    let now = unix_now()?;
    let signer = keyset.keys.iter().map(|key| (key, KnownKey::exported(keyset.service_id, key)));
    let (exported, key) = signer.into_iter().find(|(_, key)| key.signs()).ok_or(TokenError::NoSigner)?;
    if exported.sign_until <= now {
        bail!(
            "{}: the key may only sign until {}; export the keys again with `tollgate keys export`",
            file.display(),
            output::date(exported.sign_until)
        );
    }
    Ok(token::mint(&request, &key, now)?)
}

fn inspection(
    global: &Global,
    request: &InspectToken,
    keyset: Option<PathBuf>,
) -> anyhow::Result<Inspection> {
    if let Some(file) = keyset {
        let Keyset { service_id, keys, .. } = keys::read_keyset(&file)?;
        let keys: Vec<_> = keys.iter().map(|key| KnownKey::exported(service_id, key)).collect();
        return Ok(token::inspect(request, Some(&keys), &[], None, unix_now()?)?);
    }
    match global.client()?.ask(request) {
        // The fields that need no key can be shown without a daemon.
        Err(ClientError::NoDaemon { .. }) => Ok(token::inspect(request, None, &[], None, unix_now()?)?),
        answer => Ok(answer?),
    }
}

fn unix_now() -> anyhow::Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("the clock is before 1970; set it")?.as_secs())
}

/// The header alone on the first line, for `$(..)` in a shell.
fn mint_lines(minted: &Minted) -> Vec<String> {
    let mut lines = vec![minted.header.clone()];
    let more =
        [("claims", &minted.claims), ("fast_tag", &minted.fast_tag), ("session_key", &minted.session_key)];
    lines.extend(more.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?))));
    lines
}

fn inspection_lines(inspection: &Inspection) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(header) = &inspection.header {
        lines.extend([
            format!("type       {}", header.kind.name()),
            format!("key        {}", header.key_id),
            format!("issued     {}", output::date(header.issued_at)),
            format!("expires    {}", output::date(header.expires_at)),
            format!("nonce      {}", header.nonce),
            match (header.bind_len, header.bind_port) {
                (0, false) => "bound to   nothing".to_owned(),
                (0, true) => "bound to   the port".to_owned(),
                (len, false) => format!("bound to   {len} bits of the address"),
                (len, true) => format!("bound to   {len} bits of the address, and the port"),
            },
        ]);
    }
    if let Some(claims) = &inspection.claims {
        lines.extend([
            format!("service    {}", claims.service_id),
            format!("session    {}", claims.session_id),
            format!("class      {}", claims.class),
            format!("backend    {}", claims.backend_id),
        ]);
    }
    let row = |step: &Step| vec![step.check.clone(), step.outcome.clone(), step.detail.clone()];
    let steps: Vec<_> = inspection.steps.iter().map(row).collect();
    lines.push(String::new());
    lines.extend(columns(&["CHECK", "OUTCOME", "DETAIL"], &steps));
    lines.extend([String::new(), format!("verdict    {}", inspection.verdict)]);
    lines
}

fn kind(text: &str) -> Result<TokenKind, String> {
    match text {
        "bearer" => Ok(TokenKind::Bearer),
        "proof" => Ok(TokenKind::Proof),
        _ => Err("bearer or proof".to_owned()),
    }
}

fn prefix(text: &str) -> Result<(IpAddr, Option<u8>), String> {
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => {
            (address, Some(len.parse().map_err(|_| format!("{len:?} is not a prefix length"))?))
        }
        None => (text, None),
    };
    let address = address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
    Ok((address, len))
}
