//! Whether it filters, as the loop found when it looked last.

use std::time::Duration;

use tokio::time::Instant;

/// How long the loop may not have looked: far more than its second, and than any request takes.
const SILENCE: Duration = Duration::from_secs(10);

/// What the loop found, and when.
#[derive(Clone, Debug)]
pub struct Readiness {
    reasons: Vec<String>,
    found_at: Instant,
}

impl Readiness {
    /// As found now, with the reasons why it does not filter.
    pub(super) fn found(reasons: Vec<String>) -> Self {
        Self { reasons, found_at: Instant::now() }
    }

    /// Whether these reasons are others.
    pub(super) fn differs(&self, reasons: &[String]) -> bool {
        self.reasons != reasons
    }

    /// Why it does not filter, or nobody knows; none: it does.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = self.reasons.clone();
        if self.found_at.elapsed() > SILENCE {
            reasons.push(format!(
                "nothing has been compared with the kernel for more than {} s: does the disk of the store answer (`dmesg`)? \
                 What was published last filters on",
                SILENCE.as_secs()
            ));
        }
        reasons
    }
}
