//! `/metrics`: the counters of the kernel at the time of the scrape.
//!
//! prometheus-client writes OpenMetrics. Other clients get the older text format, in which the family of a counter
//! has the name of its samples.

use std::{collections::BTreeSet, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelValue, EncodeMetric, text,
    },
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::{
    control::MetricsReport,
    protocol::{BackendStatus, Count},
};

/// A metric: one family of the page.
pub struct Metric {
    /// Its name; of a counter without `_total`, which each sample's name gets.
    pub name: &'static str,
    /// Its type.
    pub kind: MetricKind,
    /// The labels of its samples, in order.
    pub labels: &'static [&'static str],
    /// The HELP text.
    pub help: &'static str,
    /// What the documentation adds to it, in Markdown; links are relative to `docs/`.
    pub details: &'static str,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows, until the maps are made anew.
    Counter,
    /// It goes up and down.
    Gauge,
}

macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal $details:literal;)+) => {
        $(const $id: Metric = Metric {
            name: $name, kind: MetricKind::$kind, labels: &[$($label),*], help: $help, details: $details,
        };)+

        impl Metric {
            /// All of them, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$($id),+];
        }
    };
}

metrics! {
    PACKETS: Counter "tollgate_packets" ["service", "reason"]
        "Packets by outcome; each packet is counted once"
        "`reason` is `forwarded`, `reply` (a reply of a `nat` backend), `icmp_error`, or the reason for \
         which the packet was dropped (with `mode = \"observe\"`: for which `enforce` would drop it): see \
         [Counters and reasons](operations.md#counters-and-reasons). `service` is empty for `not_ours`, for \
         `tables_changed`, and for `unsupported` if the frame has more than four VLAN tags";
    BYTES: Counter "tollgate_bytes" ["service", "reason"]
        "Bytes of received frames by outcome; each frame is counted once"
        "The labels are those of `tollgate_packets_total`";
    BACKEND_PACKETS: Counter "tollgate_backend_packets" ["service", "backend"] "Packets sent to a backend" "";
    BACKEND_BYTES: Counter "tollgate_backend_bytes" ["service", "backend"]
        "Bytes of the received frames that were sent to a backend"
        "";
    BACKEND_UP: Gauge "tollgate_backend_up" ["service", "backend"]
        "1 if the backend gets sessions, else 0"
        "";
    KEY_INFO: Gauge "tollgate_key_info" ["service", "key_id", "state"]
        "1 for each key; the labels show its state"
        "`state` is `staged`, `active`, `retiring` or `revoked`: see [Rotate \
         keys](operations.md#rotate-keys)";
    KEY_AGE: Gauge "tollgate_key_age_seconds" ["service", "key_id"]
        "Time since a key was created or imported"
        "";
    KEY_ROTATION_AGE: Gauge "tollgate_key_rotation_age_seconds" ["service"]
        "Time since the active key of a service became active"
        "";
    REVOCATIONS: Gauge "tollgate_revocations" ["kind"]
        "Revocations in force"
        "`kind` is `session` or `token`";
    REVOCATIONS_CAPACITY: Gauge "tollgate_revocations_capacity" []
        "Maximum number of revocations of sessions and tokens together"
        "";
    CLOCK_JUMPS: Counter "tollgate_clock_jumps" ["direction"]
        "Jumps of the wall clock by more than half a second"
        "`direction` is `forward` or `backward`. A jump while no daemon ran is counted at the next start";
    CLOCK_DIFFERENCE: Gauge "tollgate_clock_difference_seconds" []
        "Wall clock minus the clock of the XDP program"
        "Negative while the program's clock is held because the wall clock was set back: see [The \
         clock](operations.md#the-clock)";
    CLOCK_CONFIRMED_AGE: Gauge "tollgate_clock_confirmed_age_seconds" []
        "Time since the daemon last confirmed the clock of the XDP program"
        "Above 4000, packets with new tokens are dropped as `stale_clock`";
    SESSIONS: Gauge "tollgate_sessions" []
        "Verified tokens in the token cache, including stateful entries"
        "";
    SESSIONS_TRACKED: Gauge "tollgate_sessions_tracked" []
        "Stateful entries of the token cache: PROOF tokens, and tokens of services with limits"
        "";
    SESSIONS_CAPACITY: Gauge "tollgate_sessions_capacity" []
        "Capacity of each of the two tables of the token cache: stateful entries, and all other tokens"
        "It is `sessions` in the configuration";
    NAT_TRANSLATIONS: Gauge "tollgate_nat_translations" []
        "Translations of forward = \"nat\", including expired ones"
        "Absent if no service uses `nat`";
    HMAC: Counter "tollgate_hmac" [] "HMAC verifications of new tokens" "";
    STORE_REVISION: Gauge "tollgate_store_revision" []
        "Revision of the store; every change of keys or revocations increases it"
        "";
    KERNEL_DIFFERENCES: Gauge "tollgate_kernel_differences" []
        "Differences between the kernel and the desired state at the last comparison"
        "";
    STORE_CONNECTED: Gauge "tollgate_store_connected" []
        "1 if the daemon's last access to the store succeeded, else 0"
        "";
    PROGRAM_RUN_SECONDS: Counter "tollgate_program_run_seconds" []
        "Time spent in the XDP program"
        "Present while the kernel's BPF statistics are on (`sysctl kernel.bpf_stats_enabled=1`)";
    PROGRAM_RUNS: Counter "tollgate_program_runs" []
        "Runs of the XDP program"
        "Present while the kernel's BPF statistics are on";
    BUILD_INFO: Gauge "tollgate_build_info" ["version", "commit", "abi"]
        "1; the labels show the version, the commit and the map layout version (abi) of the daemon"
        "";
}

