//! Resources as such: roles, clients, runs of verify and scrub.

use super::{Families, Kind, Labels, Row, label, n, ratio, since_1970, with, yes};
use holdfast_api::status::{ArchiveStatus, IoStatus, NodeStatus, ResourceStatus};
use holdfast_api::survey::SurveyReport;

const OF_RESOURCE: [Row<ResourceStatus>; 7] = [
    ("holdfast_size_bytes", Kind::Gauge, "The size of a resource.", |r| n(r.size_bytes)),
    ("holdfast_openers", Kind::Gauge, "Clients that have it open here.", |r| {
        n(u64::from(r.open_count))
    }),
    ("holdfast_promotable", Kind::Gauge, "Whether it could become Primary here.", |r| {
        yes(r.promotable)
    }),
    ("holdfast_quorum", Kind::Gauge, "Whether enough nodes are in reach.", |r| yes(r.quorum)),
    (
        "holdfast_read_only",
        Kind::Gauge,
        "Whether this node shows a past state of it, which cannot be written.",
        |r| yes(r.read_only),
    ),
    (
        "holdfast_resyncs_paused",
        Kind::Gauge,
        "Whether a person has resyncs of it held on this node.",
        |r| yes(r.resyncs_paused),
    ),
    (
        "holdfast_device_waits_seconds",
        Kind::Gauge,
        "After so long the I/O of a device that waits for its resource fails.",
        |r| n(r.device_waits_seconds?),
    ),
];

const OF_CLIENTS: [Row<IoStatus>; 7] = [
    ("holdfast_client_reads_total", Kind::Counter, "Reads of clients.", |io| n(io.reads)),
    ("holdfast_client_read_bytes_total", Kind::Counter, "What clients have read.", |io| {
        n(io.read_bytes)
    }),
    (
        "holdfast_client_writes_total",
        Kind::Counter,
        "Writes, zeroes and discards of clients.",
        |io| n(io.writes),
    ),
    (
        "holdfast_client_written_bytes_total",
        Kind::Counter,
        "What clients have written, zeroed or discarded.",
        |io| n(io.written_bytes),
    ),
    ("holdfast_client_flushes_total", Kind::Counter, "Flushes of clients.", |io| n(io.flushes)),
    (
        "holdfast_client_under_way_requests",
        Kind::Gauge,
        "Requests of clients that are not answered yet.",
        |io| n(io.under_way),
    ),
    (
        "holdfast_client_oldest_request_seconds",
        Kind::Gauge,
        "For how long the oldest of them has been under way; 0 without any.",
        |io| Some(io.oldest_seconds),
    ),
];

const OF_SURVEY: [Row<SurveyReport>; 11] = [
    ("holdfast_survey_running", Kind::Gauge, "Whether a verify or scrub goes on.", |run| {
        yes(run.ended_unix_ms.is_none())
    }),
    (
        "holdfast_survey_read_bytes",
        Kind::Gauge,
        "What the last verify or scrub has read here.",
        |run| n(run.bytes_done),
    ),
    ("holdfast_survey_size_bytes", Kind::Gauge, "What it has to read here.", |run| {
        n(run.bytes_total)
    }),
    (
        "holdfast_survey_compared_bytes",
        Kind::Gauge,
        "What of that was compared with at least one peer.",
        |run| n(run.bytes_compared),
    ),
    (
        "holdfast_survey_skipped_bytes",
        Kind::Gauge,
        "What could not be compared although it was to be.",
        |run| n(run.bytes_skipped),
    ),
    ("holdfast_survey_rate_bytes_per_second", Kind::Gauge, "How fast it goes.", |run| {
        n(run.rate_bytes_per_second)
    }),
    (
        "holdfast_survey_eta_seconds",
        Kind::Gauge,
        "How long it takes from now on; 0 when that is not known.",
        |run| n(run.eta_seconds),
    ),
    ("holdfast_survey_differing_blocks", Kind::Gauge, "Blocks that it found to differ.", |run| {
        n(run.differing_blocks)
    }),
    ("holdfast_survey_repaired_blocks", Kind::Gauge, "Those of them that it repaired.", |run| {
        n(run.repaired_blocks)
    }),
    (
        "holdfast_survey_unreadable_blocks",
        Kind::Gauge,
        "Blocks that it could not read here.",
        |run| n(run.unreadable_blocks),
    ),
    (
        "holdfast_survey_started_timestamp_seconds",
        Kind::Gauge,
        "When the last verify or scrub began, since 1970.",
        |run| since_1970(run.started_unix_ms),
    ),
];

