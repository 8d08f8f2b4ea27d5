//! Where child processes print: on the terminal, or, while a group of `cargo xtask test` or `check` runs, into that
//! group's log. A log is a file, not a pipe: where this process is interrupted, tests still print while they remove what
//! they have made.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::command;

/// The log of the group that runs.
static CURRENT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// How often a log is read whose text is also shown.
const SHOW_EVERY: Duration = Duration::from_millis(50);

/// From here to [`end`], everything goes to this group's log. Returns where that is.
pub fn begin(group: &str) -> Result<PathBuf> {
    let name: String = group.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = create(&name)?;
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.clone());
    Ok(path)
}

/// From here on, everything goes to the terminal.
pub fn end() {
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// A line about what this program does; on the terminal, too, where it cannot be written to the log.
pub fn say(line: impl fmt::Display) {
    let log = current().and_then(|path| append(&path).ok());
    if !log.is_some_and(|mut log| writeln!(log, "{line}").is_ok()) {
        eprintln!("{line}");
    }
}

/// Where a child's standard output or error goes that nothing reads: to the log, or to our standard error.
pub fn aside() -> Result<Stdio> {
    Ok(match current() {
        Some(path) => append(&path)?.into(),
        None => io::stderr().into(),
    })
}

/// Runs a command to its end; returns all that it printed, and how it ended. It is shown as it comes unless a group runs.
pub fn record(command: &mut Command) -> Result<(String, ExitStatus)> {
    let (path, shown) = match current() {
        Some(path) => (path, false),
        None => (create("terminal")?, true),
    };
    let to = append(&path)?;
    let mut from = File::open(&path)?;
    from.seek(SeekFrom::End(0))?;
    command.stdin(Stdio::null()).stdout(to.try_clone()?).stderr(to);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", command::shown(command)))?;
    let mut text = Vec::new();
    let status = loop {
        let status = if shown { child.try_wait()? } else { Some(child.wait()?) };
        let seen = text.len();
        from.read_to_end(&mut text)?;
        if shown {
            io::stderr().write_all(&text[seen..])?;
        }
        match status {
            Some(status) => break status,
            None => thread::sleep(SHOW_EVERY),
        }
    };
    Ok((String::from_utf8_lossy(&text).into_owned(), status))
}

fn current() -> Option<PathBuf> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn create(name: &str) -> Result<PathBuf> {
    let directory = command::target().join("logs");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join(format!("{name}.log"));
    fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).open(path).with_context(|| format!("cannot write {}", path.display()))
}
