//! The signals of a command that runs until a signal ends it: `tollgate run` and `tollgate decap`.

use std::io;

use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::warn;

/// The signals that end the command, and those that would end it by default. SIGPIPE is ignored by every Rust
/// program.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl Signals {
    /// Handles these signals from now on, inside a tokio runtime.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn take() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for a signal that ends the command, and logs others; `hangup` is the message for SIGHUP. Returns the
    /// name of the signal.
    pub async fn end(&mut self, hangup: &str) -> &'static str {
        loop {
            select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.quit.recv() => return "SIGQUIT",
                _ = self.hangup.recv() => warn!("SIGHUP: {hangup}"),
                _ = self.user_1.recv() => warn!("SIGUSR1: this signal has no meaning here and is ignored"),
                _ = self.user_2.recv() => warn!("SIGUSR2: this signal has no meaning here and is ignored"),
            }
        }
    }
}
