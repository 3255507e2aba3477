//! The answer of `log ls`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The journal of a resource on one node. Positions are bytes in the endless row of all records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalLog {
    /// What becomes of writes: `leading`, `direct`, `draining`, `following`, `being rescued`,
    /// `failed`.
    pub mode: String,
    /// The position after the newest record.
    pub head: u64,
    /// Everything before this is durable in the journal.
    pub durable: u64,
    /// Everything before this is durable on the disk, too.
    pub written_back: u64,
    /// The position of the oldest record that is kept.
    pub tail: u64,
    /// The segments, oldest first.
    pub segments: Vec<JournalSegment>,
}

/// A file of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalSegment {
    /// They count up.
    pub number: u64,
    /// The node that wrote its records.
    pub origin: String,
    /// The position of its first record.
    pub begin: u64,
    /// The position behind its last durable record.
    pub end: u64,
    /// The bytes of its durable records.
    pub bytes: u64,
    /// The size of its file.
    pub file_bytes: u64,
    /// When it was begun, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// The generation of the data then.
    pub generation: String,
    /// Whether all of it is on the disk.
    pub written_back: bool,
}
