//! Copies revocations from the store into the kernel. A revocation is stored first, and in force from the next packet
//! on once the kernel has it.

use lb_common::control::SECOND_NS;
use tracing::debug;

use super::{Controller, Outcome, clock::unix_now};
use crate::datapath::DatapathError;

impl Controller {
    /// Makes the kernel's revocations equal to the stored ones that have not ended.
    pub(super) fn sync_revocations(&mut self, outcome: &mut Outcome) {
        let mut differences = Vec::new();
        if let Err(error) = self.follow_revocations(&mut differences) {
            differences.push("the revocations".to_owned());
            outcome.failed(differences, &error);
        }
    }

    fn follow_revocations(&mut self, differences: &mut Vec<String>) -> Result<(), DatapathError> {
        let wanted = || self.stored.state().revocations.in_force(unix_now());
        let ends = |seconds: u64| seconds.saturating_mul(SECOND_NS);
        let kernel = &mut self.datapath.revocations;
        let mut found = kernel.all()?;
        let missing: Vec<_> = wanted()
            .map(|(key, until)| (key, ends(until)))
            .filter(|(key, until)| found.remove(key) != Some(*until))
            .collect();
        if !found.is_empty() {
            debug!("{} revocations have ended", found.len());
            // Removed first, to free capacity for additions.
            kernel.remove(found.keys())?;
        }
        if !missing.is_empty() {
            debug!("{} revocations are not in the kernel", missing.len());
            differences.push(format!("{} revocations are not in the kernel", missing.len()));
            kernel.insert(missing)?;
        }
        Ok(())
    }
}
