//! Readers of single values: a port, a name, a duration. Each reports an invalid value with a hint.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use lb_common::nat::{PROBES, Ports};
use toml::de::DeValue;

use super::{
    Accept, Bind, Forward, Group, HealthCheck, Mode, Prefix, StoreLocation, XdpMode,
    read::{Report, Wrong, described},
};

type Read<T> = Result<T, Wrong>;

/// A longer lifetime would make a token a password.
const MAX_TTL: std::ops::RangeInclusive<u64> = 1..=366 * 86_400;
/// Below the minimum, the LRU's per-CPU free lists are larger than the map; above the maximum, the map takes gigabytes.
const SESSIONS: std::ops::RangeInclusive<u64> = 256..=16_777_216;
/// A CPU computes about 1.3 million HMACs per second: a budget above the maximum would limit nothing.
const HMAC_BUDGET: std::ops::RangeInclusive<u64> = 1..=2_000_000;
/// More would gain nothing: shares are rounded to a table of 16381 positions.
const WEIGHT: std::ops::RangeInclusive<u64> = 1..=65_535;
/// `sockaddr_un` has 108 bytes, including the terminating NUL.
const SOCKET_PATH_MAX: usize = 107;
/// `IFNAMSIZ` is 16, including the terminating NUL.
const INTERFACE_NAME_MAX: usize = 15;
const NAME_MAX: usize = 64;
/// A range with fewer ports is probably a mistake.
const NAT_PORTS_MIN: u32 = 8;

fn wrong<T>(message: String, hint: impl Into<String>) -> Read<T> {
    Err(Wrong { message, hint: hint.into() })
}

fn not_yet<T>(path: &str, value: &DeValue<'_>, hint: &str) -> Read<T> {
    wrong(format!("`{path}` = {} is not supported by this version", described(value)), hint)
}

fn text<'v>(path: &str, value: &'v DeValue<'_>, example: &str) -> Read<&'v str> {
    match value.as_str() {
        Some(text) => Ok(text),
        None => wrong(
            format!("`{path}` is {}, not a string", described(value)),
            format!("write it in quotes, for example `{example}`"),
        ),
    }
}

fn integer(path: &str, value: &DeValue<'_>, range: std::ops::RangeInclusive<u64>) -> Read<u64> {
    let hint = format!("it is a whole number, {} to {}", range.start(), range.end());
    let Some(number) = value.as_integer() else {
        return wrong(format!("`{path}` is {}, not a whole number", described(value)), hint);
    };
    match u64::from_str_radix(number.as_str(), number.radix()) {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => wrong(format!("`{path}` = {number} is out of range"), hint),
    }
}

fn narrowed<T: TryFrom<u64>>(
    path: &str,
    value: &DeValue<'_>,
    range: std::ops::RangeInclusive<u64>,
) -> Read<T> {
    let number = integer(path, value, range)?;
    Ok(T::try_from(number).unwrap_or_else(|_| unreachable!("the range of {path} fits its type")))
}

fn one_of<T: Copy>(path: &str, value: &DeValue<'_>, choices: &[(&str, T)]) -> Read<T> {
    let names = || choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
    let found = value.as_str().and_then(|text| choices.iter().find(|(name, _)| *name == text));
    match found {
        Some((_, choice)) => Ok(*choice),
        None => wrong(
            format!("`{path}` = {} is not one of its values", described(value)),
            format!("write {}", names()),
        ),
    }
}

pub(super) fn max_sources(path: &str, value: &DeValue<'_>) -> Read<Option<u8>> {
    narrowed(path, value, 1..=lb_common::session::SOURCES_MAX as u64).map(Some)
}

pub(super) fn boolean(path: &str, value: &DeValue<'_>) -> Read<bool> {
    match value.as_bool() {
        Some(truth) => Ok(truth),
        None => wrong(
            format!("`{path}` is {}, not true or false", described(value)),
            "write true or false, without quotes",
        ),
    }
}

pub(super) fn service_id(path: &str, value: &DeValue<'_>) -> Read<u32> {
    narrowed(path, value, 1..=u64::from(u32::MAX))
}

pub(super) fn backend_id(path: &str, value: &DeValue<'_>) -> Read<u16> {
    narrowed(path, value, 1..=u64::from(u16::MAX))
}

pub(super) fn port(path: &str, value: &DeValue<'_>) -> Read<u16> {
    narrowed(path, value, 1..=u64::from(u16::MAX))
}

pub(super) fn weight(path: &str, value: &DeValue<'_>) -> Read<u32> {
    narrowed(path, value, WEIGHT)
}

pub(super) fn sessions(path: &str, value: &DeValue<'_>) -> Read<u32> {
    narrowed(path, value, SESSIONS)
}

