//! `tollgate decap` on a host, run as an operator would.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, ExitStatus},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::testbed::{
    cleanup,
    daemon::{Instance, end_of, wait_for},
    netns::Namespace,
    topology::{INTERFACE, Topology},
};

/// A running `tollgate decap`; killed when dropped.
pub struct Decap {
    child: Child,
    report: PathBuf,
    log: PathBuf,
}

impl Decap {
    /// Starts it on all backends, for packets from these addresses and prefixes.
    ///
    /// # Errors
    /// If one does not start; with its log.
    pub fn on_backends(topology: &Topology, instance: &Instance, sources: &[String]) -> Result<Vec<Self>> {
        let from = sources.join(",");
        topology.backends.iter().map(|backend| Self::start(instance, backend, &from)).collect()
    }

    /// Starts it on one host, for packets from these addresses and prefixes; waits until it is attached.
    ///
    /// # Errors
    /// If it does not start; with its log.
    pub fn start(instance: &Instance, host: &Namespace, from: &str) -> Result<Self> {
        cleanup::hold_if_interrupted();
        let [report, log] =
            ["json", "log"].map(|kind| instance.path(&format!("decap-{}.{kind}", host.name())));
        let arguments = ["decap", "-i", INTERFACE, "--from", from, "-o", "json"];
        let mut command = instance.tollgate(host, &arguments)?;
        let child = command.stdout(File::create(&report)?).stderr(File::create(&log)?).spawn()?;
        let mut decap = Self { child, report, log };
        wait_for("tollgate decap", || {
            if let Some(status) = decap.child.try_wait()? {
                bail!("tollgate decap ended ({status}): {}", decap.log());
            }
            host.has_xdp(INTERFACE)
        })?;
        Ok(decap)
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Ends it by a signal and returns its report.
    ///
    /// # Errors
    /// If it does not end, or fails; with its log.
    pub fn stop(mut self, signal: Signal) -> Result<Value> {
        self.signal(signal)?;
        let status = self.ended()?;
        ensure!(status.success(), "{status}: {}", self.log());
        let report = fs::read(&self.report)?;
        serde_json::from_slice(&report).with_context(|| String::from_utf8_lossy(&report).into_owned())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        end_of(&mut self.child, "the end of tollgate decap")
    }
}

impl Drop for Decap {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
