//! The figures of journals.

use holdfast_api::status::JournalStatus;

/// Name, kind, help, value.
pub(super) type OfJournal = (&'static str, &'static str, &'static str, fn(&JournalStatus) -> u64);

/// All that has one value for each journal.
pub(super) const OF_JOURNAL: [OfJournal; 19] = [
    ("holdfast_journal_head", "gauge", "The position after the newest record.", |j| j.head),
    ("holdfast_journal_durable", "gauge", "What lies before is durable.", |j| j.durable),
    ("holdfast_journal_written_back", "gauge", "What lies before is on the disk.", |j| {
        j.written_back
    }),
    ("holdfast_journal_tail", "gauge", "The position of the oldest record kept.", |j| j.tail),
    ("holdfast_journal_bytes", "gauge", "What its segments take.", |j| j.bytes),
    ("holdfast_journal_limit_bytes", "gauge", "What its files may take.", |j| j.limit_bytes),
    ("holdfast_journal_dirty_bytes", "gauge", "Data that are not on the disk yet.", |j| {
        j.dirty_bytes
    }),
    ("holdfast_journal_emergency", "gauge", "Whether it was full and had to be cut.", |j| {
        u64::from(j.emergency)
    }),
    ("holdfast_journal_needed_bytes", "gauge", "What the disk or a follower still needs.", |j| {
        j.needed_bytes
    }),
    ("holdfast_journal_budget_bytes", "gauge", "Above this it is cut.", |j| j.budget_bytes),
    (
        "holdfast_journal_warning_percent",
        "gauge",
        "The warning that was reached, 0 for none.",
        |j| j.warning_percent,
    ),
    ("holdfast_journal_cuts_total", "counter", "Cuts of what a follower needed.", |j| j.cuts),
    ("holdfast_journal_slowed_writes_total", "counter", "Large writes answered later.", |j| {
        j.slowed_writes
    }),
    ("holdfast_journal_payload_bytes_total", "counter", "Written into it, as submitted.", |j| {
        j.payload_bytes
    }),
    ("holdfast_journal_stored_bytes_total", "counter", "What these take in it.", |j| {
        j.stored_bytes
    }),
    ("holdfast_journal_syncs_total", "counter", "How often it was made durable.", |j| j.syncs),
    ("holdfast_journal_sync_microseconds_total", "counter", "The time that took in all.", |j| {
        j.sync_micros
    }),
    ("holdfast_journal_longest_sync_microseconds", "gauge", "The longest of these times.", |j| {
        j.longest_sync_micros
    }),
    ("holdfast_journal_usable", "gauge", "Whether it is used.", |j| u64::from(j.problem.is_none())),
];
