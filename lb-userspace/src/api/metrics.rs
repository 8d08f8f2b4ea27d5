//! `/metrics`: what the kernel counted, at the moment of the scrape.
//!
//! prometheus-client writes OpenMetrics. Whoever does not ask for that gets the older text format, in which a counter's
//! family is called what its samples are.

use std::{collections::BTreeSet, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::{
    api::messages::{BackendStatus, Count},
    control::MetricsReport,
};

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// What an Accept header asks for. Prometheus asks for OpenMetrics; people and promtool do not.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// For the Content-Type header.
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

/// Labels of a sample.
type Labels<'a> = Vec<(&'static str, &'a str)>;

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
    let nobodys = |reason| vec![("service", ""), ("reason", reason)];
    let mut samples: Vec<(Labels<'_>, Count)> = vec![
        (nobodys("not_ours"), report.counters.not_ours),
        (nobodys("unsupported"), report.counters.buried),
        (nobodys("tables_changed"), report.counters.tables_changed),
    ];
    for service in &report.counters.services {
        let of_service = |reason| vec![("service", service.service.as_str()), ("reason", reason)];
        samples.extend(service.reasons.iter().map(|one| (of_service(one.reason.as_str()), one.count)));
    }
    let packets = samples.iter().map(|(labels, count)| (labels.clone(), count.packets));
    counters(encoder, "tollgate_packets", "Packets by what became of them", packets)?;
    let bytes = samples.iter().map(|(labels, count)| (labels.clone(), count.bytes));
    counters(encoder, "tollgate_bytes", "Bytes of frames as they came in, by what became of them", bytes)?;

    let backends = &report.status.backends;
    let labels = |backend: &'_ BackendStatus| -> Vec<(&'static str, String)> {
        vec![("service", backend.service.clone()), ("backend", backend.name.clone())]
    };
    let packets = backends.iter().map(|backend| (labels(backend), backend.packets));
    counters(encoder, "tollgate_backend_packets", "Packets sent to a backend", packets)?;
    let bytes = backends.iter().map(|backend| (labels(backend), backend.bytes));
    counters(encoder, "tollgate_backend_bytes", "Bytes sent to a backend, as they came in", bytes)?;
    let up = backends.iter().map(|backend| (labels(backend), u64::from(backend.up)));
    gauges(encoder, "tollgate_backend_up", "Whether a backend gets sessions", up)
}

fn keys(report: &MetricsReport, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let keys = &report.status.keys;
    let info = keys.iter().map(|key| {
        let labels = vec![
            ("service", key.service.clone()),
            ("key_id", key.key_id.to_string()),
            ("state", key.state.name().to_owned()),
        ];
        (labels, 1u64)
    });
    gauges(encoder, "tollgate_key_info", "The keys and what they may do", info)?;
    let age = |since: u64| report.now.saturating_sub(since);
    let ages = keys.iter().map(|key| {
        let labels = vec![("service", key.service.clone()), ("key_id", key.key_id.to_string())];
        (labels, age(key.created_at))
    });
    gauges(encoder, "tollgate_key_age_seconds", "Time since a key was made or imported", ages)?;
    let active = |service_id| {
        keys.iter()
            .filter(move |key| key.service_id == service_id)
            .find_map(|key| (key.state == crate::keyring::KeyState::Active).then_some(key.activated_at)?)
    };
    let rotations = report
        .status
        .services
        .iter()
        .filter_map(|service| Some((vec![("service", service.name.clone())], age(active(service.id)?))));
    let help = "Time since the key that signs began to";
    gauges(encoder, "tollgate_key_rotation_age_seconds", help, rotations)
}

