//! Child processes: with a common environment, and with errors that show the command.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::log;

/// A command with the workspace's root as its directory; it never lets rustup download.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(root())
        .env("RUSTUP_AUTO_INSTALL", "0")
        .env("RUSTUP_DIST_SERVER", "http://127.0.0.1:9/rustup-must-not-download");
    command
}

/// The cargo that runs this program, with the toolchain it came from.
pub fn cargo(subcommand: &str) -> Command {
    let mut cargo = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(subcommand);
    cargo
}

/// Runs a command to its end; a failure is an error that shows the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(status.success(), "{} failed: {status}", shown(command));
    Ok(())
}

/// [`run`] for an auxiliary command: its output goes to standard error, which keeps standard output for the program
/// that the user asked for, or to the log of the current group. It reads nothing from the terminal, where a hidden
/// question would wait for an answer.
pub fn run_aside(command: &mut Command) -> Result<()> {
    run(command.stdin(Stdio::null()).stdout(log::aside()?).stderr(log::aside()?))
}

/// Runs to the end and returns standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(log::aside()?).output().with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(output.status.success(), "{} failed: {}", shown(command), output.status);
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed bytes that are no text", shown(command)))
}

/// Becomes the program, so that signals reach it and its exit status is ours. Returns only if it cannot start.
pub fn become_program(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", shown(command)))
}

/// The first executable of this name in PATH or in the directories of the administrator's commands.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the workspace")
}

/// The target directory of cargo.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// The arguments of the subcommand, as they were given.
pub fn arguments() -> impl Iterator<Item = OsString> {
    env::args_os().skip(2)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// An error with all its causes.
pub fn causes(error: &anyhow::Error) -> String {
    let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
    format!("error: {}", causes.join("\ncaused by: "))
}

/// The command as a shell would take it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
