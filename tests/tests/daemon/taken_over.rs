//! What an attacker who controls the daemon can do: the tests make system calls inside its process.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::testbed::{
    daemon::{Daemon, wait_for},
    user::NAME,
};
use nix::{
    errno::Errno,
    libc::{self, c_long, user_regs_struct},
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::testbed::{L2, Testbed};

/// A path that only root can access.
fn secret(testbed: &Testbed) -> Result<CString> {
    let secret = testbed.instance.path("secret");
    fs::write(&secret, "root's")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    Ok(CString::new(secret.into_os_string().into_encoded_bytes())?)
}

/// No system call gives programs, processes, connections, privileges or new code.
fn calls_are_refused(attacker: &TakenOver, daemon: &Daemon) -> Result<()> {
    let family = |family: libc::c_int| [family as u64, libc::SOCK_STREAM as u64, 0, 0];
    let map = [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64, libc::MAP_PRIVATE as u64];
    for (what, number, arguments) in [
        ("fork", libc::SYS_fork, [0; 4]),
        ("vfork", libc::SYS_vfork, [0; 4]),
        ("clone a process", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0]),
        ("trace", libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0, 0]),
        ("trace init", libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 1, 0, 0]),
        ("read another's memory", libc::SYS_process_vm_readv, [1, 0, 0, 0]),
        ("write another's memory", libc::SYS_process_vm_writev, [1, 0, 0, 0]),
        ("signal", libc::SYS_kill, [1, 0, 0, 0]),
        ("connect over IPv4", libc::SYS_socket, family(libc::AF_INET)),
        ("connect over IPv6", libc::SYS_socket, family(libc::AF_INET6)),
        ("sniff", libc::SYS_socket, family(libc::AF_PACKET)),
        ("become root", libc::SYS_setuid, [0; 4]),
        ("become root again", libc::SYS_setresuid, [0; 4]),
        ("take capabilities", libc::SYS_capset, [0; 4]),
        ("enter a namespace", libc::SYS_setns, [0; 4]),
        ("make a namespace", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0; 4]),
        ("load a module", libc::SYS_finit_module, [0; 4]),
        ("trace the kernel", libc::SYS_perf_event_open, [0; 4]),
        ("go round the filter", libc::SYS_io_uring_setup, [1, 0, 0, 0]),
        ("make a file in memory", libc::SYS_memfd_create, [0; 4]),
        ("have page faults wait", libc::SYS_userfaultfd, [0; 4]),
        ("open by a handle", libc::SYS_open_by_handle_at, [0; 4]),
        ("be dumpable", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0]),
        ("set the clock", libc::SYS_clock_settime, [0; 4]),
        ("map code", libc::SYS_mmap, map),
    ] {
        ensure!(attacker.call(number, arguments)? == Err(Errno::EPERM), "it can {what}");
    }
    let execve = attacker.with_path(libc::SYS_execve, c"/bin/sh", [0; 2])?;
    ensure!(execve == Err(Errno::EPERM), "it can start programs: {execve:?}");
    let chroot = attacker.with_path(libc::SYS_chroot, c"/", [0; 2])?;
    ensure!(chroot == Err(Errno::EPERM), "it can change its root: {chroot:?}");
    // A permitted call works.
    ensure!(attacker.call(libc::SYS_getpid, [0; 4])? == Ok(daemon.pid().into()));
    Ok(())
}

/// Afterwards, the daemon works as before.
fn is_none_the_worse(testbed: &Testbed) -> Result<()> {
    testbed.json(&["keys", "rotate", "--wait"])?;
    testbed.delivered(&testbed.token(1)?)?;
    Ok(())
}

