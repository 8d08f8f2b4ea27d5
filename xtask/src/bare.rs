//! A bare environment for everything that runs in this kernel: like a container or a minimal system, whatever this
//! machine is like.

use std::path::Path;
use std::process::Command;

use crate::build::Built;

/// Runs in a mount and a UTS namespace: no BPF file system at its usual place, a host name that does not resolve, a
/// strict umask, few open files, no home directory.
const SCRIPT: &str = r#"set -e
mount --make-rprivate /sys
while umount --lazy /sys/fs/bpf 2>/dev/null; do :; done
if [ "$(stat --file-system --format=%T /sys/fs/bpf)" = bpf_fs ]; then
    echo "a BPF file system is still mounted at /sys/fs/bpf" >&2
    exit 1
fi
echo tollgate-test.invalid > /proc/sys/kernel/hostname
umask 077
ulimit -Sn 256
unset HOME
exec "$@"
"#;

/// Initial sysctls of new network namespaces, as on a host with these settings (`lb_tests::testbed::netns`).
const SYSCTLS: [&str; 8] = [
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.rp_filter=1",
    "net.ipv4.conf.default.rp_filter=1",
    "net.ipv4.conf.all.accept_redirects=0",
    "net.ipv4.conf.all.arp_ignore=8",
    "net.ipv4.conf.all.arp_announce=2",
    "net.ipv6.conf.all.disable_ipv6=1",
    "net.ipv6.conf.default.disable_ipv6=1",
];

/// A program of `lb-tests` in that environment.
pub fn command(built: &Built, program: &Path) -> Command {
    let mut command = built.test_program("unshare");
    command
        // In a chroot, `/` is no mount that could be made private; the script does it for what it unmounts.
        .args(["--mount", "--propagation=unchanged", "--uts", "sh", "-c", SCRIPT, "sh"])
        .arg(program)
        .env("TOLLGATE_INHERITED_SYSCTLS", SYSCTLS.join(" "));
    command
}
