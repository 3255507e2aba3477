//! The core's disk operations on a store's disk.

use super::meta_io::{Blocks, MetaDone, MetaIo};
use super::view::{DiskFailure, DiskView};
use crate::journaled::JournalHandle;
use bytes::Bytes;
use holdfast_core::{DiskOpId, DiskOutcome, Event, IoFailure, MetaOpId};
use holdfast_store::{Completion, Disk, DiskErrorKind, DiskOp, OpId, Outcome};
use holdfast_units::{ByteRange, MAX_REQUEST};
use rustix::fs::{SeekFrom, seek};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// A disk and its metadata, in use by one resource.
pub(super) struct DiskDriver {
    disk: Disk,
    meta: MetaIo,
    /// Where both are.
    path: PathBuf,
    meta_path: PathBuf,
    /// What failed first.
    failure: Option<DiskFailure>,
    /// The same file, for looking for holes; `None` for block devices.
    probe: Option<File>,
    /// The journal that is before the disk.
    journal: Option<JournalHandle>,
    /// Operations that wait: for [`DiskDriver::submit_waiting`], or for room.
    waiting: VecDeque<(DiskOpId, DiskOp)>,
    /// Something was submitted since the last kick.
    unkicked: bool,
    /// The core does not use it any more.
    closing: bool,
    completed: Vec<Completion>,
}

impl DiskDriver {
    /// How many operations are given to the disk at a time.
    pub(super) const MAX_IN_FLIGHT: usize = 4096;

    pub(super) fn new(disk: Disk, meta: MetaIo, probe: Option<File>, view: &DiskView) -> Self {
        Self {
            disk,
            journal: None,
            meta,
            path: view.path.clone(),
            meta_path: view.metadata.clone(),
            failure: None,
            probe,
            waiting: VecDeque::new(),
            unkicked: false,
            closing: false,
            completed: Vec::new(),
        }
    }

    /// The backing has grown, and is used up to this size from now on.
    pub(super) fn grown_to(&mut self, size: u64) {
        self.disk.grown_to(size);
        if let Some(journal) = &self.journal {
            journal.grown_to(size);
        }
    }

    /// The disk is one with a journal before it.
    pub(super) fn has_journal(&mut self, journal: Option<JournalHandle>) {
        self.journal = journal;
    }

    /// A read; with `holes`, a long range is answered by its first part unless all is hole.
    pub(super) fn read(
        &mut self,
        op: DiskOpId,
        range: ByteRange,
        holes: bool,
        events: &mut VecDeque<Event>,
    ) {
        if range.len <= MAX_REQUEST {
            self.waiting.push_back((op, DiskOp::Read { range, holes }));
        } else if self.is_hole(range) {
            events.push_back(Event::DiskDone(op, Ok(DiskOutcome::Zeroes)));
        } else {
            let range = ByteRange::new(range.offset, MAX_REQUEST);
            self.waiting.push_back((op, DiskOp::Read { range, holes: false }));
        }
    }

    pub(super) fn write(&mut self, op: DiskOpId, range: ByteRange, data: Bytes, fua: bool) {
        self.waiting.push_back((op, DiskOp::Write { range, data, fua }));
    }

    pub(super) fn zeroes(&mut self, op: DiskOpId, range: ByteRange, fua: bool) {
        self.waiting.push_back((op, DiskOp::WriteZeroes { range, unmap: true, fua }));
    }

    pub(super) fn flush(&mut self, op: DiskOpId) {
        self.waiting.push_back((op, DiskOp::Flush));
    }

    /// Gives what waits to the disk, as far as it has room.
    pub(super) fn submit_waiting(&mut self, events: &mut VecDeque<Event>) {
        while self.disk.in_flight() < Self::MAX_IN_FLIGHT
            && let Some((op, request)) = self.waiting.pop_front()
        {
            match self.disk.submit(OpId(op.0), request) {
                Some(completion) => events.push_back(self.event_of(completion)),
                None => self.unkicked = true,
            }
        }
    }

    /// Starts a metadata write.
    pub(super) fn write_meta(
        &mut self,
        op: MetaOpId,
        blocks: Blocks,
        events: &mut VecDeque<Event>,
    ) {
        if let Some(done) = self.meta.write(op, blocks) {
            events.push_back(self.meta_event(done));
        }
    }

