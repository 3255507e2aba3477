//! The core's disk operations on a store's disk.

use super::healing::{Ask, Ended, Healing};
use super::meta_io::{Blocks, MetaDone, MetaIo};
use super::open::NewPlace;
use super::stages::Spreads;
use super::view::{DiskFailure, DiskView};
use super::vitals::{ErrorKind, Vitals};
use crate::journaled::JournalHandle;
use crate::spares::{RemapAnswer, RemapFailed, SparesView};
use bytes::Bytes;
use holdfast_core::{DiskOpId, DiskOutcome, Event, IoFailure, MetaOpId};
use holdfast_store::{
    Completion, Disk, DiskError, DiskErrorKind, DiskOp, OpId, OpKind, Outcome, RemapEntry, RemapOp,
};
use holdfast_units::{ByteRange, MAX_REQUEST};
use rustix::fs::{SeekFrom, seek};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Instant;
use tokio::sync::oneshot;

/// A disk and its metadata, in use by one resource.
pub(super) struct DiskDriver {
    disk: Disk,
    meta: MetaIo,
    /// Where both are.
    path: PathBuf,
    meta_path: PathBuf,
    /// Why it is not used any more.
    failure: Option<DiskFailure>,
    /// What an operation ended with that is not about some of its blocks only.
    last_error: Option<DiskFailure>,
    /// The same file, for looking for holes; `None` for block devices.
    probe: Option<File>,
    /// The journal that is before the disk.
    journal: Option<JournalHandle>,
    /// Operations that wait: for [`DiskDriver::submit_waiting`], or for room.
    waiting: VecDeque<(DiskOpId, DiskOp)>,
    /// Work on the spares that somebody asked for: waiting, and under way.
    asked: VecDeque<(RemapOp, oneshot::Sender<RemapAnswer>)>,
    asking: BTreeMap<u64, oneshot::Sender<RemapAnswer>>,
    /// Something was submitted since the last kick.
    unkicked: bool,
    /// The core does not use it any more.
    closing: bool,
    completed: Vec<Completion>,
    healing: Healing,
    /// What it goes through.
    vitals: Vitals,
}

impl DiskDriver {
    /// How many operations are given to the disk at a time.
    pub(super) const MAX_IN_FLIGHT: usize = 4096;
    /// The core's: the others are for repairs, which must not be refused for want of room.
    const OF_CORE: usize = Self::MAX_IN_FLIGHT - 256;
    /// Marks the operations that somebody asked for; healing has the bit above.
    const ASKED: u64 = 1 << 62;

