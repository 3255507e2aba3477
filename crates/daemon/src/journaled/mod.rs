//! A disk with a journal before it: between the replication core and the backing disk of a
//! resource.
//!
//! One worker owns both the [`holdfast_journal::driver::Log`] and the backing
//! [`holdfast_store::Disk`]; a thread of its own drives it, and the shard where nothing has to be
//! waited for. The core sees an external disk; what it promises is what every disk
//! promises. `docs/design/journal.md` has the why.
//!
//! ```text
//!   shard ── JournaledDisk ──▶ ┌─ inbox ─┐        ┌── Log ──▶ segments, cursors
//!         ◀─ tickets ───────── │         ▼        │
//!   JournalHandle ── calls ──▶ │      Worker ─────┤   reads by the index, write-back
//!         ◀─ answers, view ─── └─────────┘        └── Disk ─▶ backing disk
//! ```

mod append;
mod cache;
mod catch_up;
mod figures;
mod follow;
mod handle;
mod inbox;
mod modes;
pub(crate) mod open;
mod reads;
mod salvage;
mod thread;
mod throttle;
mod through;
mod worker;
mod writeback;

#[cfg(test)]
mod tests;

pub(crate) use figures::Figures;
pub use handle::{JournalCallError, JournalHandle, LostRanges};
pub(crate) use open::MIN_SIZE;
pub(crate) use open::open;
pub use open::{JournalError, JournalSpec};

use crate::spares::SparesView;
use bytes::Bytes;
use holdfast_format::journal::Compression;
use holdfast_store::{DiskOp, ExternalDisk, Ticket};
use holdfast_units::{ByteRange, HybridTime, LogPosition};
use inbox::{Inbox, Order};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thread::Baton;

/// What becomes of writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// They wait until everything in the journal is written back; then they go to the disk.
    Draining,
    /// They go to the disk as they are; everything in the journal is written back.
    Direct,
    /// They become records; reads ask the index.
    Lead,
    /// The journal takes copies of another node's, and records are replayed onto the disk.
    Follow,
    /// The journal has failed. They wait until everything that it holds is on the disk.
    Rescuing,
    /// The journal has failed, and they go to the disk as they are.
    Without,
}

impl Mode {
    /// One word for it: `draining`, `direct`, `leading`, `following`, `rescued`, `failed`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Direct => "direct",
            Self::Lead => "leading",
            Self::Follow => "following",
            Self::Rescuing => "being rescued",
            Self::Without => "failed",
        }
    }
}

/// How a journal stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalView {
    /// What becomes of writes.
    pub mode: Mode,
    /// The first position that is still kept.
    pub tail: LogPosition,
    /// The position behind everything that is written.
    pub head: LogPosition,
    /// The position behind everything that is durable: what peers may have.
    pub durable: LogPosition,
    /// The position behind everything that is durable on this node's disk, too.
    pub written_back: LogPosition,
    /// The spares of the disk for bad sectors.
    pub spares: Option<SparesView>,
    /// The bytes of the segments' files.
    pub bytes: u64,
    /// Bytes of the disk that wait to be written back.
    pub dirty_bytes: u64,
    /// All files of the journal together take no more bytes.
    pub limit_bytes: u64,
    /// The time of the newest record.
    pub time: HybridTime,
    /// It is over its budget, and can only be cut when somebody has noted what peers lose:
    /// [`JournalHandle::plan_cut`].
    pub cut_wanted: bool,
    /// A peer lost what it still needed.
    pub emergency: bool,
    /// How writes are to be stored.
    pub compression: Compression,
    /// What it has done, and how full it is.
    pub figures: Figures,
    /// Why the journal, or the disk below it, is not used any more.
    pub problem: Option<Arc<str>>,
}

/// The disk that the core drives.
struct JournaledDisk {
    inbox: Arc<Inbox>,
    baton: Arc<Baton>,
    /// Something was submitted since the last kick.
    unkicked: bool,
}

/// How long a disk that is given up without [`JournalHandle::stop`] may take to write back.
const PARTING: Duration = Duration::from_secs(20);

impl ExternalDisk for JournaledDisk {
    fn submit(&mut self, request: DiskOp, ticket: Ticket) {
        self.unkicked = true;
        self.inbox.put(Order::Op(request, ticket));
    }

    fn salvage(&mut self, range: ByteRange, ticket: Ticket) {
        let salvage = move |worker: &mut worker::Worker| worker.salvage(range, ticket);
        self.inbox.push(Order::Call(Box::new(salvage)));
    }

    fn restore(&mut self, range: ByteRange, data: Bytes, ticket: Ticket) {
        let restore = move |worker: &mut worker::Worker| worker.restore(range, data, ticket);
        self.inbox.push(Order::Call(Box::new(restore)));
    }

    fn merges_flushes(&self) -> bool {
        true
    }

    fn kick(&mut self) {
        if std::mem::take(&mut self.unkicked) | self.inbox.do_frames_fly() {
            self.baton.visit(&self.inbox);
        }
    }
}

impl Drop for JournaledDisk {
    fn drop(&mut self) {
        let end = move |worker: &mut worker::Worker| worker.end_at(Instant::now() + PARTING);
        self.inbox.push(Order::Call(Box::new(end)));
    }
}
