//! `tollgate keys`.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tollgate::{
    keyring::{KeyState, Keyset},
    protocol::{ExportKeys, ImportKeys, ImportReport, ListKeys, RevokeKey, RotateKeys, Rotated},
};

use super::{
    Global,
    output::{self, columns},
    status,
};

/// How long `--wait` waits at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// Subcommands.
#[derive(clap::Subcommand)]
pub enum Keys {
    /// List keys without their secrets
    List,
    /// Replace the key that signs; tokens of the previous key stay valid until they expire
    Rotate {
        /// Only the key of this service, by name or id
        #[arg(long, value_name = "S")]
        service: Option<String>,
        /// Return once the new key signs
        #[arg(long)]
        wait: bool,
    },
    /// Revoke a key immediately and permanently, with all its tokens
    Revoke {
        /// Id of the key, as shown by `keys list`
        key_id: u32,
    },
    /// Print the keys of a service with their secrets, for an issuer of its tokens
    Export {
        /// The service, by name or id
        #[arg(long, value_name = "S")]
        service: String,
    },
    /// Import keys that another node has exported
    Import {
        /// Output of `keys export`
        file: PathBuf,
    },
}

/// Runs the command.
pub fn run(global: &Global, command: Keys) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Keys::List => {
            let keys = client.ask(&ListKeys {})?;
            output::print(global.output, &keys, |keys| status::keys(&keys.items))
        }
        Keys::Rotate { service, wait } => {
            let mut rotated = client.ask(&RotateKeys { service })?;
            if wait {
                wait_for(global, &mut rotated.items)?;
            }
            output::print(global.output, &rotated, |rotated| rotations(&rotated.items))
        }
        Keys::Revoke { key_id } => {
            let revoked = client.ask(&RevokeKey { key_id })?;
            output::print(global.output, &revoked, |revoked| {
                let now = match revoked.active_key_id {
                    Some(id) => format!("key {id} signs now"),
                    None => "no key signs; see `tollgate keys list`".to_owned(),
                };
                let done = match revoked.previous_state {
                    KeyState::Revoked => "was already revoked".to_owned(),
                    was => format!("({was}) is revoked: its tokens are refused"),
                };
                vec![format!("key {} {done}. {now}", revoked.key_id)]
            })
        }
        Keys::Export { service } => {
            let keyset = client.ask(&ExportKeys { service })?;
            // JSON in both formats: it is read by `keys import`, `token mint --keyset` and issuers.
            output::print(output::Format::Json, &keyset, |_| Vec::new())
        }
        Keys::Import { file } => {
            let report = client.ask(&ImportKeys(read_keyset(&file)?))?;
            output::print(global.output, &report, |report| {
                let ImportReport { added, known, skipped } = report;
                vec![format!(
                    "{} keys added, {} already known, {} skipped (revoked or ended)",
                    added.len(),
                    known.len(),
                    skipped.len()
                )]
            })
        }
    }
}

/// Reads the output of `keys export`.
pub fn read_keyset(file: &Path) -> anyhow::Result<Keyset> {
    let text = std::fs::read(file).with_context(|| {
        format!("{}: cannot be read; create it with `tollgate keys export`", file.display())
    })?;
    serde_json::from_slice(&text).with_context(|| {
        format!("{}: not a keyset; create one with `tollgate keys export --service S > FILE`", file.display())
    })
}

/// Waits until all new keys sign.
fn wait_for(global: &Global, rotated: &mut [Rotated]) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut told = false;
    while let Some(waiting) = rotated.iter().find(|one| one.state != KeyState::Active) {
        if start.elapsed() > PATIENCE {
            bail!(
                "key {} of {} does not sign after {} s; see `tollgate status`",
                waiting.key_id,
                waiting.service,
                PATIENCE.as_secs()
            );
        }
        if !told && std::io::stderr().is_terminal() {
            eprintln!("waiting until key {} of {} is in the kernel", waiting.key_id, waiting.service);
            told = true;
        }
        std::thread::sleep(Duration::from_millis(100));
        let keys = global.client()?.ask(&ListKeys {})?.items;
        for one in rotated.iter_mut() {
            if let Some(key) = keys.iter().find(|key| key.key_id == one.key_id) {
                one.state = key.state;
            }
        }
    }
    Ok(())
}

fn rotations(rotated: &[Rotated]) -> Vec<String> {
    let row = |one: &Rotated| {
        vec![
            one.service.clone(),
            one.key_id.to_string(),
            one.state.to_string(),
            one.previous_key_id.map_or_else(|| "-".to_owned(), |id| id.to_string()),
        ]
    };
    columns(&["SERVICE", "KEY", "STATE", "BEFORE"], &rotated.iter().map(row).collect::<Vec<_>>())
}
