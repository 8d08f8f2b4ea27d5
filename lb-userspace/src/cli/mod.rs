//! The command line: one file per command, which parses arguments, sends requests to the daemon, and prints answers.
//!
//! Exit status: 0 success, 1 failure, 2 usage error, 3 no daemon. Start at [`main`].

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

/// Drops datagrams to protected UDP services that carry no valid token, in the network driver, and forwards the
/// others to their backend
#[derive(Parser)]
#[command(name = "tollgate", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, clap::Args)]
struct Global {
    /// Output format; JSON is stable, see docs/api.md
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Configuration file [default: /etc/tollgate/tollgate.toml]
    #[arg(short = 'c', long = "config", global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Control socket of the daemon [default: `control` in the configuration]
    #[arg(long, global = true, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Log to standard error at this level and above
    #[arg(long, global = true, value_name = "LEVEL", env = "TOLLGATE_LOG", default_value = "info", ignore_case = true,
          value_parser = PossibleValuesParser::new(LEVELS).try_map(|level| level.parse::<LevelFilter>()))]
    log: LevelFilter,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run(run::Args),
    /// Check the configuration and this host without changing anything
    Check,
    /// Detach the XDP program from the interfaces and remove all pins; nothing is filtered afterwards
    Detach,
    /// Show the state of the node, and where the kernel differs from the configuration
    Status,
    /// Show packets and bytes by service and reason
    Counters(counters::Args),
    /// List, rotate, revoke, export or import keys
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Mint, inspect, revoke or unrevoke tokens
    #[command(subcommand)]
    Token(token::Token),
    /// List backends
    #[command(subcommand)]
    Backends(backends::Backends),
    /// List services, or revoke all their tokens issued before a time
    #[command(subcommand)]
    Services(services::Services),
    /// List, revoke or unrevoke sessions
    #[command(subcommand)]
    Sessions(sessions::Sessions),
    /// Show or accept the clock that tokens are checked against
    Clock {
        #[command(subcommand)]
        command: Option<clock::Clock>,
    },
    /// On the host of a backend: remove the outer headers that balancers with `ipip` or `gue` add
    Decap(decap::Args),
}

/// Runs the command of this process; returns its exit status.
pub fn main() -> ExitCode {
    // Many commands handle keys.
    if let Err(error) = sandbox::hide_memory() {
        eprintln!("tollgate: {error}");
        return ExitCode::from(FAILED);
    }
    let Cli { global, command } = Cli::parse();
    // `check` reports this failure together with its other results.
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

/// The text of an error: with the lines of the file for an error of the configuration, with its causes for any other.
fn shown(error: &anyhow::Error) -> String {
    if let Some(error) = error.downcast_ref::<ConfigError>() {
        return error.report(io::stderr().is_terminal());
    }
    // Many messages already contain their cause.
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

/// Whether the reader of the output has closed it, as `head` does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

impl Global {
    /// The command that detaches the program of this configuration.
    fn detach_command(&self) -> String {
        match &self.config {
            Some(config) => format!("tollgate detach -c {}", config.display()),
            None => "tollgate detach".to_owned(),
        }
    }

    /// Path of the configuration.
    fn file(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(CONFIG))
    }

    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(self.file())?)
    }

    /// A client of the daemon: on the socket of `--control`, or of the configuration.
    fn client(&self) -> anyhow::Result<Client> {
        if let Some(socket) = &self.control {
            return Ok(Client::new(socket));
        }
        match Config::load(self.file()) {
            Ok(config) => Ok(Client::new(&config.control)),
            Err(error) if self.config.is_some() => Err(error.into()),
            // The default configuration need not exist.
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
            // A line that cannot be written, for example to a closed terminal, is lost: reporting that on the same
            // closed standard error would panic.
            .log_internal_errors(false)
            .init();
    }
}