/// The format of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// The format of an Accept header. Prometheus requests OpenMetrics; curl and promtool do not.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// The value of the Content-Type header.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The whole page.
pub fn page(report: MetricsReport, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(report)));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("a string takes all that is written to it");
    match format {
        Format::OpenMetrics => page,
        Format::Text => to_text(&page),
    }
}

/// OpenMetrics to the text format.
fn to_text(page: &str) -> String {
    let counters: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(page.len() + 1024);
    for line in page.lines().filter(|line| *line != "# EOF") {
        let family = ["# TYPE ", "# HELP "]
            .into_iter()
            .find_map(|start| Some((start, line.strip_prefix(start)?.split_once(' ')?)));
        match family {
            Some((start, (name, rest))) => {
                let suffix = if counters.contains(name) { "_total" } else { "" };
                text.extend([start, name, suffix, " ", rest, "\n"]);
            }
            None => text.extend([line, "\n"]),
        }
    }
    text
}

#[derive(Debug)]
struct Page(MetricsReport);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(report) = self;
        traffic(report, &mut encoder)?;
        keys(report, &mut encoder)?;
        admission(report, &mut encoder)?;
        node(report, &mut encoder)
    }
}

fn traffic(report: &MetricsReport, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut samples: Vec<([&str; 2], Count)> = vec![
        (["", "not_ours"], report.counters.not_ours),
        (["", "unsupported"], report.counters.too_many_vlan_tags),
        (["", "tables_changed"], report.counters.tables_changed),
    ];
    for service in &report.counters.services {
        let of_service = |reason| [service.service.as_str(), reason];
        samples.extend(service.reasons.iter().map(|one| (of_service(one.reason.as_str()), one.count)));
    }
    counters(encoder, &PACKETS, samples.iter().map(|(labels, count)| (*labels, count.packets)))?;
    counters(encoder, &BYTES, samples.iter().map(|(labels, count)| (*labels, count.bytes)))?;

    let backends = &report.status.backends;
    let labels = |backend: &BackendStatus| [backend.service.clone(), backend.name.clone()];
    let packets = backends.iter().map(|backend| (labels(backend), backend.packets));
    counters(encoder, &BACKEND_PACKETS, packets)?;
    let bytes = backends.iter().map(|backend| (labels(backend), backend.bytes));
    counters(encoder, &BACKEND_BYTES, bytes)?;
    let up = backends.iter().map(|backend| (labels(backend), u64::from(backend.up)));
    gauges(encoder, &BACKEND_UP, up)
}

fn keys(report: &MetricsReport, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let keys = &report.status.keys;
    let info = keys.iter().map(|key| {
        let labels = [key.service.clone(), key.key_id.to_string(), key.state.name().to_owned()];
        (labels, 1u64)
    });
    gauges(encoder, &KEY_INFO, info)?;
    let age = |since: u64| report.now.saturating_sub(since);
    let ages = keys.iter().map(|key| ([key.service.clone(), key.key_id.to_string()], age(key.created_at)));
    gauges(encoder, &KEY_AGE, ages)?;
    let active = |service_id| {
        keys.iter()
            .filter(move |key| key.service_id == service_id)
            .find_map(|key| (key.state == crate::keyring::KeyState::Active).then_some(key.activated_at)?)
    };
    let services = &report.status.services;
    let rotations = services
        .iter()
        .filter_map(|service| Some(([service.name.clone()], age(active(service.service_id)?))));
    gauges(encoder, &KEY_ROTATION_AGE, rotations)
}

