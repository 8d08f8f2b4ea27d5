//! The command lines of demo, benchmark and load test. `cargo xtask` includes this file to reject a wrong argument
//! before it builds the programs: the file uses clap and nothing of this crate.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

/// A service's `forward`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Forward {
    /// To the balancer's own stack
    Local,
    /// Rewrite the MAC addresses
    L2,
    /// Inside another IP packet
    Ipip,
    /// Inside a UDP datagram
    Gue,
    /// Rewrite addresses and ports
    Nat,
}

/// Options of the demo.
#[derive(Args, Clone, Copy, Debug)]
pub struct Demo {
    /// The forwarding mode
    #[arg(long, value_enum, default_value_t = Forward::L2)]
    pub forward: Forward,
    /// Service, client and backends have IPv6 addresses
    #[arg(long)]
    pub ipv6: bool,
    /// Keep the namespaces and the daemon for inspection, and print how to inspect them
    #[arg(long)]
    pub keep: bool,
    /// Only remove what --keep has left; the next demo also does so
    #[arg(long, conflicts_with_all = ["forward", "ipv6", "keep"])]
    pub remove: bool,
}

/// Options of the benchmark.
#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// Also write the figures to this file as JSON
    #[arg(long, value_name = "FILE", value_parser = output)]
    pub json: Option<PathBuf>,
    /// Fewer and shorter runs: for a first impression
    #[arg(long)]
    pub quick: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Options of the load test.
#[derive(Args, Clone, Debug)]
pub struct LoadTest {
    /// Also write the figures to this file as JSON
    #[arg(long, value_name = "FILE", value_parser = output)]
    pub json: Option<PathBuf>,
    /// Shorter and fewer floods: for a first impression
    #[arg(long)]
    pub quick: bool,
    /// Seed of the junk's random numbers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A file that can be written when the figures are complete.
fn output(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err("it is a directory".to_owned());
    }
    if !directory.is_dir() {
        return Err(format!("there is no directory {}", directory.display()));
    }
    Ok(path)
}