pub(super) fn hmac_budget(path: &str, value: &DeValue<'_>) -> Read<u32> {
    narrowed(path, value, HMAC_BUDGET)
}

/// A name for metrics and the command line.
pub(super) fn name(path: &str, value: &DeValue<'_>) -> Read<String> {
    const HINT: &str =
        "a name begins with a letter or digit, has letters, digits, `.`, `_` and `-`, and is no number";
    let name = text(path, value, &format!("{path} = \"game\""))?;
    if name.len() > NAME_MAX {
        return wrong(
            format!("`{path}` has {} characters", name.chars().count()),
            format!("at most {NAME_MAX}"),
        );
    }
    let bears = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !begins || !name.chars().all(bears) || name.chars().all(|c| c.is_ascii_digit()) {
        return wrong(format!("`{path}` = {} is not a name", described(value)), HINT);
    }
    Ok(name.to_owned())
}

/// The name of this host. `None` if it is not a valid node name, which is reported.
pub(super) fn host_name(report: &mut Report<'_>) -> Option<String> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let read = name("node", &DeValue::String(host.as_str().into()));
    if read.is_err() {
        let wrong = Wrong {
            message: format!("the host name {host:?} is not a valid name of a node"),
            hint: "add a line like `node = \"lb-1\"`".to_owned(),
        };
        report.problem("node", 0..0, wrong);
    }
    read.ok()
}

pub(super) fn interfaces(path: &str, value: &DeValue<'_>) -> Read<Vec<String>> {
    let example = "write a list, as in `interfaces = [\"eth0\"]`";
    let Some(elements) = value.as_array() else {
        return wrong(format!("`{path}` is {}, not a list", described(value)), example);
    };
    if elements.as_ref().is_empty() {
        return wrong(format!("`{path}` is empty"), example);
    }
    let mut names = Vec::new();
    for element in elements.as_ref() {
        let name = text(path, element.get_ref(), "interfaces = [\"eth0\"]")?;
        // The rule of the kernel: dev_valid_name in net/core/dev.c.
        let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name.is_empty()
            || name.len() > INTERFACE_NAME_MAX
            || name == "."
            || name == ".."
            || name.contains(forbidden)
        {
            return wrong(
                format!("`{path}`: {name:?} is not an interface's name"),
                format!("at most {INTERFACE_NAME_MAX} bytes, without space, `/` and `:`; see `ip link`"),
            );
        }
        if names.iter().any(|known| known == name) {
            return wrong(format!("`{path}`: {name:?} is named twice"), "name it once");
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Leaves room in the program's table for the interfaces' own addresses.
const VIRTUAL_MACS_MAX: usize = 32;

pub(super) fn virtual_macs(path: &str, value: &DeValue<'_>) -> Read<Vec<[u8; 6]>> {
    const EXAMPLE: &str = "virtual_macs = [\"00:00:5e:00:01:0a\"]";
    let example = format!("write a list, as in `{EXAMPLE}`");
    let Some(elements) = value.as_array() else {
        return wrong(format!("`{path}` is {}, not a list", described(value)), example);
    };
    if elements.as_ref().len() > VIRTUAL_MACS_MAX {
        return wrong(
            format!("`{path}` has {} addresses", elements.as_ref().len()),
            format!("at most {VIRTUAL_MACS_MAX}"),
        );
    }
    let mut macs = Vec::new();
    for element in elements.as_ref() {
        let given = text(path, element.get_ref(), EXAMPLE)?;
        let is_octet = |text: &&str| text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let octet = |text| Some(text).filter(is_octet).and_then(|text| u8::from_str_radix(text, 16).ok());
        let octets: Option<Vec<u8>> = given.split(':').map(octet).collect();
        let Some(mac) = octets.and_then(|octets| <[u8; 6]>::try_from(octets).ok()) else {
            return wrong(format!("`{path}`: {given:?} is not a MAC address"), example);
        };
        if mac[0] & 1 != 0 {
            let hint =
                "write the address of one station: packets in frames for a group are never a service's";
            return wrong(format!("`{path}`: {given:?} is a group address"), hint);
        }
        if mac == [0; 6] {
            return wrong(format!("`{path}`: {given:?} is no station's address"), example);
        }
        if macs.contains(&mac) {
            return wrong(format!("`{path}`: {given:?} is named twice"), "name it once");
        }
        macs.push(mac);
    }
    Ok(macs)
}

pub(super) fn xdp_mode(path: &str, value: &DeValue<'_>) -> Read<XdpMode> {
    let choices = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
    one_of(path, value, &choices)
}

pub(super) fn store(path: &str, value: &DeValue<'_>) -> Read<StoreLocation> {
    const HINT: &str = "write `store = \"file:/var/lib/tollgate\"`, or another absolute path";
    let location = text(path, value, "store = \"file:/var/lib/tollgate\"")?;
    match location.split_once(':') {
        Some(("file", directory)) if directory.starts_with('/') => Ok(StoreLocation::File(directory.into())),
        Some(("etcd", _)) => not_yet(path, value, HINT),
        _ => wrong(format!("`{path}` = {location:?} is not a store"), HINT),
    }
}

fn absolute(path: &str, value: &DeValue<'_>, example: &str) -> Read<PathBuf> {
    let file = text(path, value, example)?;
    if !file.starts_with('/') || file.contains('\0') {
        return wrong(
            format!("`{path}` = {file:?} is not an absolute path"),
            format!("begin at the root, as in `{example}`"),
        );
    }
    Ok(file.into())
}

pub(super) fn control(path: &str, value: &DeValue<'_>) -> Read<PathBuf> {
    let socket = absolute(path, value, "control = \"/run/tollgate/control.sock\"")?;
    let len = socket.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return wrong(
            format!("`{path}` has {len} bytes"),
            format!("the path of a unix socket has at most {SOCKET_PATH_MAX}"),
        );
    }
    Ok(socket)
}

/// A group that this host has.
pub(super) fn group(path: &str, value: &DeValue<'_>) -> Read<Option<Group>> {
    let name = text(path, value, &format!("{path} = \"tollgate\""))?;
    if name.is_empty() {
        return wrong(
            format!("`{path}` names no group"),
            "remove the field to give no group access, or use a group of `getent group`",
        );
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(Group { name: name.to_owned(), gid: group.gid.as_raw() })),
        Ok(None) => wrong(
            format!("`{path}` = {name:?} is not a group of this host"),
            format!("`groupadd --system {name}`, or use a group of `getent group`"),
        ),
        Err(errno) => {
            wrong(format!("`{path}` = {name:?} cannot be looked up: {errno}"), "see `getent group`")
        }
    }
}

pub(super) fn bpffs(path: &str, value: &DeValue<'_>) -> Read<PathBuf> {
    absolute(path, value, "bpffs = \"/sys/fs/bpf/tollgate\"")
}

pub(super) fn metrics(path: &str, value: &DeValue<'_>) -> Read<Option<SocketAddr>> {
    let listen = text(path, value, "metrics = \"127.0.0.1:9477\"")?;
    if listen.is_empty() {
        return Ok(None);
    }
    match listen.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => wrong(
            format!("`{path}` = {listen:?} is not an address and a port"),
            "write it as in `metrics = \"127.0.0.1:9477\"`; \"\" serves no metrics",
        ),
    }
}

