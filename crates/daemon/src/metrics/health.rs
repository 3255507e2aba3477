//! The health of disks.

use super::resource::of;
use super::{Families, Kind, Labels, Row, micros, n, since_1970, with, yes};
use holdfast_api::health::{DiskErrors, DiskHealth, DiskLatency, SmartStatus};
use holdfast_api::status::NodeStatus;

const OF_HEALTH: [Row<DiskHealth>; 9] = [
    ("holdfast_disk_health_score", Kind::Gauge, "How well this node's disk is, 0 to 100.", |h| {
        n(u64::from(h.score))
    }),
    ("holdfast_disk_errors_last_hour", Kind::Gauge, "Disk errors of about the last hour.", |h| {
        n(h.errors_last_hour)
    }),
    ("holdfast_disk_errors_last_day", Kind::Gauge, "Disk errors of about the last day.", |h| {
        n(h.errors_last_day)
    }),
    (
        "holdfast_disk_last_error_timestamp_seconds",
        Kind::Gauge,
        "When the last error of the disk was, since 1970.",
        |h| since_1970(h.last_error_unix_ms?),
    ),
    (
        "holdfast_disk_counted_since_timestamp_seconds",
        Kind::Gauge,
        "Since when errors, stalls and outliers of the disk are counted, since 1970.",
        |h| since_1970(h.counted_since_unix_ms),
    ),
    (
        "holdfast_disk_stalls_total",
        Kind::Counter,
        "Operations of the disk that took a second or longer.",
        |h| n(h.stalls),
    ),
    ("holdfast_disk_stalls_last_hour", Kind::Gauge, "Those of about the last hour.", |h| {
        n(h.stalls_last_hour)
    }),
    (
        "holdfast_disk_outliers_total",
        Kind::Counter,
        "Operations of ten times the median of their kind and 50 ms, and no stalls.",
        |h| n(h.outliers),
    ),
    (
        "holdfast_disk_oldest_pending_seconds",
        Kind::Gauge,
        "For how long the oldest operation has been under way.",
        |h| micros(h.oldest_pending_micros),
    ),
];

/// The value of a label, and what is counted under it.
type Labelled<T> = (&'static str, fn(&T) -> u64);

const OF_ERRORS: [Labelled<DiskErrors>; 5] = [
    ("read", |e| e.read),
    ("write", |e| e.write),
    ("flush", |e| e.flush),
    ("metadata", |e| e.metadata),
    ("checksum", |e| e.checksum),
];

const QUANTILES: [Labelled<DiskLatency>; 4] = [
    ("50", |l| l.p50_micros),
    ("99", |l| l.p99_micros),
    ("99.9", |l| l.p999_micros),
    ("100", |l| l.max_micros),
];

pub(super) fn add(all: &mut Families, status: &NodeStatus) {
    let disks = status.resources.iter().filter_map(|r| Some((of(r), r.disk.health.as_ref()?)));
    all.table(&OF_HEALTH, disks.clone());
    all.info(
        "holdfast_disk_health_state",
        "How well this node's disk is, 1 for the level.",
        disks.clone().map(|(labels, health)| with(&labels, "level", &health.level)),
    );
    all.put(
        "holdfast_disk_errors_total",
        Kind::Counter,
        "Errors of the disk since they are counted, also over restarts.",
        disks.clone().flat_map(|(labels, health)| {
            let of_kind = |(kind, value): (_, fn(&DiskErrors) -> u64)| {
                (with(&labels, "kind", kind), value(&health.errors) as f64)
            };
            OF_ERRORS.map(of_kind)
        }),
    );
    let recent = disks.clone().flat_map(|(labels, health)| {
        health.latency.iter().map(move |one| (with(&labels, "kind", &one.kind), one))
    });
    all.put(
        "holdfast_disk_recent_operations",
        Kind::Gauge,
        "Operations of the disk in the last five minutes that ended well.",
        recent.clone().map(|(labels, one)| (labels, one.operations as f64)),
    );
    all.put(
        "holdfast_disk_recent_latency_seconds",
        Kind::Gauge,
        "How long so many percent of these took at most.",
        recent.flat_map(|(labels, one)| {
            QUANTILES.map(|(percent, value)| {
                (with(&labels, "percentile", percent), value(one) as f64 / 1e6)
            })
        }),
    );
    let devices = disks.flat_map(|(labels, health)| {
        health.smart.iter().map(move |one| (with(&labels, "device", &one.device), one))
    });
    all.info(
        "holdfast_disk_smart_info",
        "What the devices below the disk are.",
        devices
            .clone()
            .map(|(labels, one)| with(&with(&labels, "model", &one.model), "serial", &one.serial)),
    );
    all.put(
        "holdfast_disk_smart_value",
        Kind::Gauge,
        "What the devices below the disk say of themselves, raw.",
        devices.clone().flat_map(|(labels, one)| attributes(&labels, one)),
    );
    all.table(&OF_SMART, devices);
}

const OF_SMART: [Row<SmartStatus>; 3] = [
    (
        "holdfast_disk_smart_passed",
        Kind::Gauge,
        "Whether a device below the disk holds itself to be well.",
        |one| yes(one.passed?),
    ),
    (
        "holdfast_disk_smart_problem",
        Kind::Gauge,
        "Whether nothing could be read from a device below the disk.",
        |one| yes(one.problem.is_some()),
    ),
    (
        "holdfast_disk_smart_read_timestamp_seconds",
        Kind::Gauge,
        "When a device below the disk was asked, since 1970.",
        |one| since_1970(one.read_unix_ms),
    ),
];

fn attributes(labels: &Labels, device: &SmartStatus) -> Vec<(Labels, f64)> {
    let degrees = device.temperature_celsius.map(|degrees| ("temperature_celsius", degrees as f64));
    let hours = device.power_on_hours.map(|hours| ("power_on_hours", hours as f64));
    let listed = device.attributes.iter().map(|one| (&*one.name, one.value as f64));
    let all = degrees.into_iter().chain(hours).chain(listed);
    all.map(|(name, value)| (with(labels, "name", name), value)).collect()
}
