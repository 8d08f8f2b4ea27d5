//! The system calls that the daemon makes, from the first thread on; all others fail with EPERM.
//!
//! They fail instead of killing the process: a library that tries a newer call first can use its fallback, and an
//! unexpected call does not end the daemon. An attacker in the daemon gains nothing from the error.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::{NEEDS_KERNEL, SandboxError, refused};

/// The allowed calls, by purpose. Not among them: starting programs and processes, changing users, mounting file
/// systems, tracing processes, and attaching tracing programs (perf_event_open).
const ALLOWED: &[libc::c_long] = &[
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals, and abort(3).
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    // Identity and time.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_prlimit64,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // Descriptors, and waiting for them.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    // The store, the pins, /proc and /sys.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_umask,
    // Existing sockets, and netlink sockets.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // BPF programs and maps, as far as the capabilities allow.
    libc::SYS_bpf,
];

/// System calls that newer architectures lack, and that libraries on older architectures still use.
#[cfg(target_arch = "x86_64")]
const ALLOWED_BESIDE: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(target_arch = "aarch64")]
const ALLOWED_BESIDE: &[libc::c_long] = &[libc::SYS_renameat];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ALLOWED_BESIDE: &[libc::c_long] = &[];

/// Filters the calls of this thread and of all threads that it creates.
pub(super) fn apply() -> Result<(), SandboxError> {
    let failed = |cause: String| refused("filter system calls", cause, NEEDS_KERNEL);
    for filter in [without_clone3(), allowed()] {
        let program: BpfProgram =
            filter.and_then(BpfProgram::try_from).map_err(|error| failed(error.to_string()))?;
        apply_filter(&program).map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

type Filter = Result<SeccompFilter, seccompiler::BackendError>;

/// clone3(2) passes its flags in memory, which a filter cannot read. The filter makes it fail as on a kernel without
/// clone3, so that the C library creates threads with clone(2).
fn without_clone3() -> Filter {
    let calls = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(
        calls,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        architecture()?,
    )
}

fn allowed() -> Filter {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_BESIDE).map(|call| (*call, Vec::new())).collect();
    // The filter above handles it.
    calls.insert(libc::SYS_clone3, Vec::new());
    // Threads may be created, but no processes.
    let thread = libc::CLONE_THREAD as u64;
    calls.insert(libc::SYS_clone, vec![one(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // No executable memory mappings.
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        calls.insert(call, vec![one(2, executable.clone(), 0)?]);
    }
    calls.insert(libc::SYS_ioctl, any_of(1, &[libc::FIONBIO, libc::FIOCLEX])?);
    calls.insert(libc::SYS_prctl, any_of(0, &[libc::PR_SET_NAME as u64])?);
    // No other sockets: those that the daemon serves are already open.
    let families = [libc::AF_NETLINK, libc::AF_UNIX].map(|family| family as u64);
    calls.insert(libc::SYS_socket, any_of(0, &families)?);
    SeccompFilter::new(calls, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, architecture()?)
}

fn architecture() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

fn any_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.iter().map(|value| one(argument, SeccompCmpOp::Eq, *value)).collect()
}

fn one(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in its own thread, because the filter cannot be removed.
    #[test]
    fn what_is_not_allowed_fails_and_the_rest_works() {
        std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            apply().unwrap();
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7, "threads");
            assert!(std::fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp:"));
            let refused = |error: std::io::Error| error.raw_os_error() == Some(libc::EPERM);
            assert!(refused(std::process::Command::new("/bin/true").spawn().unwrap_err()));
            assert!(refused(std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err()));
            assert!(refused(std::os::unix::fs::chroot("/").unwrap_err()));
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping at an address that the kernel chooses; no other code uses it.
            let map =
                |protection| unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
            assert_ne!(map(libc::PROT_READ | libc::PROT_WRITE), libc::MAP_FAILED);
            assert_eq!(map(libc::PROT_READ | libc::PROT_EXEC), libc::MAP_FAILED);
        })
        .join()
        .unwrap();
    }
}