fn admission(report: &MetricsReport, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let revocations = &report.status.revocations;
    let counts = [("session", revocations.sessions), ("token", revocations.tokens)];
    gauges(encoder, &REVOCATIONS, counts.map(|(kind, count)| ([kind], u64::from(count))))?;
    gauge(encoder, &REVOCATIONS_CAPACITY, u64::from(revocations.capacity))?;
    let clock = &report.status.clock;
    let jumps = [("forward", clock.jumps_forward), ("backward", clock.jumps_backward)];
    counters(encoder, &CLOCK_JUMPS, jumps.map(|(direction, count)| ([direction], count)))?;
    gauge(encoder, &CLOCK_DIFFERENCE, clock.difference_seconds)?;
    gauge(encoder, &CLOCK_CONFIRMED_AGE, clock.confirmed_age_seconds)
}

fn node(report: &MetricsReport, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let status = &report.status;
    gauge(encoder, &SESSIONS, status.token_cache_entries + status.stateful_entries)?;
    gauge(encoder, &SESSIONS_TRACKED, status.stateful_entries)?;
    gauge(encoder, &SESSIONS_CAPACITY, u64::from(status.token_cache_capacity))?;
    if let Some(translations) = status.nat_translations {
        gauge(encoder, &NAT_TRANSLATIONS, translations)?;
    }
    counter(encoder, &HMAC, status.hmac_verifications)?;
    gauge(encoder, &STORE_REVISION, status.store_revision)?;
    gauge(encoder, &KERNEL_DIFFERENCES, status.differences.len() as u64)?;
    gauge(encoder, &STORE_CONNECTED, u64::from(status.store_connected))?;
    if let Some(runs) = report.program_runs {
        counter(encoder, &PROGRAM_RUN_SECONDS, runs.time.as_secs_f64())?;
        counter(encoder, &PROGRAM_RUNS, runs.runs)?;
    }
    let abi = status.abi.to_string();
    let build = [status.version.as_str(), status.commit.as_str(), abi.as_str()];
    gauges(encoder, &BUILD_INFO, [(build, 1u64)])
}

/// The only sample of a counter without labels.
fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    value: impl EncodeCounterValue,
) -> fmt::Result {
    counters(encoder, metric, [([""; 0], value)])
}

/// The only sample of a gauge without labels.
fn gauge(encoder: &mut DescriptorEncoder<'_>, metric: &Metric, value: impl EncodeGaugeValue) -> fmt::Result {
    gauges(encoder, metric, [([""; 0], value)])
}

/// Samples of a counter: the values of its labels, and its value.
fn counters<const L: usize, V: EncodeLabelValue, N: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    samples: impl IntoIterator<Item = ([V; L], N)>,
) -> fmt::Result {
    debug_assert_eq!(metric.kind, MetricKind::Counter, "{}", metric.name);
    family(encoder, metric, samples.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))))
}

/// Samples of a gauge: the values of its labels, and its value.
fn gauges<const L: usize, V: EncodeLabelValue, N: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    samples: impl IntoIterator<Item = ([V; L], N)>,
) -> fmt::Result {
    debug_assert_eq!(metric.kind, MetricKind::Gauge, "{}", metric.name);
    family(encoder, metric, samples.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value))))
}

fn family<const L: usize, V: EncodeLabelValue, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    samples: impl Iterator<Item = ([V; L], M)>,
) -> fmt::Result {
    debug_assert_eq!(metric.labels.len(), L, "{}", metric.name);
    let mut samples = samples.peekable();
    let Some((_, first)) = samples.peek() else { return Ok(()) };
    let mut family = encoder.encode_descriptor(metric.name, metric.help, None, first.metric_type())?;
    for (values, sample) in samples {
        let labels: Vec<(&str, V)> = metric.labels.iter().copied().zip(values).collect();
        sample.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_suffix_in_the_older_format() {
        let page = "# HELP a A thing.\n# TYPE a counter\na_total{x=\"1\"} 2\n# HELP b B.\n# TYPE b gauge\nb 1\n# EOF\n";
        let text = "# HELP a_total A thing.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n# HELP b B.\n# TYPE b gauge\n\
                    b 1\n";
        assert_eq!(to_text(page), text);
    }

    #[test]
    fn prometheus_gets_open_metrics() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("*/*"), Format::Text);
    }
}
