//! Writes that become records: many of them one frame, one write, one sync.

use super::worker::{Appending, Worker, now};
use super::{JournalCallError, LostRanges, Mode};
use holdfast_format::journal::Compression;
use holdfast_journal::driver::{Stepped, Syncing};
use holdfast_journal::{Batch, CutPlan, Op, OpError, PushError, RangeSet, Ticket as Record};
use holdfast_store::{DiskOp, Outcome, Ticket};
use holdfast_units::{ByteRange, LogPosition};
use std::io;
use std::time::{Duration, Instant};

/// When so many flushes came that found nobody else waiting for a sync, and each after a few writes
/// only, what is written is made durable without waiting for the flush: that finds it done, or under
/// way. With several clients such a sync would hold up the one that all of them wait for.
const ALONE: u32 = 8;
const FEW_WRITES: u32 = 64;
/// Who wanted something durable wants more of it soon.
const SOON: Duration = Duration::from_millis(1);
/// The share of what may be written and not synced from which on it is synced without being asked,
/// so that nobody ever has to wait for it.
const EARLY: u64 = 4;

impl Worker {
    /// A flush: all that is completed is in a record that was pushed.
    pub(super) fn flush_op(&mut self, ticket: Ticket) {
        let few = std::mem::take(&mut self.writes_since_flush) <= FEW_WRITES;
        let alone = few && self.syncing.is_empty();
        self.lone_flushes = if alone { self.lone_flushes.saturating_add(1) } else { 0 };
        self.wanted_durable = Some(Instant::now());
        self.through.saw_flush();
        if self.log.journal().durable_ticket() >= self.pushed {
            ticket.complete(Ok(Outcome::Done));
        } else {
            self.syncing.push_back((self.pushed, ticket, Outcome::Done));
        }
    }

    /// Takes waiting writes into the journal, writes, and answers.
    pub(super) fn append(&mut self) {
        if !matches!(self.mode, Mode::Lead | Mode::Draining) || self.broken.is_some() {
            return;
        }
        self.open_through();
        loop {
            if self.mode == Mode::Lead {
                self.push_held();
            }
            if self.goes_through() {
                if self.start_through() {
                    continue;
                }
                if !self.through.is_idle() {
                    break;
                }
            }
            if self.no_room && self.log.spares() == 0 {
                break;
            }
            let durable = self.is_durable_wanted();
            let started = Instant::now();
            match self.log.step(durable) {
                Ok(Stepped::Idle) => break,
                Ok(Stepped::Prepared) => self.prepared(),
                Ok(Stepped::Wrote(batch)) => {
                    if durable {
                        self.figures.synced(started.elapsed());
                    }
                    self.wrote(batch);
                }
                Ok(Stepped::NoRoom) => self.has_no_room(),
                Err(error) => return self.journal_failed("it could not be written", &error),
            }
        }
        self.kick_through();
        self.answer_durable();
    }

    /// As [`Self::append`], but only what needs no waiting for a device; also on another thread.
    pub(super) fn append_cached(&mut self) {
        loop {
            self.push_held();
            if self.goes_through() {
                if self.start_through() {
                    continue;
                }
                return self.kick_through();
            }
            // A durable write is one trip to the device, when nothing before it has to be synced.
            if self.is_durable_wanted() && self.log.journal().sync_target().is_none() {
                return;
            }
            match self.log.step_cached() {
                Ok(Some(batch)) => self.wrote(batch),
                Ok(None) => return,
                Err(error) => return self.journal_failed("it could not be written", &error),
            }
        }
    }

    /// Whether something is written that should become durable now.
    pub(super) fn is_sync_wanted(&self) -> bool {
        let journal = self.log.journal();
        if journal.sync_target().is_none() || self.broken.is_some() {
            return false;
        }
        let unsynced = journal.head().since(journal.durable());
        let early =
            self.is_flushed_by_one() || unsynced > journal.settings().unsynced_bytes / EARLY;
        let waited_for = !self.syncing.is_empty() || !self.catching.is_empty();
        let asked = waited_for || self.back.wants_sync;
        match self.mode {
            Mode::Lead => early || asked,
            Mode::Draining => asked,
            _ => false,
        }
    }

    fn is_flushed_by_one(&self) -> bool {
        self.lone_flushes >= ALONE && self.writes_since_flush <= FEW_WRITES
    }

    /// Whether a moment of looking for work is better than to sleep.
    pub(super) fn is_worth_polling(&self) -> bool {
        let soon = self.wanted_durable.is_some_and(|at| at.elapsed() < SOON);
        self.mode == Mode::Lead && soon
    }