#[test]
fn it_gets_nowhere() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(Some(NAME));
    let daemon = testbed.start()?;
    let secret = secret(&testbed)?;
    let attacker = TakenOver::of(&daemon)?;
    calls_are_refused(&attacker, &daemon)?;
    let (read, write) = (libc::O_RDONLY as u64, (libc::O_WRONLY | libc::O_CREAT) as u64);
    for (path, flags) in [
        (secret.as_c_str(), read),
        (secret.as_c_str(), write),
        (c"/etc/shadow", read),
        (c"/etc/new", write),
        (c"/proc/1/mem", read),
        // New code, through its memory file.
        (c"/proc/self/mem", write),
    ] {
        let opened = attacker.with_path(libc::SYS_open, path, [flags, 0o600])?;
        ensure!(opened == Err(Errno::EACCES), "{path:?}: {opened:?}");
    }
    // A permitted call works.
    ensure!(attacker.with_path(libc::SYS_open, c"/proc/self/stat", [read, 0])?.is_ok());
    drop(attacker);
    is_none_the_worse(&testbed)
}

#[test]
fn as_root_it_gets_to_roots_files_alone() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(None);
    let daemon = testbed.start()?;
    let secret = secret(&testbed)?;
    let attacker = TakenOver::of(&daemon)?;
    calls_are_refused(&attacker, &daemon)?;
    // The purpose of `--user`.
    ensure!(attacker.with_path(libc::SYS_open, &secret, [libc::O_WRONLY as u64, 0])?.is_ok());
    drop(attacker);
    is_none_the_worse(&testbed)
}

/// A daemon whose first thread executes the test's system calls, until it is dropped.
struct TakenOver {
    pid: Pid,
    /// Its registers, at the instruction after a system call that waits.
    at: user_regs_struct,
}

/// `syscall`, little-endian.
const SYSCALL: c_long = 0x050f;

impl TakenOver {
    fn of(daemon: &Daemon) -> Result<Self> {
        let pid = Pid::from_raw(daemon.pid().try_into()?);
        let mut taken = None;
        wait_for("the daemon to wait for something", || {
            ptrace::attach(pid)?;
            waitpid(pid, Some(WaitPidFlag::__WALL))?;
            let at = ptrace::getregs(pid)?;
            if ptrace::read(pid, (at.rip - 2) as ptrace::AddressType)? & 0xffff == SYSCALL {
                taken = Some(Self { pid, at });
            } else {
                ptrace::detach(pid, None)?;
            }
            Ok(taken.is_some())
        })?;
        taken.context("it waits")
    }

    /// A system call with these arguments, the others being zero.
    fn call(&self, number: c_long, [rdi, rsi, rdx, r10]: [u64; 4]) -> Result<Result<u64, Errno>> {
        let rip = self.at.rip - 2;
        // `orig_rax` tells the kernel not to restart the interrupted system call.
        let (rax, orig_rax) = (number as u64, u64::MAX);
        ptrace::setregs(
            self.pid,
            user_regs_struct { rip, rax, orig_rax, rdi, rsi, rdx, r10, r8: 0, r9: 0, ..self.at },
        )?;
        ptrace::step(self.pid, None)?;
        waitpid(self.pid, Some(WaitPidFlag::__WALL))?;
        let answer = ptrace::getregs(self.pid)?.rax.cast_signed();
        Ok(u64::try_from(answer).map_err(|_| Errno::from_raw(-answer as i32)))
    }

    /// Like [`Self::call`], with a path as the first argument.
    fn with_path(&self, number: c_long, path: &CStr, [rsi, rdx]: [u64; 2]) -> Result<Result<u64, Errno>> {
        // Below the stack, where no data is kept.
        let at = self.at.rsp - 1024;
        File::options()
            .write(true)
            .open(format!("/proc/{}/mem", self.pid))?
            .write_all_at(path.to_bytes_with_nul(), at)?;
        self.call(number, [at, rsi, rdx, 0])
    }
}

impl Drop for TakenOver {
    fn drop(&mut self) {
        // If this fails, the daemon has ended, which the test detects.
        let _ = ptrace::setregs(self.pid, self.at).and_then(|()| ptrace::detach(self.pid, None));
    }
}
