//! The command lines of demo, benchmark and load test. `cargo xtask` reads them with this very file before it builds the
//! programs, so that a wrong argument is an error at once: it takes clap and nothing of this crate.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

/// A service's `forward`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Forward {
    /// To the balancer's own stack.
    Local,
    /// Another MAC address.
    L2,
    /// In another IP packet.
    Ipip,
    /// In a UDP datagram.
    Gue,
    /// To another address and port.
    Nat,
}

/// Options of the demo.
#[derive(Args, Clone, Copy, Debug)]
pub struct Demo {
    /// How datagrams get to the backends
    #[arg(long, value_enum, default_value_t = Forward::L2)]
    pub forward: Forward,
    /// Service, client and backends have IPv6 addresses
    #[arg(long)]
    pub ipv6: bool,
    /// Leave namespaces and daemon for looking around, and say how to look
    #[arg(long)]
    pub keep: bool,
    /// Only remove what --keep has left; the next demo does so, too
    #[arg(long, conflicts_with_all = ["forward", "ipv6", "keep"])]
    pub remove: bool,
}

/// Options of the benchmark.
#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE", value_parser = output)]
    pub json: Option<PathBuf>,
    /// Fewer and shorter runs: for a first impression
    #[arg(long)]
    pub quick: bool,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Options of the load test.
#[derive(Args, Clone, Debug)]
pub struct LoadTest {
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE", value_parser = output)]
    pub json: Option<PathBuf>,
    /// Shorter and fewer floods: for a first impression
    #[arg(long)]
    pub quick: bool,
    /// Where the junk's random numbers begin
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A file that can be written once there are figures.
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
