//! Where the output of child processes goes: to the terminal, or, while a group of `cargo xtask test` or `check`
//! runs, into the log of that group. A log is a file, not a pipe: tests still print while they clean up after this
//! process was interrupted.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::command;

/// The log of the group that runs.
static CURRENT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// How often a log is read whose text is also shown.
const SHOW_EVERY: Duration = Duration::from_millis(50);

/// How many lines of a command that failed the error contains.
const LINES_OF_A_FAILURE: usize = 40;

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

/// Logs a line about the progress of this program; also on the terminal if the log cannot be written.
pub fn say(line: impl fmt::Display) {
    let log = current().and_then(|path| append(&path).ok());
    if !log.is_some_and(|mut log| writeln!(log, "{line}").is_ok()) {
        eprintln!("{line}");
    }
}

/// The destination of a child's unread output: the log, or standard error.
pub fn aside() -> Result<Stdio> {
    Ok(match current() {
        Some(path) => append(&path)?.into(),
        None => io::stderr().into(),
    })
}

/// Runs a command to its end; returns its output and its exit status. The output is also shown at once unless a group
/// runs.
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

/// Runs a command whose output matters only if it fails. The output goes to the log of the group that runs, otherwise
/// to `target/logs/NAME.log`; then the error contains its last lines.
pub fn run_quietly(name: &str, command: &mut Command) -> Result<()> {
    match current() {
        Some(_) => command::run_aside(command),
        None => run_into(&create(name)?, command),
    }
}

fn run_into(path: &Path, command: &mut Command) -> Result<()> {
    let log = append(path)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().with_context(|| format!("cannot start {}", command::shown(command)))?;
    if !status.success() {
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(LINES_OF_A_FAILURE)..].join("\n");
        bail!(
            "{} failed: {status}\n{last}\nthe whole output is in {}",
            command::shown(command),
            path.display()
        );
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_shown_only_on_failure() {
        let path = create("test-of-run-quietly").unwrap();
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            run_into(&path, &mut command)
        };
        shell("seq 100; echo from standard error >&2").unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("from standard error"));
        let error = shell("echo early; seq 200 300; echo why >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("\n300\nwhy\n") && error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("test-of-run-quietly.log") && !error.contains("\n200\n"), "{error}");
        fs::remove_file(&path).unwrap();
    }

    /// Both branches of [`run_quietly`]: a question of dpkg would wait for an answer.
    #[test]
    fn quiet_commands_read_nothing_from_the_terminal() {
        let path = create("test-of-standard-input").unwrap();
        for in_group in [true, false] {
            let (terminal, mut user) = io::pipe().unwrap();
            user.write_all(b"answer\n").unwrap();
            let mut shell = Command::new("sh");
            shell.args(["-c", "read answer; test -z \"$answer\""]).stdin(terminal);
            let run = if in_group { command::run_aside(&mut shell) } else { run_into(&path, &mut shell) };
            run.unwrap();
        }
        fs::remove_file(&path).unwrap();
    }
}
