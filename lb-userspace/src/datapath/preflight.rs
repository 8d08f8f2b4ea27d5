//! Checks of this host before anything is changed.

use std::{borrow::Cow, fs, path::Path};

use aya::util::KernelVersion;
use lb_common::{
    balance::MaglevTable,
    maps,
    nat::{Ports, Translation},
    rate::RateTable,
    session::{Session, StatefulEntry},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Options, Pins, embedded_object};
use crate::protocol::Verdict;

/// The oldest supported kernel.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(6, 1, 0);

/// File descriptors of any command: files of libraries, a socket, and those of the asynchronous runtime.
const DESCRIPTORS_OF_A_COMMAND: u64 = 32;
/// File descriptors of a daemon that serves one client at a time: maps, programs, netlink, the store, listeners.
const DESCRIPTORS_OF_THE_DAEMON: u64 = 128;
/// File descriptors of a daemon with the maximum number of connections.
const DESCRIPTORS_OF_A_BUSY_DAEMON: u64 = 512;
const MORE_DESCRIPTORS: &str = "raise it: `ulimit -n 1024`, or `LimitNOFILE=1024` in the systemd unit";

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The subject of the check.
    pub name: Cow<'static, str>,
    /// The result.
    pub verdict: Verdict,
    /// The finding.
    pub found: String,
    /// What to do about it, unless the result is ok.
    pub hint: Cow<'static, str>,
}

/// Checks kernel, capabilities and memory for a program that is loaded with these options and pinned below `bpffs`.
pub fn checks(bpffs: &Path, options: &Options) -> Vec<Check> {
    let mut checks =
        vec![program(), kernel(), rights(), btf(), jit(), pinning(bpffs), memory(options), descriptors()];
    checks.extend(options.nat_ports.map(kept_ports));
    checks
}

/// Raises the limit of locked memory, which kernels before 5.11 count maps against.
pub fn raise_memlock_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && soft != hard
    {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// Raises the limit of open files to the hard limit.
///
/// # Errors
/// If the hard limit is lower than any command needs; the error says what to do.
pub fn raise_descriptor_limit() -> Result<(), String> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    if soft < hard {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    if hard < DESCRIPTORS_OF_A_COMMAND {
        return Err(format!(
            "this process may open {hard} files (RLIMIT_NOFILE), and needs {DESCRIPTORS_OF_A_COMMAND}; \
             {MORE_DESCRIPTORS}"
        ));
    }
    Ok(())
}

fn descriptors() -> Check {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let (verdict, needed) = match limit {
        ..DESCRIPTORS_OF_THE_DAEMON => (Verdict::Failed, DESCRIPTORS_OF_THE_DAEMON),
        DESCRIPTORS_OF_THE_DAEMON..DESCRIPTORS_OF_A_BUSY_DAEMON => {
            (Verdict::Warning, DESCRIPTORS_OF_A_BUSY_DAEMON)
        }
        _ => (Verdict::Ok, DESCRIPTORS_OF_A_BUSY_DAEMON),
    };
    let found = format!("this process may open {limit} files (RLIMIT_NOFILE); the daemon needs {needed}");
    Check { name: "descriptors".into(), verdict, found, hint: MORE_DESCRIPTORS.into() }
}

fn check(name: &'static str, good: bool, found: String, hint: impl Into<Cow<'static, str>>) -> Check {
    let verdict = if good { Verdict::Ok } else { Verdict::Failed };
    Check { name: name.into(), verdict, found, hint: hint.into() }
}

fn program() -> Check {
    match embedded_object() {
        Ok(object) => check("program", true, format!("{} bytes, built in", object.len()), ""),
        Err(_) => check("program", false, "not built in".to_owned(), "build with `cargo xtask build`"),
    }
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let new_enough = KernelVersion::current().is_ok_and(|running| running >= OLDEST_KERNEL);
    let found = format!("Linux {}", release.trim());
    check("kernel", new_enough, found, "Linux 6.1 or later is needed")
}

/// Bits of the capabilities, from linux/capability.h.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

fn rights() -> Check {
    const HINT: &str = "run as root, or give the process CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|word| u64::from_str_radix(word.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<_> =
        CAPABILITIES.into_iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| name).collect();
    match missing.as_slice() {
        [] => check("rights", true, "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON".into(), HINT),
        missing => check("rights", false, format!("{} missing", missing.join(" and ")), HINT),
    }
}

fn btf() -> Check {
    let there = Path::new("/sys/kernel/btf/vmlinux").exists();
    let found = if there { "/sys/kernel/btf/vmlinux" } else { "none: no /sys/kernel/btf/vmlinux" };
    check(
        "BTF",
        there,
        found.into(),
        "use a kernel with CONFIG_DEBUG_INFO_BTF (all distributions'), and mount /sys",
    )
}