const OF_ARCHIVE: [Row<ArchiveStatus>; 6] = [
    ("holdfast_archive_position", Kind::Gauge, "What lies before is archived.", |a| n(a.position)),
    (
        "holdfast_archive_complete_timestamp_seconds",
        Kind::Gauge,
        "What was completed until then is archived, since 1970.",
        |a| since_1970(a.complete_unix_ms),
    ),
    (
        "holdfast_archive_oldest_timestamp_seconds",
        Kind::Gauge,
        "The oldest moment that can be restored, since 1970.",
        |a| since_1970(a.oldest_unix_ms),
    ),
    ("holdfast_archive_making_base", Kind::Gauge, "Whether a base image is being made.", |a| {
        yes(a.base_percent.is_some())
    }),
    ("holdfast_archive_base_ratio", Kind::Gauge, "How much of that image is copied.", |a| {
        ratio(a.base_percent?)
    }),
    ("holdfast_archive_failed", Kind::Gauge, "Whether not everything is archived.", |a| {
        yes(a.problem.is_some())
    }),
];

/// The label of a resource.
pub(super) fn of(resource: &ResourceStatus) -> Labels {
    label("resource", &resource.name)
}

pub(super) fn add(all: &mut Families, status: &NodeStatus) {
    let resources = status.resources.iter();
    all.table(&OF_RESOURCE, resources.clone().map(|r| (of(r), r)));
    all.info(
        "holdfast_role",
        "This node's role, 1 for the one that it has.",
        resources.clone().map(|r| with(&of(r), "role", &r.role)),
    );
    all.info(
        "holdfast_suspended",
        "Why I/O is held, 1 for each reason.",
        resources
            .clone()
            .flat_map(|r| r.suspended.iter().map(move |reason| with(&of(r), "reason", reason))),
    );
    all.info(
        "holdfast_device_info",
        "The local block device of a resource.",
        resources.clone().filter_map(|r| {
            let labels = with(&of(r), "device", r.device.as_deref()?);
            Some(with(&labels, "kind", r.device_kind.as_deref().unwrap_or_default()))
        }),
    );
    let clients = resources.clone().filter_map(|r| Some((of(r), r.io.as_ref()?)));
    all.table(&OF_CLIENTS, clients);
    let archives = resources.clone().filter_map(|r| Some((of(r), r.archive.as_ref()?)));
    all.table(&OF_ARCHIVE, archives);
    let surveys = resources.flat_map(|r| {
        let both = [("verify", &r.verify), ("scrub", &r.scrub)];
        let kept = both.into_iter();
        kept.filter_map(move |(kind, run)| Some((with(&of(r), "kind", kind), run.as_ref()?)))
    });
    all.table(&OF_SURVEY, surveys.clone());
    // 0 goes on being told, for who compares it with another time.
    all.put(
        "holdfast_survey_ended_timestamp_seconds",
        Kind::Gauge,
        "When the last verify or scrub ended, since 1970; 0 while it goes on.",
        surveys.clone().map(|(labels, run)| {
            (labels, since_1970(run.ended_unix_ms.unwrap_or(0)).unwrap_or(0.0))
        }),
    );
    all.info(
        "holdfast_survey_state",
        "How the last verify or scrub is, 1 for its state.",
        surveys.map(|(labels, run)| with(&labels, "state", &run.state)),
    );
}