pub(super) fn address(path: &str, value: &DeValue<'_>) -> Read<IpAddr> {
    let example = format!("{path} = \"203.0.113.10\"");
    let given = text(path, value, &example)?;
    let Ok(address) = given.parse() else {
        let hint = format!("write one IPv4 or IPv6 address, as in `{example}`");
        return wrong(format!("`{path}` = {given:?} is not an address"), hint);
    };
    let Some(is) = no_host(address) else { return Ok(address) };
    let hint = match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => format!("write {}", v6.to_canonical()),
        _ => "write the address of one host".to_owned(),
    };
    wrong(format!("`{path}`: {address} {is}"), hint)
}

/// Why hosts elsewhere cannot reach an address; `None` if they may.
fn no_host(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("is no particular address"),
        _ if address.is_multicast() => Some("is a multicast group"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is the broadcast address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("is an IPv4 address written as IPv6"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("is a link-local address: any link has it"),
        _ => None,
    }
}

/// Lower ports are for services of the host itself.
const NAT_PORT_MIN: u16 = 1024;

pub(super) fn nat_ports(path: &str, value: &DeValue<'_>) -> Read<Ports> {
    const EXAMPLE: &str = "nat_ports = \"10000-29999\"";
    let given = text(path, value, EXAMPLE)?;
    let ports = given.split_once('-').and_then(|(first, last)| {
        Some(Ports { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
    });
    let Some(ports) = ports else {
        let hint = format!("write the first and the last, as in `{EXAMPLE}`");
        return wrong(format!("`{path}` = {given:?} is not a range of ports"), hint);
    };
    if ports.first < NAT_PORT_MIN {
        let hint = format!("begin at {NAT_PORT_MIN} or above");
        return wrong(format!("`{path}` = {given:?} has ports of system services"), hint);
    }
    // With fewer ports, the program's probes for a free port would repeat ports.
    if u32::from(ports.last.saturating_sub(ports.first)) + 1 < NAT_PORTS_MIN {
        let hint = format!("at least {NAT_PORTS_MIN}, and one for every client that a backend has at a time");
        return wrong(format!("`{path}` = {given:?} has too few ports"), hint);
    }
    Ok(ports)
}

pub(super) fn nat_ports_per_session(path: &str, value: &DeValue<'_>) -> Read<u32> {
    narrowed(path, value, 1..=u64::from(PROBES))
}

pub(super) fn tunnel_sources(path: &str, value: &DeValue<'_>) -> Read<Vec<Prefix>> {
    let example = "write it as in `tunnel_sources = [\"10.9.0.0/24\", \"fd00:9::/64\"]`";
    let Some(elements) = value.as_array() else {
        return wrong(format!("`{path}` is {}, not a list", described(value)), example);
    };
    let mut prefixes: Vec<Prefix> = Vec::new();
    for element in elements.as_ref() {
        let given = text(path, element.get_ref(), "tunnel_sources = [\"10.9.0.0/24\"]")?;
        let parts = given.split_once('/').and_then(|(address, length)| {
            Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?))
        });
        let Some((address, length)) = parts else {
            return wrong(format!("`{path}`: {given:?} is not a prefix"), example);
        };
        let no_source = no_host(address).or(address.is_loopback().then_some("is a loopback address"));
        if let Some(is) = no_source {
            return wrong(format!("`{path}`: {address} {is}"), "write a prefix that is for this node alone");
        }
        let Some(prefix) = Prefix::new(address, length) else {
            let hint = "bits behind the prefix are zero, and there is at least one";
            return wrong(format!("`{path}`: {given:?} is no prefix of several addresses"), hint);
        };
        let is_alike = |other: &&Prefix| other.address().is_ipv4() == address.is_ipv4();
        if let Some(other) = prefixes.iter().find(is_alike) {
            let hint = "at most one of IPv4 and one of IPv6";
            return wrong(format!("`{path}`: {other} and {prefix} are of one family"), hint);
        }
        prefixes.push(prefix);
    }
    Ok(prefixes)
}

pub(super) fn accept(path: &str, value: &DeValue<'_>) -> Read<Accept> {
    const HINT: &str = "write `accept = [\"bearer\"]`, `[\"proof\"]` or `[\"bearer\", \"proof\"]`";
    let Some(kinds) = value.as_array() else {
        return wrong(format!("`{path}` is {}, not a list", described(value)), HINT);
    };
    let mut accept = Accept { bearer: false, proof: false };
    for kind in kinds.as_ref() {
        match kind.get_ref().as_str() {
            Some("bearer") => accept.bearer = true,
            Some("proof") => accept.proof = true,
            _ => {
                let found = described(kind.get_ref());
                return wrong(format!("`{path}`: {found} is not a type of token"), HINT);
            }
        }
    }
    match accept {
        Accept { bearer: false, proof: false } => {
            wrong(format!("`{path}` is empty: no token would pass"), HINT)
        }
        accept => Ok(accept),
    }
}

pub(super) fn bind(path: &str, value: &DeValue<'_>) -> Read<Bind> {
    one_of(path, value, &[("optional", Bind::Optional), ("required", Bind::Required)])
}

pub(super) fn forward(path: &str, value: &DeValue<'_>) -> Read<Forward> {
    one_of(path, value, &Forward::ALL.map(|forward| (forward.name(), forward)))
}

pub(super) fn mode(path: &str, value: &DeValue<'_>) -> Read<Mode> {
    one_of(path, value, &[("enforce", Mode::Enforce), ("observe", Mode::Observe)])
}

pub(super) fn max_ttl(path: &str, value: &DeValue<'_>) -> Read<Duration> {
    seconds(path, value, "max_ttl = \"1h\"", MAX_TTL, "1s to 366 days")
}

pub(super) fn key_rotation(path: &str, value: &DeValue<'_>) -> Read<Option<Duration>> {
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    let range = "1s to 366 days, or \"off\"";
    seconds(path, value, "key_rotation = \"24h\"", MAX_TTL, range).map(Some)
}

fn seconds(
    path: &str,
    value: &DeValue<'_>,
    example: &str,
    range: std::ops::RangeInclusive<u64>,
    range_name: &str,
) -> Read<Duration> {
    let hint = format!("write it as in `{example}`: whole seconds, {range_name}");
    let given = text(path, value, example)?;
    let Ok(duration) = humantime::parse_duration(given) else {
        return wrong(format!("`{path}` = {given:?} is not a duration"), hint);
    };
    if duration.subsec_nanos() != 0 || !range.contains(&duration.as_secs()) {
        return wrong(format!("`{path}` = {given:?} is out of range"), hint);
    }
    Ok(duration)
}

pub(super) fn health_check(path: &str, value: &DeValue<'_>) -> Read<HealthCheck> {
    let kind = value.get("type").map_or(value, |kind| kind.get_ref());
    match kind.as_str() {
        Some("none") => Ok(HealthCheck::None),
        _ => not_yet(path, value, "remove the line, or write `check = \"none\"`"),
    }
}