    /// Begins to make durable what should be. The journal can be used while it is waited for.
    pub(super) fn begin_sync(&mut self) -> Option<Syncing> {
        if !self.is_sync_wanted() {
            return None;
        }
        self.sync_began = Instant::now();
        self.back.wants_sync = false;
        match self.log.begin_sync() {
            Ok(sync) => {
                self.is_syncing = sync.is_some();
                sync
            }
            Err(error) => {
                self.journal_failed("it could not be made durable", &error);
                None
            }
        }
    }

    pub(super) fn end_sync(&mut self, sync: &Syncing, result: io::Result<()>) {
        self.moved = true;
        self.is_syncing = false;
        self.figures.synced(self.sync_began.elapsed());
        match self.log.end_sync(sync, result) {
            Ok(()) => self.answer_durable(),
            Err(error) => self.journal_failed("it could not be made durable", &error),
        }
    }

    /// The filesystem has no room for another segment: one of those that are there must be given up
    /// for it. That holds until there is room again.
    fn has_no_room(&mut self) {
        self.no_room = true;
        let bytes = self.log.journal().status().bytes;
        self.log.journal_mut().set_budget(bytes.saturating_sub(self.sizes.segment));
        self.make_room();
    }

    pub(super) fn is_durable_wanted(&self) -> bool {
        !self.syncing.is_empty()
            || self.appending.iter().any(|waiting| is_durable(&waiting.request))
    }

    fn push_held(&mut self) {
        let mut room = self.room();
        while let Some((request, _)) = self.held.front() {
            let needs = Self::needs(request);
            if room.is_some_and(|room| room < needs) {
                self.pressed = true;
                return;
            }
            let mut stored = 0;
            let pushed = match op_of(request, self.log.journal().packing()) {
                Ok(op) => {
                    stored = op.payload().len() as u64;
                    self.log.push(op)
                }
                Err(_) => Err(PushError::TooLong),
            };
            let record = match pushed {
                Ok(record) => record,
                // Batches are written first.
                Err(PushError::Queue | PushError::Failed | PushError::Following) => return,
                Err(PushError::WriteBack) => {
                    self.pressed = true;
                    return;
                }
                Err(PushError::TooLong) => {
                    if let Some((_, ticket)) = self.held.pop_front() {
                        ticket.complete(Err(io::ErrorKind::InvalidInput.into()));
                    }
                    continue;
                }
            };
            let Some((request, ticket)) = self.held.pop_front() else { return };
            if let DiskOp::Write { range, .. } = &request {
                self.figures.payload_bytes += range.len;
                self.figures.stored_bytes += stored;
            }
            self.pushed = Record(record.0 + 1);
            room = room.map(|room| room - needs);
            self.appending.push_back(Appending { record, request, ticket });
        }
    }

    /// The bytes that may be appended before another segment must be begun, when there may be none.
    /// Beside the last one there may always be another: that one is never given up, and may be
    /// longer than all that this node has room for when it is a copy of another node's.
    fn room(&self) -> Option<u64> {
        let journal = self.log.journal();
        let full = journal.status().bytes + self.sizes.segment > self.sizes.most_segments();
        (full && journal.links().len() > 1).then(|| journal.room())
    }

    /// What a record takes at most, alone in a frame.
    fn needs(request: &DiskOp) -> u64 {
        const HEAD: u64 = 4096;
        match request {
            DiskOp::Write { range, .. } => range.len + HEAD,
            _ => HEAD,
        }
    }

    /// A segment was begun, or something synced.
    fn prepared(&mut self) {
        self.open_through();
        let mut switches = self.log.journal().switches();
        if switches.bypassed && !self.log.journal().is_to_begin() {
            // The new history has begun, before anything of it.
            switches.bypassed = false;
            self.log.journal_mut().set_switches(switches);
            if let Err(error) = self.log.store_cursors() {
                return self.journal_failed("its cursors could not be stored", &error);
            }
        }
        self.make_room();
        self.make_spare();
    }

    pub(super) fn wrote(&mut self, batch: Batch) {
        for (offset, payload) in batch.payloads {
            self.cache.insert(batch.segment, offset, payload);
        }
        let written = self.log.journal().written_ticket();
        while let Some(waiting) = self.appending.pop_front_if(|waiting| waiting.record < written) {
            let within = waiting.record.0.saturating_sub(batch.tickets.start);
            let outcome = Outcome::Logged(batch.position.after(within));
            if is_durable(&waiting.request) {
                self.syncing.push_back((Record(waiting.record.0 + 1), waiting.ticket, outcome));
            } else {
                self.answer_write(&waiting.request, waiting.ticket, outcome);
            }
        }
        self.answer_durable();
    }

    fn answer_durable(&mut self) {
        let durable = self.log.journal().durable_ticket();
        // Flushes and durable writes do not come in the order of their records.
        let waiting = std::mem::take(&mut self.syncing);
        for (record, ticket, outcome) in waiting {
            if record <= durable {
                ticket.complete(Ok(outcome));
            } else {
                self.syncing.push_back((record, ticket, outcome));
            }
        }
    }

