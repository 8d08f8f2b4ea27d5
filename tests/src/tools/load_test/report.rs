//! The tables and the goals.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Delivery, Junk, Measurement};

/// The tolerated difference between delivery under a flood and delivery of the empty program, as a fraction of all
/// packets: two runs of the same program differ by that much.
const TOLERANCE: f64 = 0.02;
/// The floods that are compared with the empty program.
pub const COMPARED: [Junk; 2] = [Junk::NoToken, Junk::BadFastTag];

/// All measurements.
#[derive(Default)]
pub struct Report {
    /// Floods at a rate that the machine can receive.
    pub moderate: Vec<Measurement>,
    /// Floods at the highest rate that the machine can send.
    pub all_out: Vec<Measurement>,
    /// The same floods against the empty program.
    pub empty: Vec<Measurement>,
}

/// A goal that was missed, in words.
pub type Missed = String;

impl Report {
    /// The goals that were missed.
    pub fn missed(&self) -> Vec<Missed> {
        let mut missed = Vec::new();
        for measurement in self.moderate.iter().chain(&self.all_out) {
            missed.extend(lost_unsaturated(measurement));
        }
        for junk in COMPARED {
            let [ours, empty] =
                [&self.all_out, &self.empty].map(|measurements| median_delivered(measurements, junk));
            if let (Some(ours), Some(empty)) = (ours, empty)
                && ours < empty - TOLERANCE
            {
                missed.push(format!(
                    "{}: {:.2} % delivered, {:.2} % beside the empty program",
                    junk.name(),
                    100.0 * ours,
                    100.0 * empty
                ));
            }
        }
        missed
    }

    /// The tables, in Markdown.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        for (title, measurements) in [
            ("A flood that the machine takes", &self.moderate),
            ("As much as the machine can make", &self.all_out),
            ("The same, in turns, at a program that does nothing but drop it", &self.empty),
        ] {
            if !measurements.is_empty() {
                table(&mut text, title, measurements);
            }
        }
        text
    }

    /// The figures.
    pub fn json(&self) -> Value {
        let all = |measurements: &[Measurement]| measurements.iter().map(figures).collect::<Vec<_>>();
        json!({
            "moderate": all(&self.moderate),
            "all_out": all(&self.all_out),
            "empty": all(&self.empty),
            "missed": self.missed(),
        })
    }
}

/// Reports legitimate packets that were lost although the node received all frames.
pub fn lost_unsaturated(measurement: &Measurement) -> Option<Missed> {
    let lost: u64 = measurement.deliveries.iter().map(Delivery::lost).sum();
    let name = measurement.junk.name();
    (lost > 0 && !measurement.is_saturated())
        .then(|| format!("{name}: {lost} lost, and the machine was not saturated"))
}

fn median_delivered(measurements: &[Measurement], junk: Junk) -> Option<f64> {
    let of_junk = measurements.iter().filter(|measurement| measurement.junk == junk);
    let mut delivered: Vec<_> = of_junk.map(|measurement| measurement.deliveries[1].delivered()).collect();
    delivered.sort_by(f64::total_cmp);
    delivered.get(delivered.len() / 2).copied()
}

fn table(text: &mut String, title: &str, measurements: &[Measurement]) {
    let _ = writeln!(
        text,
        "\n{title}\n\n| flood | Mpps | lost on the wire | delivered before, during, after | p50, p99, p99.9 µs before \
         | during | after |\n\
         |---|---|---|---|---|---|---|"
    );
    for measurement in measurements {
        let [before, during, after] = &measurement.deliveries;
        let _ = writeln!(
            text,
            "| `{}` | {:.2} | {:.1} % | {}, {}, {} | {} | {} | {} |",
            measurement.junk.name(),
            measurement.flood.rate() / 1e6,
            100.0 * measurement.overflowed() as f64 / measurement.flood.frames.max(1) as f64,
            share(before),
            share(during),
            share(after),
            times(before),
            times(during),
            times(after),
        );
    }
}

fn share(delivery: &Delivery) -> String {
    match delivery.lost() {
        0 => "all".to_owned(),
        _ => format!("{:.2} %", 100.0 * delivery.delivered()),
    }
}

fn times(delivery: &Delivery) -> String {
    [500, 990, 999].map(|of_thousand| format!("{:.0}", delivery.microseconds(of_thousand))).join(", ")
}

fn figures(measurement: &Measurement) -> Value {
    let phase = |delivery: &Delivery| {
        json!({
            "sent": delivery.sent,
            "received": delivery.took.len(),
            "p50_us": delivery.microseconds(500),
            "p99_us": delivery.microseconds(990),
            "p999_us": delivery.microseconds(999),
        })
    };
    let [before, during, after] = &measurement.deliveries;
    json!({
        "flood": measurement.junk.name(),
        "frames": measurement.flood.frames,
        "frames_per_second": measurement.flood.rate(),
        "judged": measurement.judged,
        "before": phase(before),
        "during": phase(during),
        "after": phase(after),
    })
}
