//! Three capabilities, and no others.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

use super::{SandboxError, refused};

/// Maps and programs; the verifier's leave for pointer arithmetic; links, devices and neighbours.
const NEEDED: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN];

/// Lets nothing that this process may ever execute have others. Whoever has not the right to say so (CAP_SETPCAP) starts
/// with few, and can execute nothing once the filter is there.
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

/// Drops all others.
pub(super) fn keep_needed() -> Result<(), SandboxError> {
    let needed = CapsHashSet::from(NEEDED);
    caps::clear(None, CapSet::Ambient)
        .and_then(|()| caps::set(None, CapSet::Effective, &needed))
        .and_then(|()| caps::set(None, CapSet::Permitted, &needed))
        .and_then(|()| caps::clear(None, CapSet::Inheritable))
        .map_err(failed)
}

fn failed(cause: CapsError) -> SandboxError {
    refused("drop capabilities", cause, "it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: `tollgate check`")
}
