//! The fields of the file, with their defaults.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use lb_common::nat::{PER_SESSION_DEFAULT, Ports};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Accept, Backend, Bind, Config, Forward, Mode, Rate, Service, StoreLocation, XdpMode, check, rate,
    read::{Fields, Report, Wrong},
    values,
};

/// Where the control socket is if nobody says.
pub const CONTROL: &str = "/run/tollgate/control.sock";
const METRICS: &str = "127.0.0.1:9477";
const BPFFS: &str = "/sys/fs/bpf/tollgate";
const STORE: &str = "/var/lib/tollgate";
const HMAC_BUDGET: u32 = lb_common::maps::HMACS_PER_SECOND_DEFAULT as u32;
const MAX_TTL: Duration = Duration::from_hours(1);
const KEY_ROTATION: Duration = Duration::from_hours(24);
const WEIGHT: u32 = 100;
/// Below the ports that Linux gives to its own sockets by default, 32768 to 60999 (`ip_local_port_range`, ip(7)).
const NAT_PORTS: Ports = Ports { first: 10_000, last: 29_999 };

/// A service, and where its fields are.
pub(super) struct ServiceDraft {
    pub(super) span: std::ops::Range<usize>,
    pub(super) id: Option<Spanned<u32>>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<std::net::IpAddr>>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) forward: Option<Spanned<Forward>>,
    pub(super) accept: Option<Spanned<Accept>>,
    pub(super) max_ttl: Duration,
    pub(super) key_rotation: Option<Duration>,
    pub(super) backends: Vec<BackendDraft>,
    bind: Bind,
    strip: bool,
    mode: Mode,
    rates: BTreeMap<u8, Rate>,
    max_sources: Option<u8>,
}

/// A backend, and where its fields are.
pub(super) struct BackendDraft {
    pub(super) span: std::ops::Range<usize>,
    pub(super) id: Option<Spanned<u16>>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<std::net::IpAddr>>,
    pub(super) port: Option<Spanned<u16>>,
    weight: u32,
}

/// Reads the whole file. `None` only if `report` says why.
pub(super) fn config(report: &mut Report<'_>) -> Option<Config> {
    let (root, errors) = DeTable::parse_recoverable(report.text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let wrong = Wrong {
            message: format!("not TOML: {}", error.message()),
            mend: "see https://toml.io".to_owned(),
        };
        report.problem("", span, wrong);
    }
    if !errors.is_empty() {
        // What the rest of a broken file says is a guess.
        return None;
    }
    let mut fields = Fields::new("", 0..0, root.get_ref());
    let node = fields.optional(report, "node", values::name).map(Spanned::into_inner);
    let node = node.or_else(|| host_name(report));
    let interfaces = fields.required(report, "interfaces", values::interfaces, "interfaces = [\"eth0\"]");
    let xdp_mode = fields.optional(report, "xdp_mode", values::xdp_mode);
    let store = fields.or(report, "store", values::store, StoreLocation::File(STORE.into()));
    let control = fields.or(report, "control", values::control, CONTROL.into());
    let control_group = fields.optional(report, "control_group", values::group).map(Spanned::into_inner);
    let admin_group = fields.optional(report, "admin_group", values::group).map(Spanned::into_inner);
    let metrics = fields.or(report, "metrics", values::metrics, METRICS.parse().ok());
    let bpffs = fields.or(report, "bpffs", values::bpffs, BPFFS.into());
    let sessions = fields.or(report, "sessions", values::sessions, lb_common::maps::SESSIONS_DEFAULT);
    let hmac_budget = fields.or(report, "hmac_budget", values::hmac_budget, HMAC_BUDGET);
    let nat_ports = fields.or(report, "nat_ports", values::nat_ports, NAT_PORTS);
    let nat_ports_per_session =
        fields.or(report, "nat_ports_per_session", values::nat_ports_per_session, PER_SESSION_DEFAULT);
    let tunnel_sources = fields.optional(report, "tunnel_sources", values::tunnel_sources);
    let virtual_macs = fields.or(report, "virtual_macs", values::virtual_macs, Vec::new());
    let tables = fields.tables(report, "service", "service.");
    let drafts: Vec<_> = tables.into_iter().map(|table| service(report, table)).collect();
    fields.refuse_others(report);
    check::services(report, &drafts);
    check::generic_mode(report, &drafts, xdp_mode.as_ref());
    check::addresses_of_node(report, &drafts, nat_ports, tunnel_sources.as_ref());
    Some(Config {
        node: node?,
        interfaces: interfaces?.into_inner(),
        xdp_mode: xdp_mode.map_or(XdpMode::Auto, Spanned::into_inner),
        store,
        control,
        control_group,
        admin_group,
        metrics,
        bpffs,
        sessions,
        hmac_budget,
        nat_ports,
        virtual_macs,
        nat_ports_per_session,
        tunnel_sources: tunnel_sources.map_or_else(Vec::new, Spanned::into_inner),
        services: drafts.into_iter().map(ServiceDraft::into_service).collect::<Option<_>>()?,
        warnings: Vec::new(),
    })
}

