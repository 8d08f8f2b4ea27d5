//! `tollgate sessions`.

use std::time::Duration;

use tollgate::protocol::{
    ListRevocations, ListSessions, RevocationStatus, RevokeSessions, SessionList, SessionStatus, TokenKind,
    UnrevokeSessions,
};

use super::{
    Global,
    output::{self, columns},
};

/// What to do.
#[derive(clap::Subcommand)]
pub enum Sessions {
    /// The tokens in the kernel's cache, or what is revoked
    List {
        /// Only this service's, by name or id
        #[arg(long, value_name = "S")]
        service: Option<String>,
        /// Instead, the sessions and tokens that are revoked, all of them
        #[arg(long, conflicts_with = "limit")]
        revoked: bool,
        /// So many tokens at most, and never more than 10,000
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: usize,
    },
    /// Refuse all tokens of sessions, from the next packet on; without --for, until no token from before can come back
    Revoke {
        /// The sessions, as their tokens name them
        #[arg(required = true, value_name = "N")]
        sessions: Vec<u64>,
        /// The service, by name or id
        #[arg(long, value_name = "S")]
        service: String,
        /// For how long; new tokens of the session are refused as well
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        duration: Option<Duration>,
    },
    /// Lift what `sessions revoke` did: tokens of the sessions are admitted again, from the next packet on
    Unrevoke {
        /// The sessions, all or none
        #[arg(required = true, value_name = "N")]
        sessions: Vec<u64>,
        /// The service, by name or id
        #[arg(long, value_name = "S")]
        service: String,
    },
}

/// Does it.
pub fn run(global: &Global, command: Sessions) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Sessions::List { service, revoked: true, .. } => {
            let list = client.ask(&ListRevocations { service })?;
            output::print(global.output, &list, |list| revocations(list))
        }
        Sessions::List { service, limit, .. } => {
            let list = client.ask(&ListSessions { service, limit })?;
            output::print(global.output, &list, table)
        }
        Sessions::Revoke { sessions, service, duration } => {
            let seconds = duration.map(|duration| duration.as_secs());
            let revoked = client.ask(&RevokeSessions { service, sessions, seconds })?;
            output::print(global.output, &revoked, |revoked| revocations(revoked))
        }
        Sessions::Unrevoke { sessions, service } => {
            let lifted = client.ask(&UnrevokeSessions { service, sessions })?;
            output::print(global.output, &lifted, |lifted| no_longer(lifted))
        }
    }
}

fn table(list: &SessionList) -> Vec<String> {
    let row = |session: &SessionStatus| {
        vec![
            session.service.clone(),
            session.session_id.to_string(),
            match session.kind {
                TokenKind::Bearer => "bearer",
                TokenKind::Proof => "proof",
            }
            .to_owned(),
            session.class.to_string(),
            session.backend.to_string(),
            session.key_id.to_string(),
            output::date(session.expires_at),
            session.sources.to_string(),
            if session.revoked { "REVOKED" } else { "" }.to_owned(),
        ]
    };
    let heads = ["SERVICE", "SESSION", "TYPE", "CLASS", "BACKEND", "KEY", "EXPIRES", "SOURCES", ""];
    let mut lines = columns(&heads, &list.sessions.iter().map(row).collect::<Vec<_>>());
    let shown = list.sessions.len() as u64;
    if shown < list.matching {
        lines.push(format!("{shown} of {}: see more with --limit", list.matching));
    }
    lines
}

/// Also of `token revoke`.
pub fn revocations(list: &[RevocationStatus]) -> Vec<String> {
    let row = |one: &RevocationStatus| {
        let (kind, of) = named(one);
        vec![one.service.clone(), kind.to_owned(), of.to_owned(), output::date(one.until)]
    };
    columns(&["SERVICE", "REVOKED", "WHICH", "UNTIL"], &list.iter().map(row).collect::<Vec<_>>())
}

/// Also of `token unrevoke`.
pub fn no_longer(lifted: &[RevocationStatus]) -> Vec<String> {
    let line = |one: &RevocationStatus| {
        let (kind, of) = named(one);
        format!(
            "{kind} {of} of {} is no longer revoked; it was until {}",
            one.service,
            output::date(one.until)
        )
    };
    lifted.iter().map(line).collect()
}

fn named(one: &RevocationStatus) -> (&'static str, &str) {
    match (&one.session_id, &one.nonce) {
        (Some(session), _) => ("session", session),
        (None, nonce) => ("token", nonce.as_deref().unwrap_or_default()),
    }
}
