//! Limits the daemon to three capabilities.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

use super::{SandboxError, refused};

/// For maps and programs; for pointer arithmetic in the verifier; for links, devices and neighbours.
const NEEDED: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN];

/// Limits the bounding set, so that no program that this process executes gets other capabilities. Without
/// CAP_SETPCAP this is not possible, and not needed: the system call filter prevents executing programs.
pub(super) fn bound() -> Result<(), SandboxError> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(failed)? {
        return Ok(());
    }
    let bounding = caps::read(None, CapSet::Bounding).map_err(failed)?;
    for capability in bounding.difference(&CapsHashSet::from(NEEDED)) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(failed)?;
    }
    Ok(())
}

/// Drops all other capabilities.
pub(super) fn keep_needed() -> Result<(), SandboxError> {
    let needed = CapsHashSet::from(NEEDED);
    caps::clear(None, CapSet::Ambient)
        .and_then(|()| caps::set(None, CapSet::Effective, &needed))
        .and_then(|()| caps::set(None, CapSet::Permitted, &needed))
        .and_then(|()| caps::clear(None, CapSet::Inheritable))
        .map_err(failed)
}

fn failed(cause: CapsError) -> SandboxError {
    refused(
        "drop capabilities",
        cause,
        "the daemon needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; see `tollgate check`",
    )
}