fn host_name(report: &mut Report<'_>) -> Option<String> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    match values::name("node", &DeValue::String(host.as_str().into())) {
        Ok(name) => Some(name),
        Err(_) => {
            let wrong = Wrong {
                message: format!("this host's name, {host:?}, will not do for a node"),
                mend: "add a line like `node = \"lb-1\"`".to_owned(),
            };
            report.problem("node", 0..0, wrong);
            None
        }
    }
}

fn service(report: &mut Report<'_>, mut fields: Fields<'_, '_>) -> ServiceDraft {
    let id = fields.required(report, "id", values::service_id, "id = 42");
    let name = fields.required(report, "name", values::name, "name = \"game\"");
    let address = fields.required(report, "address", values::address, "address = \"203.0.113.10\"");
    let port = fields.required(report, "port", values::port, "port = 7777");
    let accept = fields.optional(report, "accept", values::accept);
    let bind = fields.or(report, "bind", values::bind, Bind::Optional);
    let max_ttl = fields.or(report, "max_ttl", values::max_ttl, MAX_TTL);
    let strip = fields.or(report, "strip", values::boolean, true);
    let forward = fields.required(report, "forward", values::forward, "forward = \"l2\"");
    let mode = fields.or(report, "mode", values::mode, Mode::Enforce);
    let key_rotation = fields.or(report, "key_rotation", values::key_rotation, Some(KEY_ROTATION));
    let rates = fields.or(report, "rate", rate::rates, BTreeMap::new());
    let max_sources = fields.optional(report, "max_sources", values::max_sources).map(Spanned::into_inner);
    let tables = fields.tables(report, "backend", "service.backend.");
    let backends = tables.into_iter().map(|table| backend(report, table)).collect();
    let span = fields.span();
    fields.refuse_others(report);
    ServiceDraft {
        span,
        id,
        name,
        address,
        port,
        forward,
        accept,
        max_ttl,
        key_rotation,
        backends,
        bind,
        strip,
        mode,
        rates,
        max_sources,
    }
}

fn backend(report: &mut Report<'_>, mut fields: Fields<'_, '_>) -> BackendDraft {
    let id = fields.required(report, "id", values::backend_id, "id = 1");
    let name = fields.optional(report, "name", values::name);
    let address = fields.required(report, "address", values::address, "address = \"10.0.0.11\"");
    let weight = fields.or(report, "weight", values::weight, WEIGHT);
    let port = fields.optional(report, "port", values::port);
    let unchecked = |value: &DeValue<'_>| {
        value.as_str() == Some("none")
            || value.get("type").is_some_and(|kind| kind.get_ref().as_str() == Some("none"))
    };
    if !fields.raw("check").is_some_and(|value| unchecked(value.get_ref())) {
        fields.not_yet(report, "check");
    }
    let span = fields.span();
    fields.refuse_others(report);
    BackendDraft { span, id, name, address, port, weight }
}

impl ServiceDraft {
    fn into_service(self) -> Option<Service> {
        let port = self.port?.into_inner();
        let backends = self.backends.into_iter().map(|backend| backend.into_backend(port));
        Some(Service {
            id: self.id?.into_inner(),
            name: self.name?.into_inner(),
            address: self.address?.into_inner(),
            port,
            accept: self.accept.map_or(Accept { bearer: true, proof: false }, Spanned::into_inner),
            bind: self.bind,
            max_ttl: self.max_ttl,
            strip: self.strip,
            forward: self.forward?.into_inner(),
            mode: self.mode,
            key_rotation: self.key_rotation,
            rates: self.rates,
            max_sources: self.max_sources,
            backends: backends.collect::<Option<_>>()?,
        })
    }
}

impl BackendDraft {
    fn into_backend(self, service_port: u16) -> Option<Backend> {
        let address = self.address?.into_inner();
        let port = self.port.map_or(service_port, Spanned::into_inner);
        let named = || match port {
            port if port == service_port => address.to_string(),
            port => SocketAddr::new(address, port).to_string(),
        };
        Some(Backend {
            id: self.id?.into_inner(),
            name: self.name.map_or_else(named, Spanned::into_inner),
            address,
            port,
            weight: self.weight,
        })
    }
}
