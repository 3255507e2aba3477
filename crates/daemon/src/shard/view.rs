//! What others see of a resource.

use super::stages::StageOp;
use crate::spares::SparesView;
use holdfast_core::Snapshot;
use holdfast_nbd::PeerAddress;
use std::path::PathBuf;
use std::time::Instant;

/// A resource as it was a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceView {
    /// Its name.
    pub name: String,
    /// What the core says.
    pub snapshot: Snapshot,
    /// Whether clients can open the NBD export now.
    pub exported: bool,
    /// NBD connections that have it open.
    pub open_count: usize,
    /// Where the first of them come from, at most [`ResourceView::OPENERS`].
    pub openers: Vec<PeerAddress>,
    /// The local disk while it is open.
    pub disk: Option<DiskView>,
    /// Its spares for bad sectors.
    pub spares: Option<SparesView>,
    /// Why the disk is not used any more, when it was open and failed.
    pub failure: Option<DiskFailure>,
    /// Requests of clients and their bytes since the start: reads.
    pub reads: u64,
    /// See `reads`.
    pub read_bytes: u64,
    /// Writes, and zeroes and discards with their whole length.
    pub writes: u64,
    /// See `writes`.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests of clients that are not answered yet.
    pub under_way: usize,
    /// The oldest of them: when it came, and what it does.
    pub oldest: Option<(Instant, StageOp)>,
}

impl ResourceView {
    /// How many openers are listed.
    pub const OPENERS: usize = 64;
}

/// What of a disk failed first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFailure {
    /// A sentence that names the file and the error.
    pub what: String,
    /// No space is left on a filesystem: the disk itself may be fine.
    pub full: bool,
}

/// The local disk of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskView {
    /// Where it is.
    pub path: PathBuf,
    /// Where its metadata are.
    pub metadata: PathBuf,
    /// Size of the backing device in bytes.
    pub size: u64,
    /// How it works: `inline`, `uring`, `blocking`.
    pub engine: &'static str,
    /// Whether the page cache is bypassed.
    pub direct: bool,
    /// What is not as it was asked for, a sentence each.
    pub notes: Vec<String>,
}
