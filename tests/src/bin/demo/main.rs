//! The main job before your eyes: a client, a balancer and three backends; valid and forged traffic; the key rotated
//! twice, the daemon killed and started again while packets flow.

mod junk;
mod progress;
mod receivers;
mod report;
mod script;
mod sender;

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use lb_tests::{forward::Forward, leftovers, topology::Family};

use crate::script::Options;

const USAGE: &str = "usage: cargo xtask demo [--forward local|l2|ipip|gue|nat] [--ipv6] [--keep]
       cargo xtask demo --remove

  --forward  how datagrams get to the backends (default: l2)
  --ipv6     service, client and backends have IPv6 addresses
  --keep     leave namespaces and daemon for looking around, and say how to look
  --remove   only remove what --keep has left (the next demo does so, too)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let outcome = match args[..] {
        ["--remove"] => alone().and_then(|_alone| leftovers::remove(script::is_ours)),
        ["-h" | "--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => match options(&args) {
            Ok(options) => run(options),
            Err(error) => {
                eprintln!("demo: {error:#}\n{USAGE}");
                return ExitCode::from(2);
            }
        },
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // What failed may have failed because it was being removed.
    leftovers::hold_if_interrupted();
    eprintln!("demo: {error:#}");
    ExitCode::FAILURE
}

fn options(args: &[&str]) -> Result<Options> {
    let mut options = Options { forward: Forward::L2, family: Family::V4, keep: false };
    let mut args = args.iter();
    while let Some(argument) = args.next() {
        match *argument {
            "--forward" => options.forward = args.next().context("`--forward` needs a value")?.parse()?,
            "--ipv6" => options.family = Family::V6,
            "--keep" => options.keep = true,
            other => bail!("`{other}` is not known"),
        }
    }
    Ok(options)
}

fn run(options: Options) -> Result<()> {
    let _alone = alone()?;
    leftovers::remove_when_interrupted(script::is_ours)?;
    leftovers::remove(script::is_ours)?;
    script::run(options)
}

/// Held while a demo runs: two at a time would remove each other's namespaces. An abstract socket leaves no file.
fn alone() -> Result<UnixDatagram> {
    let address = SocketAddr::from_abstract_name("tollgate-demo")?;
    UnixDatagram::bind_addr(&address).context("another demo is running; wait until it has ended")
}
