//! `tollgate services`.

use std::time::UNIX_EPOCH;

use tollgate::protocol::{ListServices, RevokeBefore};

use super::{Global, output, status};

/// Subcommands.
#[derive(clap::Subcommand)]
pub enum Services {
    /// List services
    List,
    /// Revoke all tokens of a service that were issued before a time, permanently
    RevokeBefore {
        /// The service, by name or id
        service: String,
        /// Time in RFC 3339, or Unix time in seconds [default: now]
        #[arg(value_name = "TIME", value_parser = moment)]
        at: Option<u64>,
    },
}

/// Runs the command.
pub fn run(global: &Global, command: Services) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Services::List => {
            let list = client.ask(&ListServices {})?;
            output::print(global.output, &list, |list| status::services(&list.items))
        }
        Services::RevokeBefore { service, at } => {
            let revoked = client.ask(&RevokeBefore { service, at })?;
            output::print(global.output, &revoked, |revoked| {
                let before = output::date(revoked.revoked_before.into());
                vec![format!("tokens of {} issued before {before} are revoked permanently", revoked.service)]
            })
        }
    }
}

fn moment(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let time = humantime::parse_rfc3339_weak(text)
        .map_err(|error| format!("{error}; for example 2030-01-31T12:00:00Z"))?;
    time.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).map_err(|_| "it is before 1970".to_owned())
}
