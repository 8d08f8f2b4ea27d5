//! Receive threads: a kernel thread polls an interface on a chosen CPU, just as the CPU that handles the interrupts of
//! a network card processes its queue.

use std::fs;

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};

/// Gives this thread the sysfs of its network namespace, which lists the namespace's interfaces.
///
/// # Errors
/// If it cannot be mounted.
pub fn own_sysfs() -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    // Not `/`, which is not a mount point in a chroot: the propagation of the mount that is covered applies to the new
    // one.
    mount(none, "/sys", none, MsFlags::MS_PRIVATE, none).context("cannot make /sys private")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("cannot mount /sys")
}

/// Makes an interface poll in kernel threads on this CPU; it polls only while it has an XDP program. Returns the
/// threads. The calling thread must have the sysfs of the interface's namespace.
///
/// A process in its own PID namespace, as in a container, sees no kernel threads and cannot choose their CPU. There,
/// the interface polls as usual, in the softirq of the sender, and no thread is returned.
///
/// # Errors
/// If it does not poll.
pub fn poll_on(interface: &str, cpu: usize) -> Result<Vec<Pid>> {
    let threaded = format!("/sys/class/net/{interface}/threaded");
    fs::write(&threaded, "1").with_context(|| format!("cannot write {threaded}"))?;
    let mut set = CpuSet::new();
    set.set(cpu)?;
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_ours = fs::read_to_string(path.join("comm"))
            .is_ok_and(|comm| comm.starts_with(&format!("napi/{interface}-")));
        let pid = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let (true, Some(pid)) = (is_ours, pid) {
            let thread = Pid::from_raw(pid);
            sched_setaffinity(thread, &set)?;
            threads.push(thread);
        }
    }
    if threads.is_empty() {
        if sees_kernel_threads() {
            bail!("the kernel has no receive thread for {interface}");
        }
        fs::write(&threaded, "0").with_context(|| format!("cannot write {threaded}"))?;
    }
    Ok(threads)
}

/// Whether this PID namespace is the kernel's own, where process 2 starts all kernel threads (`kthreadd`).
fn sees_kernel_threads() -> bool {
    fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm.trim() == "kthreadd")
}