    /// Gives up segments so that the budget is kept, when nobody loses anything by it.
    pub(super) fn make_room(&mut self) {
        let plan = self.log.journal().plan_cut();
        self.cut_wanted = plan.as_ref().is_some_and(|plan| !plan.losers.is_empty());
        if let Some(plan) = plan.filter(|plan| plan.losers.is_empty()) {
            self.log.journal_mut().cut(&plan);
        }
        self.recycle();
    }

    /// Makes spares of segments that are given up.
    pub(super) fn recycle(&mut self) {
        if self.log.journal().recyclable().is_none() {
            return;
        }
        match self.log.recycle() {
            Ok(_) => {
                self.no_room = false;
                self.pressed = false;
                self.cut_wanted = false;
                self.moved = true;
            }
            Err(error) => self.journal_failed("a segment could not be given up", &error),
        }
    }

    pub(super) fn plan_cut(&mut self) -> Result<Option<(CutPlan, LostRanges)>, JournalCallError> {
        let Some(plan) = self.log.journal().plan_cut() else { return Ok(None) };
        let ranges = self.log.cut_ranges(&plan).unwrap_or_else(|error| {
            tracing::warn!("what peers lose of the journal is not known, so they get all: {error}");
            let mut everything = RangeSet::new();
            everything.insert(ByteRange::new(0, self.disk.info().size));
            plan.losers.iter().map(|(peer, _)| (*peer, everything.clone())).collect()
        });
        Ok(Some((plan, ranges)))
    }

    pub(super) fn flush_journal(&mut self) -> Result<LogPosition, JournalCallError> {
        if self.log.journal().status().failed {
            return Err(JournalCallError::Mode(self.mode));
        }
        let started = Instant::now();
        let synced = self.log.sync();
        self.figures.synced(started.elapsed());
        if let Err(error) = synced {
            let told = io::Error::new(error.kind(), error.to_string());
            self.journal_failed("it could not be made durable", &error);
            return Err(told.into());
        }
        self.answer_durable();
        Ok(self.log.journal().durable())
    }

    /// That no write to this range waits to become a record.
    pub(super) fn need_none_waiting(&mut self, range: ByteRange) -> Result<(), JournalCallError> {
        self.append();
        match self.held.iter().any(|(request, _)| request.range().overlaps(range)) {
            false => Ok(()),
            true => Err(io::Error::from(io::ErrorKind::WouldBlock).into()),
        }
    }

    pub(super) fn begin_segment(&mut self) -> Result<(u64, LogPosition), JournalCallError> {
        if self.mode != Mode::Lead {
            return Err(JournalCallError::Mode(self.mode));
        }
        self.append();
        self.wait_through();
        self.flush_journal()?;
        self.log.journal_mut().rotate_now();
        self.append();
        let begun = self.log.journal().durable_segments().pop();
        let begun = begun.filter(|_| !self.log.journal().is_to_begin());
        let begun = begun.map(|(header, _)| (header.number, header.base));
        begun.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull).into())
    }

    pub(super) fn rotate(&mut self) -> Result<(), JournalCallError> {
        if self.mode != Mode::Lead {
            return Err(JournalCallError::Mode(self.mode));
        }
        self.log.journal_mut().rotate();
        Ok(())
    }
}

/// Whether it may only be answered when it is durable. A flush is a record when it had to wait.
pub(super) fn is_durable(request: &DiskOp) -> bool {
    matches!(
        request,
        DiskOp::Flush | DiskOp::Write { fua: true, .. } | DiskOp::WriteZeroes { fua: true, .. }
    )
}

/// Whether all bytes are zero. Compares the data with itself, one byte further: as fast as memory.
fn is_zero(data: &[u8]) -> bool {
    data.first() == Some(&0) && data[1..] == data[..data.len() - 1]
}

fn op_of(request: &DiskOp, packing: Compression) -> Result<Op, OpError> {
    match request {
        // They need no room, neither here nor on the way to a peer.
        DiskOp::Write { range, data, fua } if is_zero(data) => {
            Op::zeroes(*range, now(), false, *fua)
        }
        DiskOp::Write { range, data, fua } => {
            Op::write_packed(range.offset, data.clone(), now(), *fua, packing)
        }
        DiskOp::WriteZeroes { range, unmap, fua } => Op::zeroes(*range, now(), *unmap, *fua),
        DiskOp::Discard { range } => Op::zeroes(*range, now(), true, false),
        DiskOp::Read { range, .. } => Err(OpError(*range)),
        DiskOp::Flush => Ok(Op::flush(now())),
    }
}