fn admission(report: &MetricsReport, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let none = Labels::new;
    let revocations = &report.status.revocations;
    let counts = [("session", revocations.sessions), ("token", revocations.tokens)];
    let counts = counts.map(|(kind, count)| (vec![("kind", kind)], u64::from(count)));
    gauges(encoder, "tollgate_revocations", "Revocations in force, by name", counts)?;
    let room = [(none(), u64::from(revocations.room))];
    gauges(encoder, "tollgate_revocations_capacity", "Room for revocations of all kinds", room)?;
    let clock = &report.status.clock;
    let jumps = [("forward", clock.jumps_forward), ("backward", clock.jumps_backward)];
    let jumps = jumps.map(|(direction, count)| (vec![("direction", direction)], count));
    counters(
        encoder,
        "tollgate_clock_jumps",
        "Times that the wall clock was set by more than half a second",
        jumps,
    )?;
    let difference = [(none(), clock.difference_seconds)];
    gauges(encoder, "tollgate_clock_difference_seconds", "The wall clock less the program's", difference)?;
    let help = "Time since the program's clock was found to be right";
    gauges(encoder, "tollgate_clock_confirmed_age_seconds", help, [(none(), clock.confirmed_age_seconds)])
}

fn node(report: &MetricsReport, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let status = &report.status;
    let none = Labels::new;
    gauges(encoder, "tollgate_sessions", "Tokens in the caches", [(none(), status.sessions)])?;
    let help = "Those of which something is counted: PROOF tokens, and those of services with limits";
    gauges(encoder, "tollgate_sessions_tracked", help, [(none(), status.sessions_tracked)])?;
    let room = [(none(), u64::from(status.sessions_max))];
    gauges(encoder, "tollgate_sessions_capacity", "Room for those, and for the others", room)?;
    let translations = status.nat_translations.map(|count| (none(), count));
    let help = "Clients behind a port of this node, by forward = nat";
    gauges(encoder, "tollgate_nat_translations", help, translations)?;
    counters(encoder, "tollgate_hmac", "Full checks of tokens", [(none(), status.hmacs)])?;
    let revision = [(none(), status.store_revision)];
    gauges(encoder, "tollgate_store_revision", "Revision of the desired state", revision)?;
    let differences = [(none(), status.differences.len() as u64)];
    let help = "What the kernel has other than desired, after the last comparison";
    gauges(encoder, "tollgate_kernel_differences", help, differences)?;
    let connected = [(none(), u64::from(status.store_connected))];
    gauges(encoder, "tollgate_store_connected", "Whether the store can be used", connected)?;
    if let Some(runs) = report.program_runs {
        let help = "Time in the program, while the kernel's BPF statistics are on";
        counters(encoder, "tollgate_program_run_seconds", help, [(none(), runs.time.as_secs_f64())])?;
        let help = "Runs of the program, while the kernel's BPF statistics are on";
        counters(encoder, "tollgate_program_runs", help, [(none(), runs.runs)])?;
    }
    let abi = status.abi.to_string();
    let build =
        vec![("version", status.version.as_str()), ("commit", status.commit.as_str()), ("abi", abi.as_str())];
    gauges(encoder, "tollgate_build_info", "What this is a build of", [(build, 1u64)])
}

/// `name` without `_total`, which each sample's name gets.
fn counters<L, N>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Vec<L>, N)>,
) -> fmt::Result
where
    Vec<L>: prometheus_client::encoding::EncodeLabelSet,
    N: EncodeCounterValue,
{
    family(encoder, name, help, samples.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))))
}

fn gauges<L, N>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Vec<L>, N)>,
) -> fmt::Result
where
    Vec<L>: prometheus_client::encoding::EncodeLabelSet,
    N: EncodeGaugeValue,
{
    family(encoder, name, help, samples.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value))))
}

fn family<L, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (Vec<L>, M)>,
) -> fmt::Result
where
    Vec<L>: prometheus_client::encoding::EncodeLabelSet,
{
    let mut samples = samples.peekable();
    let Some((_, first)) = samples.peek() else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, metric) in samples {
        metric.encode(family.encode_family(&labels)?)?;
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
