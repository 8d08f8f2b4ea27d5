//! `tollgate detach`: afterwards, nothing is filtered.

use tollgate::{control, protocol::Detached};

use super::{Global, output};

/// Detaches the program and removes the pins; the store stays.
pub fn run(global: &Global) -> anyhow::Result<()> {
    let interfaces = control::detach(&global.load()?)?;
    output::print(global.output, &Detached { interfaces }, |detached| match detached.interfaces.as_slice() {
        [] => vec!["nothing was attached".to_owned()],
        interfaces => vec![format!("detached from {}; nothing is filtered there now", interfaces.join(", "))],
    })
}
