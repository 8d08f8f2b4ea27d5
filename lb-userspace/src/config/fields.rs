//! The fields of the file, one row each.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use lb_common::nat::Ports;

use super::{
    Accept, Bind, Forward, Group, HealthCheck, Mode, Prefix, Rate, StoreLocation, Warning, XdpMode, rate,
    read::{Fields, Report},
    table::{Absent, Absent::*, Field, FieldDoc, table},
    values,
};

/// The default path of the control socket.
pub const CONTROL: &str = "/run/tollgate/control.sock";

table! {
    /// A whole configuration, with the defaults filled in.
    pub struct Config / ConfigDraft, "";

    /// Interfaces that the XDP program is attached to: at least one, each named once. With `nat`, replies of backends
    /// must arrive on one of them.
    interfaces: Vec<String> = values::interfaces, Error("interfaces = [\"eth0\"]");

    /// Name of this node in `tollgate status` and in the log.
    node: String = values::name, Derived("the host name");

    /// XDP mode. `native`: the program runs in the driver. `generic`: the program runs after the kernel has built an
    /// skb, which is slow. `auto`: `native` if the driver supports it, else `generic`.
    xdp_mode: XdpMode = values::xdp_mode, Text("auto");

    /// Where keys and revocations are stored: `file:`, followed by the path of a directory.
    store: StoreLocation = values::store, Text("file:/var/lib/tollgate");

    /// Path of the control socket.
    control: PathBuf = values::control, Text(CONTROL);

    /// Group of this host whose members may send read requests to the control socket: see [Control
    /// socket](operations.md#control-socket).
    control_group: Option<Group> = values::group, Value(|| None, "none");

    /// Group of this host whose members may send all requests to the control socket, including those that change state
    /// or return secrets.
    admin_group: Option<Group> = values::group, Value(|| None, "none");

    /// Address and port of `/metrics`, `/healthz` and `/readyz`. An empty string disables them.
    metrics: Option<SocketAddr> = values::metrics, Text("127.0.0.1:9477");

    /// Directory in a BPF file system where the program, links and maps are pinned. Before you change it, stop the
    /// daemon and run `tollgate detach` with the old value.
    bpffs: PathBuf = values::bpffs, Text("/sys/fs/bpf/tollgate");

    /// Capacity of each of four tables: verified tokens without state; *stateful entries* (PROOF tokens, and tokens of
    /// services with `rate` or `max_sources`); flows, which assign ICMP errors to sessions; and translations of `nat`.
    /// A new value empties all four, and thus resets replay windows and limits.
    sessions: u32 = values::sessions, Toml("262144");

    /// Maximum HMAC verifications per CPU per second. Each new token needs one. Above the maximum, packets with new
    /// tokens are dropped and counted as `hmac_budget`.
    hmac_budget: u32 = values::hmac_budget, Toml("200000");

    /// At most 32 unicast MAC addresses. Frames to them are accepted on each of `interfaces`, in addition to frames to
    /// the interface's own addresses. Needed for virtual routers (VRRP) whose MAC address belongs to no device, such as
    /// `["00:00:5e:00:01:0a"]`, and for guests behind a bridge that have a service's IP address. See [MAC
    /// addresses](operations.md#mac-addresses).
    virtual_macs: Vec<[u8; 6]> = values::virtual_macs, Value(Vec::new, "none");

    /// Ports of this node that `nat` uses as source ports. The host must not give them to its own sockets. The default
    /// lies below Linux's default ephemeral range, 32768 to 60999. If `net.ipv4.ip_local_port_range` is wider, reserve
    /// the ports (`sysctl -w net.ipv4.ip_local_reserved_ports=10000-29999`) or choose another range.
    nat_ports: Ports = values::nat_ports, Text("10000-29999");

    /// Maximum number of `nat` ports that one session holds towards one backend, 1 to 16. At the maximum, a new client
    /// address and port of the session takes over the port that has been idle longest. In `mode = "observe"`, packets
    /// without a valid token are limited by source address instead (IPv6: by its first 64 bits).
    nat_ports_per_session: u32 = values::nat_ports_per_session, Toml("8");

    /// At most one IPv4 and one IPv6 prefix, routed to this node. `ipip` and `gue` take the outer source address from
    /// it. A hash of the session selects the address, so that receivers spread the sessions over their queues. Without
    /// this field, the outer source is this node's address towards the backend.
    tunnel_sources: Vec<Prefix> = values::tunnel_sources, Value(Vec::new, "none");

    tables
    /// The protected services: ids, names, and pairs of address and port are unique.
    services ["service"]: Service / ServiceDraft;

    computed
    /// Settings that are allowed but probably a mistake.
    warnings: Vec<Warning>;
}

