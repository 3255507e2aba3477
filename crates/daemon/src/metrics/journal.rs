//! Journals, and those who follow them.

use super::resource::of;
use super::{Families, Kind, Row, micros, n, ratio, with, yes};
use holdfast_api::status::{JournalStatus, NodeStatus, ReplayStatus};

const OF_JOURNAL: [Row<JournalStatus>; 19] = [
    ("holdfast_journal_head", Kind::Gauge, "The position after the newest record.", |j| n(j.head)),
    ("holdfast_journal_durable", Kind::Gauge, "What lies before is durable.", |j| n(j.durable)),
    ("holdfast_journal_written_back", Kind::Gauge, "What lies before is on the disk.", |j| {
        n(j.written_back)
    }),
    (
        "holdfast_journal_tail",
        Kind::Gauge,
        "The position of the oldest record kept.",
        |j| n(j.tail),
    ),
    ("holdfast_journal_bytes", Kind::Gauge, "What its segments take.", |j| n(j.bytes)),
    ("holdfast_journal_limit_bytes", Kind::Gauge, "What its files may take.", |j| n(j.limit_bytes)),
    ("holdfast_journal_dirty_bytes", Kind::Gauge, "Data that are not on the disk yet.", |j| {
        n(j.dirty_bytes)
    }),
    ("holdfast_journal_emergency", Kind::Gauge, "Whether it was full and had to be cut.", |j| {
        yes(j.emergency)
    }),
    (
        "holdfast_journal_needed_bytes",
        Kind::Gauge,
        "What the disk or a follower still needs.",
        |j| n(j.needed_bytes),
    ),
    ("holdfast_journal_budget_bytes", Kind::Gauge, "Above this it is cut.", |j| n(j.budget_bytes)),
    (
        "holdfast_journal_warning_ratio",
        Kind::Gauge,
        "The warning that was reached: 0.8 or 0.9 of the budget, 0 for none.",
        |j| ratio(j.warning_percent as f64),
    ),
    (
        "holdfast_journal_cuts_total",
        Kind::Counter,
        "Cuts of what a follower needed.",
        |j| n(j.cuts),
    ),
    (
        "holdfast_journal_slowed_writes_total",
        Kind::Counter,
        "Large writes that were answered later so that followers keep up.",
        |j| n(j.slowed_writes),
    ),
    (
        "holdfast_journal_payload_bytes_total",
        Kind::Counter,
        "What was written into it, as submitted.",
        |j| n(j.payload_bytes),
    ),
    ("holdfast_journal_stored_bytes_total", Kind::Counter, "What these take in it.", |j| {
        n(j.stored_bytes)
    }),
    ("holdfast_journal_syncs_total", Kind::Counter, "How often it was made durable.", |j| {
        n(j.syncs)
    }),
    ("holdfast_journal_sync_seconds_total", Kind::Counter, "The time that took in all.", |j| {
        micros(j.sync_micros)
    }),
    ("holdfast_journal_longest_sync_seconds", Kind::Gauge, "The longest of these times.", |j| {
        micros(j.longest_sync_micros)
    }),
    ("holdfast_journal_usable", Kind::Gauge, "Whether it is used.", |j| yes(j.problem.is_none())),
];

const OF_REPLAY: [Row<ReplayStatus>; 12] = [
    (
        "holdfast_log_head",
        Kind::Gauge,
        "The end of the Primary's journal, as far as is known.",
        |r| n(r.head),
    ),
    ("holdfast_log_fetched", Kind::Gauge, "What lies before is in the log peer's journal.", |r| {
        n(r.fetched)
    }),
    ("holdfast_log_replayed", Kind::Gauge, "What lies before is on the log peer's disk.", |r| {
        n(r.replayed)
    }),
    ("holdfast_log_fetch_lag_bytes", Kind::Gauge, "What is not fetched yet.", |r| {
        n(r.head.saturating_sub(r.fetched))
    }),
    ("holdfast_log_lag_bytes", Kind::Gauge, "What is not replayed yet.", |r| n(r.lag_bytes)),
    ("holdfast_log_lag_seconds", Kind::Gauge, "For how long that has been there.", |r| {
        Some(r.lag_seconds)
    }),
    ("holdfast_log_fetch_bytes_per_second", Kind::Gauge, "How fast the journal comes.", |r| {
        n(r.fetch_bytes_per_second)
    }),
    ("holdfast_log_replay_bytes_per_second", Kind::Gauge, "How fast it is replayed.", |r| {
        n(r.replay_bytes_per_second)
    }),
    (
        "holdfast_log_eta_seconds",
        Kind::Gauge,
        "How long it takes to catch up at this rate; 0 when that is not known.",
        |r| n(r.eta_seconds),
    ),
    ("holdfast_log_fetch_paused", Kind::Gauge, "Whether fetching is paused.", |r| {
        yes(r.paused.iter().any(|what| what == "fetch"))
    }),
    ("holdfast_log_replay_paused", Kind::Gauge, "Whether replaying is paused.", |r| {
        yes(r.paused.iter().any(|what| what == "replay"))
    }),
    ("holdfast_log_stalled", Kind::Gauge, "Whether something keeps it from getting on.", |r| {
        yes(r.problem.is_some())
    }),
];

pub(super) fn add(all: &mut Families, status: &NodeStatus) {
    let resources = status.resources.iter();
    let journals = resources.clone().filter_map(|r| Some((of(r), r.journal.as_ref()?)));
    all.table(&OF_JOURNAL, journals.clone());
    all.info(
        "holdfast_journal_compression",
        "How it stores what is written, 1 for the way.",
        journals
            .filter(|(_, journal)| !journal.compression.is_empty())
            .map(|(labels, journal)| with(&labels, "compression", &journal.compression)),
    );
    // This node's own lag has no peer, that of a peer has its name.
    let own = resources.clone().filter_map(|r| Some((of(r), r.replay.as_ref()?)));
    let theirs = resources.flat_map(|r| {
        let followers = r.peers.iter();
        followers.filter_map(move |p| Some((with(&of(r), "peer", &p.node), p.replay.as_ref()?)))
    });
    all.table(&OF_REPLAY, own.chain(theirs));
}
