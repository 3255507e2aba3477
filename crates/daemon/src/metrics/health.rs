//! The figures of the health of disks.

use super::{Metric, labels};
use holdfast_api::health::{DiskErrors, DiskHealth, DiskLatency, SmartStatus};
use holdfast_api::status::{NodeStatus, ResourceStatus};

type OfHealth = (&'static str, &'static str, &'static str, fn(&DiskHealth) -> u64);

/// All that has one value for each disk.
const OF_HEALTH: [OfHealth; 5] = [
    ("holdfast_disk_health_score", "gauge", "How well this node's disk is, 0 to 100.", |h| {
        u64::from(h.score)
    }),
    ("holdfast_disk_errors_last_hour", "gauge", "Errors of the disk in the last hour.", |h| {
        h.errors_last_hour
    }),
    ("holdfast_disk_stalls_total", "counter", "Operations of a second or longer.", |h| h.stalls),
    (
        "holdfast_disk_outliers_total",
        "counter",
        "Operations of ten times the median of their kind and 50 ms, and no stalls.",
        |h| h.outliers,
    ),
    (
        "holdfast_disk_oldest_pending_microseconds",
        "gauge",
        "For how long the oldest operation has been under way.",
        |h| h.oldest_pending_micros,
    ),
];

type OfErrors = (&'static str, fn(&DiskErrors) -> u64);
type OfLatency = (&'static str, fn(&DiskLatency) -> u64);

const OF_ERRORS: [OfErrors; 5] = [
    ("read", |e| e.read),
    ("write", |e| e.write),
    ("flush", |e| e.flush),
    ("metadata", |e| e.metadata),
    ("checksum", |e| e.checksum),
];

const QUANTILES: [OfLatency; 4] = [
    ("0.5", |l| l.p50_micros),
    ("0.99", |l| l.p99_micros),
    ("0.999", |l| l.p999_micros),
    ("1", |l| l.max_micros),
];

/// All of them.
pub(super) fn of(status: &NodeStatus) -> Vec<Metric> {
    let of_disk = |(name, kind, help, value): (_, _, _, fn(&DiskHealth) -> u64)| Metric {
        name,
        kind,
        help,
        lines: disks(status).map(|(r, h)| (labels(&[("resource", &r.name)]), value(h))).collect(),
    };
    let mut all: Vec<Metric> = OF_HEALTH.into_iter().map(of_disk).collect();
    all.push(Metric {
        name: "holdfast_disk_errors_total",
        kind: "counter",
        help: "Errors of the disk since they are counted, also over restarts.",
        lines: disks(status).flat_map(|(r, h)| errors(r, &h.errors)).collect(),
    });
    all.push(Metric {
        name: "holdfast_disk_latency_microseconds",
        kind: "gauge",
        help: "How long operations of the disk took in the last five minutes.",
        lines: disks(status)
            .flat_map(|(r, h)| h.latency.iter().flat_map(|latency| quantiles(r, latency)))
            .collect(),
    });
    all.push(Metric {
        name: "holdfast_disk_smart_value",
        kind: "gauge",
        help: "What the devices below the disk say of themselves, raw.",
        lines: devices(status).flat_map(|(r, d)| attributes(r, d)).collect(),
    });
    all.push(Metric {
        name: "holdfast_disk_smart_passed",
        kind: "gauge",
        help: "Whether a device below the disk holds itself to be well.",
        lines: devices(status)
            .filter_map(|(r, d)| Some((of_device(r, d, None), u64::from(d.passed?))))
            .collect(),
    });
    all
}

fn disks(status: &NodeStatus) -> impl Iterator<Item = (&ResourceStatus, &DiskHealth)> {
    status.resources.iter().filter_map(|r| Some((r, r.disk.health.as_ref()?)))
}

fn devices(status: &NodeStatus) -> impl Iterator<Item = (&ResourceStatus, &SmartStatus)> {
    disks(status).flat_map(|(r, h)| h.smart.iter().map(move |device| (r, device)))
}

fn errors(resource: &ResourceStatus, errors: &DiskErrors) -> Vec<(String, u64)> {
    let line = |(kind, value): &OfErrors| {
        (labels(&[("resource", &resource.name), ("kind", kind)]), value(errors))
    };
    OF_ERRORS.iter().map(line).collect()
}

fn quantiles(resource: &ResourceStatus, latency: &DiskLatency) -> Vec<(String, u64)> {
    let line = |(quantile, value): &OfLatency| {
        let list = [("resource", &*resource.name), ("kind", &latency.kind), ("quantile", quantile)];
        (labels(&list), value(latency))
    };
    QUANTILES.iter().map(line).collect()
}

fn attributes(resource: &ResourceStatus, device: &SmartStatus) -> Vec<(String, u64)> {
    let degrees = device.temperature_celsius.and_then(|degrees| u64::try_from(degrees).ok());
    let own = degrees.map(|degrees| ("temperature_celsius", degrees));
    let hours = device.power_on_hours.map(|hours| ("power_on_hours", hours));
    let listed = device.attributes.iter().map(|one| (&*one.name, one.value));
    let all = own.into_iter().chain(hours).chain(listed);
    all.map(|(name, value)| (of_device(resource, device, Some(name)), value)).collect()
}

fn of_device(resource: &ResourceStatus, device: &SmartStatus, name: Option<&str>) -> String {
    let mut list = vec![("resource", &*resource.name), ("device", &*device.device)];
    list.extend(name.map(|name| ("name", name)));
    labels(&list)
}
