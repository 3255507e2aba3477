//! `/metrics`: the status document and the times of the stages, as Prometheus or OpenMetrics text.
//!
//! Base units (seconds, bytes, ratios), names that end in `_total` for what only grows, labels whose
//! values are bounded by what is configured. [`STATUS_FIELDS`] says for each field of the status
//! document which metric tells it, or why none does.

mod attachments;
mod disk;
mod health;
mod journal;
mod latency;
mod node;
mod peers;
mod resource;
mod told;

use holdfast_api::latency::Latency;
use holdfast_api::status::NodeStatus;
use std::fmt::Write;
pub use told::{STATUS_FIELDS, Told};

/// Names and values.
type Labels = Vec<(&'static str, String)>;
/// The name, kind and help of a metric, and where its value is; `None` leaves the line out.
type Row<T> = (&'static str, Kind, &'static str, fn(&T) -> Option<f64>);

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// It only grows, until the daemon, the resource or its disk is started anew.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One line.
struct Sample {
    /// What follows the name, in a histogram.
    suffix: &'static str,
    labels: Labels,
    value: f64,
}

/// One metric with all its lines.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: Vec<Sample>,
}

/// All metrics.
#[derive(Default)]
struct Families(Vec<Family>);

impl Families {
    /// A row of metrics that each of some things has.
    fn table<'a, T: 'a>(&mut self, rows: &[Row<T>], things: impl Iterator<Item = (Labels, &'a T)>) {
        let things: Vec<_> = things.collect();
        for (name, kind, help, value) in rows {
            let values = things.iter();
            let values = values.filter_map(|(labels, thing)| Some((labels.clone(), value(thing)?)));
            self.put(name, *kind, help, values);
        }
    }

    /// One metric.
    fn put(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
        values: impl Iterator<Item = (Labels, f64)>,
    ) {
        let samples = values.map(|(labels, value)| Sample { suffix: "", labels, value }).collect();
        self.0.push(Family { name, kind, help, samples });
    }

    /// One metric of the value 1: its labels tell.
    fn info(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl Iterator<Item = Labels>,
    ) {
        self.put(name, Kind::Gauge, help, values.map(|labels| (labels, 1.0)));
    }
}

/// A number.
const fn n(number: u64) -> Option<f64> {
    Some(number as f64)
}

/// 1 for yes.
const fn yes(is_so: bool) -> Option<f64> {
    n(is_so as u64)
}

/// A time since 1970.
fn since_1970(unix_ms: u64) -> Option<f64> {
    (unix_ms > 0).then_some(unix_ms as f64 / 1e3)
}

/// A time.
fn micros(micros: u64) -> Option<f64> {
    Some(micros as f64 / 1e6)
}

/// A share of 1.
fn ratio(percent: f64) -> Option<f64> {
    Some(percent / 100.0)
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

/// The same labels with one more.
fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    let more = (name, value.to_owned());
    labels.iter().cloned().chain([more]).collect()
}

/// How the text is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// Prometheus' text format, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The one that a caller with this `Accept` header gets.
    pub(crate) fn accepted(header: Option<&str>) -> Self {
        let kinds = header.unwrap_or_default().split(',');
        let mut names = kinds.map(|kind| kind.split(';').next().unwrap_or_default().trim());
        if names.any(|name| name == "application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// Its content type.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The text.
pub(crate) fn text(status: &NodeStatus, latency: &Latency, format: Format) -> String {
    let mut all = Families::default();
    node::add(&mut all, status);
    resource::add(&mut all, status);
    disk::add(&mut all, status);
    health::add(&mut all, status);
    journal::add(&mut all, status);
    peers::add(&mut all, status);
    attachments::add(&mut all, status);
    latency::add(&mut all, latency);
    let mut out = String::new();
    // A metric without a line says nothing; its name comes with its first line.
    for family in all.0.iter().filter(|family| !family.samples.is_empty()) {
        write(&mut out, family, format);
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn write(out: &mut String, family: &Family, format: Format) {
    let Family { name, kind, help, samples } = family;
    let is_open = format == Format::OpenMetrics;
    // There the suffix belongs to the line, not to the name.
    let head = name.strip_suffix("_total").filter(|_| is_open && *kind == Kind::Counter);
    let head = head.unwrap_or(name);
    let mut help = help.replace('\\', "\\\\").replace('\n', "\\n");
    if is_open {
        help = help.replace('"', "\\\"");
    }
    // Writing into a String cannot fail.
    let _ = writeln!(out, "# HELP {head} {help}\n# TYPE {head} {}", kind.as_str());
    for Sample { suffix, labels, value } in samples {
        let _ = writeln!(out, "{name}{suffix}{} {value}", braces(labels));
    }
}

/// `{a="b"}`, the values escaped as the formats want it.
fn braces(labels: &Labels) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let list: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    if list.is_empty() { String::new() } else { format!("{{{}}}", list.join(",")) }
}

#[cfg(test)]
mod tests;