    pub(super) fn new(disk: Disk, meta: MetaIo, probe: Option<File>, view: &DiskView) -> Self {
        Self {
            disk,
            journal: None,
            meta,
            path: view.path.clone(),
            meta_path: view.metadata.clone(),
            failure: None,
            last_error: None,
            probe,
            waiting: VecDeque::new(),
            asked: VecDeque::new(),
            asking: BTreeMap::new(),
            unkicked: false,
            closing: false,
            completed: Vec::new(),
            healing: Healing::default(),
            vitals: Vitals::new(&view.path, Instant::now()),
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
        self.healing.has_journal(journal.is_some());
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

    /// Work on the spares, without a journal.
    pub(super) fn remap(&mut self, what: RemapOp, done: oneshot::Sender<RemapAnswer>) {
        self.asked.push_back((what, done));
    }

    /// What the tables of the spares say, from the entry number `skip` on; without a journal.
    pub(super) fn remap_entries(&self, skip: usize, most: usize) -> Vec<RemapEntry> {
        self.disk.remap_entries().skip(skip).take(most).collect()
    }

    /// How the spares are; `None` without any, and with a journal, which knows.
    pub(super) fn spares(&self) -> Option<SparesView> {
        SparesView::of(&self.disk)
    }

    fn submit_asked(&mut self) {
        while self.disk.in_flight() < Self::OF_CORE
            && let Some((what, done)) = self.asked.pop_front()
        {
            let last = self.asking.last_key_value().map_or(Self::ASKED, |(op, _)| *op);
            self.asking.insert(last + 1, done);
            match self.disk.remap(OpId(last + 1), what) {
                Some(completion) => self.answer(&completion),
                None => self.unkicked = true,
            }
        }
    }

    /// The end of work that somebody asked for.
    fn answer(&mut self, completion: &Completion) {
        let report = self.disk.remap_report(completion.op).unwrap_or_default();
        let Some(done) = self.asking.remove(&completion.op.0) else { return };
        // Who asked may be gone.
        let _ = done.send(match &completion.result {
            Ok(_) => Ok(report),
            Err(error) => Err(RemapFailed { error: Some(*error), report }),
        });
    }

    /// Stores again what could not be read, so that it can be.
    pub(super) fn repair(
        &mut self,
        op: DiskOpId,
        range: ByteRange,
        data: Bytes,
        events: &mut VecDeque<Event>,
    ) {
        let ended = self.healing.repair(&mut self.disk, op, range, data);
        self.tell(ended, events);
    }

    /// Stores again in its place what the disk holds: the journal gave it, or a later read.
    pub(super) fn restore(
        &mut self,
        op: DiskOpId,
        range: ByteRange,
        data: Bytes,
        events: &mut VecDeque<Event>,
    ) {
        if self.journal.is_some() {
            self.healing.restore(op, range, data);
        } else {
            self.repair(op, range, data, events);
        }
    }

    /// Has the disk remember that it has no good copy of a range.
    pub(super) fn mark_lost(
        &mut self,
        op: DiskOpId,
        range: ByteRange,
        unread: bool,
        events: &mut VecDeque<Event>,
    ) {
        let ended = self.healing.mark_lost(&mut self.disk, op, range, unread);
        self.tell(ended, events);
    }

    /// Gives what waits to the disk, as far as it has room.
    pub(super) fn submit_waiting(&mut self, events: &mut VecDeque<Event>) {
        self.submit_asked();
        let mut now = None;
        while self.disk.in_flight() < Self::OF_CORE
            && let Some((op, request)) = self.next_waiting()
        {
            let began = *now.get_or_insert_with(Instant::now);
            let kind = request.kind();
            let of_disk = request.is_of_disk();
            self.vitals.calls(began);
            match request.submit(&mut self.disk, op) {
                Some(completion) => {
                    let ended = Instant::now();
                    if of_disk {
                        self.vitals.took(kind, ended - began, ended, completion.result.is_ok());
                    }
                    now = Some(ended);
                    self.ended(completion, events);
                }
                None => {
                    if of_disk {
                        self.vitals.started(op.0, kind, began);
                    }
                    self.unkicked = true;
                }
            }
        }
        self.vitals.returned();
    }

    fn next_waiting(&mut self) -> Option<(OpId, Ask)> {
        let of_core = || {
            let (op, request) = self.waiting.pop_front()?;
            Some((OpId(op.0), Ask::Disk(request)))
        };
        self.healing.next().or_else(of_core)
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
        let mut now = None;
        for completion in completed.drain(..) {
            let now = *now.get_or_insert_with(Instant::now);
            self.vitals.ended(completion.op.0, now, completion.result.is_ok());
            if !Healing::is_own(completion.op) && completion.op.0 > Self::ASKED {
                self.answer(&completion);
            } else {
                self.ended(completion, events);
            }
        }
        self.completed = completed;
    }

    /// What it went through.
    pub(super) fn vitals(&mut self) -> &mut Vitals {
        &mut self.vitals
    }

    /// How long its operations took.
    pub(super) fn spreads(&self) -> Spreads {
        self.vitals.spreads()
    }

    /// What failed first, if anything has. The core does not use the disk any more then.
    pub(super) fn failure(&self) -> Option<&DiskFailure> {
        self.failure.as_ref()
    }

    /// An operation of the disk ended.
    fn ended(&mut self, completion: Completion, events: &mut VecDeque<Event>) {
        if Healing::is_own(completion.op) {
            let ended = self.healing.ended(&mut self.disk, completion);
            self.tell(ended, events);
            return;
        }
        let op = DiskOpId(completion.op.0);
        let ended = match completion.result {
            Ok(Outcome::Done) => Some((op, Ok(DiskOutcome::Done))),
            Ok(Outcome::Data(data)) => Some((op, Ok(DiskOutcome::Data(data)))),
            Ok(Outcome::Zeroes) => Some((op, Ok(DiskOutcome::Zeroes))),
            Ok(Outcome::Logged(at)) => Some((op, Ok(DiskOutcome::Logged(at)))),
            Err(error) if error.op == OpKind::Read => {
                self.healing.read_failed(&mut self.disk, op, error)
            }
            Err(error) => Some((op, Err(Some(error)))),
        };
        self.tell(ended, events);
    }

    /// Tells the core what became of its operation. It decides whether the disk has failed.
    fn tell(&mut self, ended: Option<Ended>, events: &mut VecDeque<Event>) {
        let Some((op, result)) = ended else { return };
        self.note_errors(&result);
        let result = result.map_err(|error| {
            if let Some(error) = error {
                let what = format!("the disk {}: {error}", self.path.display());
                let full = error.kind == DiskErrorKind::NoSpace;
                self.last_error = Some(DiskFailure { what, full });
            }
            IoFailure::Disk
        });
        events.push_back(Event::DiskDone(op, result));
    }

    /// Counts what went wrong, unless it is no fault of the disk.
    fn note_errors(&mut self, result: &Result<DiskOutcome, Option<DiskError>>) {
        use DiskErrorKind as Kind;
        match result {
            Ok(DiskOutcome::Partial { bad, .. }) => self.vitals.bad_blocks(ErrorKind::Read, bad),
            Ok(DiskOutcome::Salvaged { bad, salvaged, .. }) => {
                self.vitals.bad_blocks(ErrorKind::Read, bad);
                self.vitals.bad_blocks(ErrorKind::Read, salvaged);
            }
            Ok(_) | Err(None) => {}
            Err(Some(error)) => match error.kind {
                Kind::Io | Kind::FlushFailed | Kind::Unreadable | Kind::SpareFull => {
                    let range = Some(error.range).filter(|range| range.len > 0);
                    self.vitals.failed(error.op.into(), range);
                }
                Kind::NoSpace
                | Kind::OutOfRange
                | Kind::Invalid
                | Kind::ReadOnly
                | Kind::Busy
                | Kind::Poisoned => {}
            },
        }
    }

    fn meta_event(&mut self, (op, result): MetaDone) -> Event {
        let result = result.map_err(|error| {
            self.vitals.failed(ErrorKind::Metadata, None);
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

    /// It does not answer in the time that it has: the core gives it up next.
    pub(super) fn is_hung(&mut self) {
        let what =
            format!("the disk {} has not answered for longer than it may", self.path.display());
        self.last_error = Some(DiskFailure { what, full: false });
    }

    /// The core gives it up: for what failed last, if anything has.
    pub(super) fn close(&mut self) {
        self.closing = true;
        if let Some(failure) = self.last_error.take() {
            self.failed(failure);
        }
        self.disk.settle_checksums();
    }

    /// The backing is about to be replaced: where it has holes says nothing any more.
    pub(super) fn forget_holes(&mut self) {
        self.probe = None;
    }

    /// Metadata are about to be moved: writes of them wait from now on.
    pub(super) fn hold_meta(&mut self, quiet: oneshot::Sender<()>) {
        self.meta.hold(quiet);
    }

    /// The backing was replaced, or it stays after all.
    pub(super) fn replaced(&mut self, place: NewPlace, events: &mut VecDeque<Event>) -> DiskView {
        for done in self.meta.go_on(place.meta) {
            events.push_back(self.meta_event(done));
        }
        self.path.clone_from(&place.view.path);
        self.meta_path.clone_from(&place.view.metadata);
        if self.vitals.disk() != self.path {
            self.vitals.begin_anew(&self.path, Instant::now());
        }
        // With a journal, or spares, the disk alone does not say where holes are.
        let is_all = self.journal.is_none() && self.disk.remap_stats().is_none();
        self.probe = place.probe.filter(|_| is_all);
        place.view
    }

    /// Whether it was given up and nothing is under way any more.
    pub(super) fn is_done(&mut self) -> bool {
        if !self.closing || !self.is_idle() {
            return false;
        }
        let settled = self.disk.checksums_are_settled();
        if !settled {
            // What was written since it was given up keeps them from it.
            self.disk.settle_checksums();
        }
        settled
    }

    fn is_idle(&self) -> bool {
        let none_wait = self.waiting.is_empty() && self.asked.is_empty();
        self.disk.in_flight() == 0 && none_wait && self.healing.is_idle() && self.meta.is_idle()
    }

    /// Gives the claims on disk and metadata up, once nothing is under way; what it went through
    /// is left.
    pub(super) fn release(self) -> Vitals {
        debug_assert!(self.is_idle(), "a disk is released when it is idle");
        drop(self.disk);
        self.meta.close();
        self.vitals
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
        // A hole where data was is one of the things that checksums are to find.
        let file = self.probe.as_ref().filter(|_| !self.disk.has_checksums())?;
        match seek(file, what(from)) {
            Ok(at) => Some(at),
            Err(rustix::io::Errno::NXIO) => Some(u64::MAX),
            Err(_) => None,
        }
    }
}