    /// A metadata write ended on its thread.
    pub(super) fn meta_ended(&mut self, done: MetaDone, events: &mut VecDeque<Event>) {
        self.meta.ended();
        events.push_back(self.meta_event(done));
    }

    /// Hands to the kernel what was submitted; to a journal only with [`Self::kick_journal`].
    pub(super) fn kick(&mut self) {
        if self.journal.is_none() && std::mem::take(&mut self.unkicked) {
            self.disk.kick();
        }
    }

    /// Whether something waits for [`Self::kick_journal`].
    pub(super) const fn wants_journal(&self) -> bool {
        self.journal.is_some() && self.unkicked
    }

    /// Has the journal do what was submitted: what needs no waiting is done on this thread, and is
    /// over when this ends.
    pub(super) fn kick_journal(&mut self, events: &mut VecDeque<Event>) {
        if self.wants_journal() {
            self.unkicked = false;
            self.collect(events);
        }
    }

    /// Takes what has completed.
    pub(super) fn collect(&mut self, events: &mut VecDeque<Event>) {
        let mut completed = std::mem::take(&mut self.completed);
        self.disk.completions(&mut completed);
        events.extend(completed.drain(..).map(|completion| self.event_of(completion)));
        self.completed = completed;
    }

    /// What failed first, if anything has. The core does not use the disk any more then.
    pub(super) fn failure(&self) -> Option<&DiskFailure> {
        self.failure.as_ref()
    }

    fn event_of(&mut self, completion: Completion) -> Event {
        let op = DiskOpId(completion.op.0);
        let result = match completion.result {
            Ok(Outcome::Done) => Ok(DiskOutcome::Done),
            Ok(Outcome::Data(data)) => Ok(DiskOutcome::Data(data)),
            Ok(Outcome::Zeroes) => Ok(DiskOutcome::Zeroes),
            Err(error) => {
                let what = format!("the disk {}: {error}", self.path.display());
                self.failed(DiskFailure { what, full: error.kind == DiskErrorKind::NoSpace });
                Err(IoFailure::Disk)
            }
        };
        Event::DiskDone(op, result)
    }

    fn meta_event(&mut self, (op, result): MetaDone) -> Event {
        let result = result.map_err(|error| {
            let place = self.meta_path.display();
            let what = format!("the metadata in {place} could not be written: {error}");
            let full =
                matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            self.failed(DiskFailure { what, full });
            IoFailure::Disk
        });
        Event::MetaDone(op, result)
    }

    fn failed(&mut self, failure: DiskFailure) {
        if self.failure.is_none() {
            tracing::error!("a disk is not used any more: {}", failure.what);
            self.failure = Some(failure);
        }
    }

    /// The core gives it up.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether it was given up and nothing is under way any more.
    pub(super) fn is_done(&self) -> bool {
        self.closing && self.is_idle()
    }

    fn is_idle(&self) -> bool {
        self.disk.in_flight() == 0 && self.waiting.is_empty() && self.meta.is_idle()
    }

    /// Gives the claims on disk and metadata up, once nothing is under way.
    pub(super) fn release(self) {
        debug_assert!(self.is_idle(), "a disk is released when it is idle");
        drop(self.disk);
        self.meta.close();
    }

    fn is_hole(&self, range: ByteRange) -> bool {
        self.next(range.offset, SeekFrom::Data).is_some_and(|data| data >= range.end())
    }

    /// The parts of a range and whether each holds data, at most `most` of them, from its start
    /// on. `None` when that cannot be known.
    pub(super) fn allocation(&self, range: ByteRange, most: usize) -> Option<Vec<(u64, bool)>> {
        let mut parts = Vec::new();
        let mut at = range.offset;
        while at < range.end() && parts.len() < most {
            let data = self.next(at, SeekFrom::Data)?.min(range.end());
            if data > at {
                parts.push((data - at, false));
            }
            if data < range.end() {
                let hole = self.next(data, SeekFrom::Hole)?.min(range.end());
                parts.push((hole - data, true));
                at = hole;
            } else {
                at = data;
            }
        }
        Some(parts)
    }

    /// Where data or a hole begin at or behind `from`; the end of all places when nowhere.
    fn next(&self, from: u64, what: fn(u64) -> SeekFrom) -> Option<u64> {
        let file = self.probe.as_ref()?;
        match seek(file, what(from)) {
            Ok(at) => Some(at),
            Err(rustix::io::Errno::NXIO) => Some(u64::MAX),
            Err(_) => None,
        }
    }
}
