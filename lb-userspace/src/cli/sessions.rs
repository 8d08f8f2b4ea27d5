//! `tollgate sessions`.

use std::time::Duration;

use tollgate::protocol::{
    List, ListRevocations, ListSessions, RevocationStatus, RevokeSessions, SessionStatus, UnrevokeSessions,
};

use super::{
    Global,
    output::{self, columns},
};

/// Subcommands.
#[derive(clap::Subcommand)]
pub enum Sessions {
    /// List the tokens in the kernel, or the revocations
    List {
        /// Only tokens of this service, by name or id
        #[arg(long, value_name = "S")]
        service: Option<String>,
        /// List all revoked sessions and tokens instead
        #[arg(long, conflicts_with = "limit")]
        revoked: bool,
        /// Largest number of tokens to list, up to 10,000
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: usize,
    },
    /// Revoke all tokens of sessions, from the next packet on; without --for, until all tokens issued so far have
    /// expired
    Revoke {
        /// Ids of the sessions
        #[arg(required = true, value_name = "N")]
        sessions: Vec<u64>,
        /// The service, by name or id
        #[arg(long, value_name = "S")]
        service: String,
        /// Duration of the revocation; new tokens of the sessions are refused, too
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        duration: Option<Duration>,
    },
    /// Undo `sessions revoke`: tokens of the sessions are admitted again, from the next packet on
    Unrevoke {
        /// Ids of the sessions; either all are changed or none
        #[arg(required = true, value_name = "N")]
        sessions: Vec<u64>,
        /// The service, by name or id
        #[arg(long, value_name = "S")]
        service: String,
    },
}

/// Runs the command.
pub fn run(global: &Global, command: Sessions) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Sessions::List { service, revoked: true, .. } => {
            let list = client.ask(&ListRevocations { service })?;
            output::print(global.output, &list, |list| revocations(&list.items))
        }
        Sessions::List { service, limit, .. } => {
            let list = client.ask(&ListSessions { service, limit })?;
            output::print(global.output, &list, table)
        }
        Sessions::Revoke { sessions, service, duration } => {
            let seconds = duration.map(|duration| duration.as_secs());
            let revoked = client.ask(&RevokeSessions { service, sessions, seconds })?;
            output::print(global.output, &revoked, |revoked| revocations(&revoked.items))
        }
        Sessions::Unrevoke { sessions, service } => {
            let lifted = client.ask(&UnrevokeSessions { service, sessions })?;
            output::print(global.output, &lifted, |lifted| no_longer(&lifted.items))
        }
    }
}

fn table(list: &List<SessionStatus>) -> Vec<String> {
    let row = |session: &SessionStatus| {
        vec![
            session.service.clone(),
            session.session_id.to_string(),
            session.kind.name().to_owned(),
            session.class.to_string(),
            session.backend_id.to_string(),
            session.key_id.to_string(),
            output::date(session.expires_at),
            session.sources.to_string(),
            if session.revoked { "REVOKED" } else { "" }.to_owned(),
        ]
    };
    let heads = ["SERVICE", "SESSION", "TYPE", "CLASS", "BACKEND", "KEY", "EXPIRES", "SOURCES", ""];
    let mut lines = columns(&heads, &list.items.iter().map(row).collect::<Vec<_>>());
    let shown = list.items.len() as u64;
    if shown < list.total {
        lines.push(format!("{shown} of {} shown; raise --limit to see more", list.total));
    }
    lines
}

/// The table of revocations; `token revoke` shows it, too.
pub fn revocations(list: &[RevocationStatus]) -> Vec<String> {
    let row = |one: &RevocationStatus| {
        let (kind, of) = named(one);
        vec![one.service.clone(), kind.to_owned(), of.to_owned(), output::date(one.until)]
    };
    columns(&["SERVICE", "REVOKED", "WHICH", "UNTIL"], &list.iter().map(row).collect::<Vec<_>>())
}

/// The revocations that were removed; `token unrevoke` shows them, too.
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