table! {
    /// A protected service.
    pub struct Service / ServiceDraft, "service.";

    /// ID of the service, 1 to 2^32-1: the `service_id` in its tokens.
    id: u32 = values::service_id, Error("id = 42");

    /// Name in metrics and on the command line. It begins with a letter or digit, consists of letters, digits, `.`, `_`
    /// and `-`, and is not a number.
    name: String = values::name, Error("name = \"game\"");

    /// Address that clients send to, IPv4 or IPv6.
    address: IpAddr = values::address, Error("address = \"203.0.113.10\"");

    /// UDP port that clients send to.
    port: u16 = values::port, Error("port = 7777");

    /// Forwarding mode: `local`, `l2`, `ipip`, `gue` or `nat`. See [Forwarding modes](operations.md#forwarding-modes).
    forward: Forward = values::forward, Error("forward = \"l2\"");

    /// Accepted token types: `bearer`, `proof`, or both.
    accept: Accept = values::accept, Toml("[\"bearer\"]");

    /// `required`: only tokens that are bound to a client address are accepted. `optional`: tokens that are not bound
    /// are accepted, too.
    bind: Bind = values::bind, Text("optional");

    /// Maximum lifetime of a token: whole seconds, 1 second to 366 days.
    max_ttl: Duration = values::max_ttl, Text("1h");

    /// Whether the token header is removed before the datagram is forwarded.
    strip: bool = values::boolean, Toml("true");

    /// `enforce`: only packets with a valid token are delivered. `observe`: packets without one are delivered
    /// unchanged, and counted under the reason for which `enforce` would drop them. See [Introduce tokens to a running
    /// service](operations.md#introduce-tokens-to-a-running-service).
    mode: Mode = values::mode, Text("enforce");

    /// Interval of key rotation: whole seconds, 1 second to 366 days. `"off"`: keys are rotated only by
    /// `tollgate keys rotate`.
    key_rotation: Option<Duration> = values::key_rotation, Text("24h");

    /// Maximum packet rate of a session, by the class in its token: `{ "0" = "1000/s", "3" = "200/s burst 400" }`.
    /// Classes are 0 to 255, rates and bursts 1 to 1,000,000. The default burst is the number of packets of one second.
    /// A class that is not listed has no limit.
    rates ["rate"]: BTreeMap<u8, Rate> = rate::rates, Value(BTreeMap::new, "none");

    /// Maximum number of source addresses of a token, 1 to 8. IPv6 addresses count by their first 64 bits. An address
    /// counts for as long as the token is in the token cache.
    max_sources: Option<u8> = values::max_sources, Value(|| None, "no limit");

    tables
    /// Its backends: ids, names and addresses are unique.
    backends ["backend"]: Backend / BackendDraft;
}

table! {
    /// A backend of a service.
    pub struct Backend / BackendDraft, "service.backend.";

    /// ID of the backend, 1 to 65535: the `backend_id` in tokens.
    id: u16 = values::backend_id, Error("id = 1");

    /// The backend's own address, of the same family as the service's. With `ipip` and `gue`, an IPv4 service may also
    /// have IPv6 backends.
    address: IpAddr = values::address, Error("address = \"10.0.0.11\"");

    /// Name in metrics and on the command line.
    name: String = values::name, Derived("its address; if `port` differs from the service's, address and port");

    /// UDP port of the backend. Only `nat` supports a port other than the service's.
    port: u16 = values::port, Derived("the service's");

    /// Share of the sessions, relative to the weights of the other backends: 1 to 65535.
    weight: u32 = values::weight, Toml("100");

    /// Health check. This version has none: the only values are `"none"` and `{ type = "none" }`.
    check: HealthCheck = values::health_check, Text("none");
}

impl ConfigDraft {
    /// Fills in the values that derive from other fields or from the host.
    pub(super) fn derive(&mut self, report: &mut Report<'_>) {
        self.node.derive(self.span.clone(), || values::host_name(report));
        for service in &mut self.services {
            let Some(service_port) = service.port.as_ref().map(|port| *port.get_ref()) else { continue };
            service.backends.iter_mut().for_each(|backend| backend.derive(service_port));
        }
    }
}

impl BackendDraft {
    fn derive(&mut self, service_port: u16) {
        self.port.derive(self.span.clone(), || Some(service_port));
        let (Some(address), Some(port)) = (self.address.as_ref(), self.port.as_ref()) else { return };
        let (span, address, port) = (address.span(), *address.get_ref(), *port.get_ref());
        self.name.derive(span, || {
            Some(match port == service_port {
                true => address.to_string(),
                false => SocketAddr::new(address, port).to_string(),
            })
        });
    }
}
