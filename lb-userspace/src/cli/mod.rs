//! The command line, one file per command.
//!
//! Exit statuses: 0 done, 1 failed, 2 usage, 3 no daemon.

mod backends;
mod check;
mod clock;
mod counters;
mod decap;
mod detach;
mod keys;
mod output;
mod run;
mod services;
mod sessions;
mod signals;
mod status;
mod token;

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use tollgate::{
    api::client::{Client, ClientError},
    config::{Config, ConfigError},
    datapath::preflight,
    sandbox,
};
use tracing_subscriber::filter::LevelFilter;

use output::Format;

const CONFIG: &str = "/etc/tollgate/tollgate.toml";

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

const FAILED: u8 = 1;
const NO_DAEMON: u8 = 3;

/// Drops every datagram to a protected UDP service that carries no valid token, in the network driver, and sends the
/// rest to the right backend.
#[derive(Parser)]
#[command(name = "tollgate", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command knows.
#[derive(Clone, Debug, clap::Args)]
struct Global {
    /// How results are printed; JSON is the stable form
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// The configuration [default: /etc/tollgate/tollgate.toml]
    #[arg(short = 'c', long = "config", global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's control socket [default: that of the configuration]
    #[arg(long, global = true, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// What is logged to standard error: this and what is graver
    #[arg(long, global = true, value_name = "LEVEL", env = "TOLLGATE_LOG", default_value = "info", ignore_case = true,
          value_parser = PossibleValuesParser::new(LEVELS).try_map(|level| level.parse::<LevelFilter>()))]
    log: LevelFilter,
}

#[derive(Subcommand)]
enum Command {
    /// The daemon, in the foreground
    Run(run::Args),
    /// Check the configuration and this host, and change nothing
    Check,
    /// Take the program off the interfaces and remove what is pinned
    Detach,
    /// What the daemon does, and what differs from what it should
    Status,
    /// Packets and bytes by service and reason
    Counters(counters::Args),
    /// Keys: list, rotate, revoke, export, import
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Tokens: mint, inspect, revoke, unrevoke
    #[command(subcommand)]
    Token(token::Token),
    /// Backends: list
    #[command(subcommand)]
    Backends(backends::Backends),
    /// Services: list, revoke what they have issued
    #[command(subcommand)]
    Services(services::Services),
    /// Sessions: list, revoke, unrevoke
    #[command(subcommand)]
    Sessions(sessions::Sessions),
    /// The clock that tokens are checked against
    Clock {
        #[command(subcommand)]
        command: Option<clock::Clock>,
    },
    /// On a backend's host: take off what `ipip` and `gue` balancers put before a packet
    Decap(decap::Args),
}

/// Runs the command of this process, and says how it went.
pub fn main() -> ExitCode {
    // Keys pass through half of the commands.
    if let Err(error) = sandbox::hide_memory() {
        eprintln!("tollgate: {error}");
        return ExitCode::from(FAILED);
    }
    let Cli { global, command } = Cli::parse();
    // `check` prints its report also where this fails.
    let enough_descriptors = preflight::raise_descriptor_limit().map_err(anyhow::Error::msg);
    let result = match command {
        Command::Check => check::run(&global, enough_descriptors),
        _ if enough_descriptors.is_err() => enough_descriptors,
        Command::Run(args) => run::run(&global, &args),
        Command::Detach => detach::run(&global),
        Command::Status => status::run(&global),
        Command::Counters(args) => counters::run(&global, args),
        Command::Keys(command) => keys::run(&global, command),
        Command::Token(command) => token::run(&global, command),
        Command::Backends(command) => backends::run(&global, command),
        Command::Services(command) => services::run(&global, command),
        Command::Sessions(command) => sessions::run(&global, command),
        Command::Clock { command } => clock::run(&global, command.as_ref()),
        Command::Decap(args) => decap::run(&global, &args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollgate: {}", shown(&error));
            ExitCode::from(status_of(&error))
        }
    }
}

/// A configuration's errors with the lines they are in, all others with their causes.
fn shown(error: &anyhow::Error) -> String {
    if let Some(error) = error.downcast_ref::<ConfigError>() {
        return error.report(io::stderr().is_terminal());
    }
    // Many of our messages tell their cause themselves.
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn status_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NoDaemon { .. }) => NO_DAEMON,
        _ => FAILED,
    }
}

/// Whether whoever read the output has read enough, as `head` does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

impl Global {
    /// The command line that takes the program of this configuration off its interfaces.
    fn detach_command(&self) -> String {
        match &self.config {
            Some(config) => format!("tollgate detach -c {}", config.display()),
            None => "tollgate detach".to_owned(),
        }
    }

    /// The configuration's file.
    fn file(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(CONFIG))
    }

    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(self.file())?)
    }

    /// Asks the daemon of the configuration, or on another socket that was named.
    fn client(&self) -> anyhow::Result<Client> {
        if let Some(socket) = &self.control {
            return Ok(Client::new(socket));
        }
        match Config::load(self.file()) {
            Ok(config) => Ok(Client::new(&config.control)),
            Err(error) if self.config.is_some() => Err(error.into()),
            // One that nobody named need not be there.
            Err(_) => Ok(Client::new(Path::new(tollgate::config::CONTROL))),
        }
    }

    /// Logs to standard error from here on.
    fn log(&self) {
        tracing_subscriber::fmt()
            .with_max_level(self.log)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            // A line that cannot be written, as to a closed terminal, is lost: to report that on the same closed
            // standard error would be a panic.
            .log_internal_errors(false)
            .init();
    }
}