fn jit() -> Check {
    const HINT: &str = "`sysctl net.core.bpf_jit_enable=1`: interpreted, the program is many times slower";
    // The file is absent if the kernel always uses the JIT.
    let setting = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_else(|_| "1".into());
    let off = setting.trim() == "0";
    let verdict = if off { Verdict::Warning } else { Verdict::Ok };
    Check { name: "JIT".into(), verdict, found: if off { "off" } else { "on" }.into(), hint: HINT.into() }
}

fn pinning(bpffs: &Path) -> Check {
    match Pins::new(bpffs) {
        Ok(_) => check("bpffs", true, bpffs.display().to_string(), ""),
        Err(_) => {
            let found = format!("{} is not on a BPF file system", bpffs.display());
            let hint = "`mount -t bpf bpf /sys/fs/bpf`, or set `bpffs` to a directory below one";
            check("bpffs", false, found, hint)
        }
    }
}

fn memory(options: &Options) -> Check {
    // An entry of an LRU hash: 48 bytes of kernel data, key and value rounded up to multiples of 8, and a bucket of 16
    // bytes.
    let caches: u64 = [
        (maps::SESSIONS, 48 + 16 + size_of::<Session>() + 16),
        (maps::STATEFUL, 48 + 16 + size_of::<StatefulEntry>() + 16),
        (maps::FLOWS, 48 + 24 + 32 + 16),
        (maps::TRANSLATIONS, 48 + 24 + size_of::<Translation>() + 16),
    ]
    .iter()
    .map(|(map, entry)| u64::from(options.entries(map).unwrap_or_default()) * *entry as u64)
    .sum();
    let cpus = aya::util::nr_cpus().unwrap_or(1) as u64;
    const REVOCATION: u64 = 48 + 16 + 8 + 16;
    let of_service = size_of::<MaglevTable>() + size_of::<RateTable>();
    let tables = u64::from(maps::BANKS * maps::SERVICES_MAX) * of_service as u64
        + u64::from(maps::REVOCATIONS_MAX) * REVOCATION;
    let counters = u64::from(maps::COUNTERS_MAX + maps::BACKENDS_MAX) * 16 * cpus;
    let needed = (caches + tables + counters) >> 20;
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        })
        .map(|kib| kib >> 10);
    let found = match available {
        Some(available) => format!("the maps take about {needed} MiB, {available} MiB are available"),
        None => format!("the maps take about {needed} MiB"),
    };
    // Maps pinned by an earlier daemon are already part of the used memory.
    let fits = available.is_none_or(|available| needed < available);
    let verdict = if fits { Verdict::Ok } else { Verdict::Warning };
    Check { name: "memory".into(), verdict, found, hint: "free memory, or reduce `sessions`".into() }
}

/// Whether this host assigns ports of `nat_ports` to its own sockets.
fn kept_ports(nat_ports: Ports) -> Check {
    let setting = |name| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let (own, reserved) = (setting("ip_local_port_range"), setting("ip_local_reserved_ports"));
    let (first, last) = (nat_ports.first, nat_ports.last);
    let found = in_danger(nat_ports, &own, &reserved);
    let reserved = match reserved.trim() {
        "" => String::new(),
        list => format!("{list},"),
    };
    match found {
        None => check(
            "nat_ports",
            true,
            format!("{first}-{last}, which this host does not assign to its own sockets"),
            "",
        ),
        Some(port) => check(
            "nat_ports",
            false,
            format!(
                "this host assigns ports {} to its own sockets, including {port}",
                own.split_whitespace().collect::<Vec<_>>().join("-")
            ),
            format!(
                "`sysctl -w net.ipv4.ip_local_reserved_ports={reserved}{first}-{last}`, or set `nat_ports` to others"
            ),
        ),
    }
}

/// The first port that this host could assign to a socket: in its range, and not reserved.
fn in_danger(nat_ports: Ports, range: &str, reserved: &str) -> Option<u16> {
    let mut ends = range.split_whitespace().map_while(|end| end.parse::<u16>().ok());
    let own = ends.next()?..=ends.next()?;
    let reserved: Vec<_> = reserved
        .trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
        })
        .collect();
    (nat_ports.first..=nat_ports.last)
        .find(|port| own.contains(port) && !reserved.iter().any(|range| range.contains(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_nat_are_nobody_elses() {
        let ports = Ports { first: 40_000, last: 40_009 };
        for (range, reserved, expected) in [
            ("32768\t60999\n", "\n", Some(40_000)),
            ("32768\t60999\n", "40000-40009\n", None),
            ("32768\t60999\n", "8080,40000-40004,40006-40009\n", Some(40_005)),
            ("32768\t60999\n", "8080,40000-40004,40005,40006-50000\n", None),
            ("32768\t39999\n", "\n", None),
            ("40009\t60999\n", "\n", Some(40_009)),
            ("", "", None),
        ] {
            assert_eq!(in_danger(ports, range, reserved), expected, "{range:?} {reserved:?}");
        }
    }
}
