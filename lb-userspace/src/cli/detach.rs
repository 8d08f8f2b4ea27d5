//! `tollgate detach`: from here on, nothing is filtered.

use serde::Serialize;
use tollgate::control;

use super::{Global, output};

#[derive(Serialize)]
struct Detached {
    interfaces: Vec<String>,
}

/// Takes the program off and removes the pins. The store stays.
pub fn run(global: &Global) -> anyhow::Result<()> {
    let interfaces = control::detach(&global.load()?)?;
    output::print(global.output, &Detached { interfaces }, |detached| match detached.interfaces.as_slice() {
        [] => vec!["nothing was attached".to_owned()],
        interfaces => vec![format!("taken off {}; nothing is filtered there now", interfaces.join(", "))],
    })
}
