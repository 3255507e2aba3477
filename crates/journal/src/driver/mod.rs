//! A blocking driver of a journal over a directory of files.
//!
//! [`Log`] does what [`Journal::next`] wants, one step after the other, on the calling thread.
//! What it needs of the directory is [`Files`]; [`Directory`] is the real one.

mod directory;
mod offline;

pub use directory::{Directory, DirectoryOptions};
pub use offline::Offline;

use crate::index::{PartSource, RunKind, RunPiece, WriteBackLimits};
use crate::journal::{Batch, CopyError, Journal, Next, Settings};
use crate::op::{Op, PushError, Ticket};
use crate::records::RecordsError;
use crate::recover::{Found, RecoverError, recover};
use crate::retention::{CutPlan, cut_ranges};
use crate::scan::ReadSegments;
use crate::{RangeSet, Records};
use bytes::{Bytes, BytesMut};
use holdfast_format::journal::{Cursors, SegmentHeader};
use holdfast_format::{BLOCK_LEN, Block, BlockError, ReadFailed};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};
use std::collections::BTreeMap;
use std::io;

/// The name of the file of cursors.
pub const CURSORS: &str = "cursors";
/// What the file of cursors is renamed to when the journal is given up: nothing of it counts.
pub const GIVEN_UP: &str = "given-up";
const CURSORS_BYTES: u64 = 2 * BLOCK_LEN as u64;

/// The name of a segment's file.
#[must_use]
pub fn segment_name(number: u64) -> String {
    format!("segment-{number:016x}")
}

/// The name of a file that waits to be a segment.
#[must_use]
pub fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}")
}

fn number_of(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    if digits.len() == 16 { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// A directory of files, as a journal needs it.
pub trait Files {
    /// The names of all files in it.
    ///
    /// # Errors
    /// When it cannot be listed.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes sure that there is a file of this length: preallocated, and written once with zeroes
    /// where it is new. Neither file nor name need be durable.
    ///
    /// # Errors
    /// When it cannot be made.
    fn create(&mut self, name: &str, len: u64) -> io::Result<()>;

    /// Writes parts one after the other. All of it, or an error.
    ///
    /// # Errors
    /// When not all could be written.
    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()>;

    /// Reads; how many bytes there were, less than asked for only at the end of the file.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// As [`Self::write`], durable in the same step where that can be done; whether it is.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool>;

    /// Makes the data of a file durable.
    ///
    /// # Errors
    /// When that is not known to have worked.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// As [`Self::sync`], for another moment or thread: what was written when this was called is
    /// durable when what it returns has worked. Nothing, where it is durable already.
    ///
    /// # Errors
    /// As [`Self::sync`].
    fn sync_apart(&mut self, name: &str) -> io::Result<Option<SyncApart>> {
        self.sync(name).map(|()| None)
    }

    /// Gives a file another name, which no file has.
    ///
    /// # Errors
    /// When that did not work.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Takes a file away.
    ///
    /// # Errors
    /// When that did not work.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// When that is not known to have worked.
    fn sync_dir(&mut self) -> io::Result<()>;
}

/// A sync that is still to be made: see [`Files::sync_apart`].
pub type SyncApart = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A sync that has begun: pass its end to [`Log::end_sync`].
pub struct Syncing {
    target: LogPosition,
    rest: Option<SyncApart>,
}

impl Syncing {
    /// Waits for it.
    ///
    /// # Errors
    /// When it is not known to have worked.
    pub fn wait(&mut self) -> io::Result<()> {
        self.rest.take().map_or(Ok(()), |rest| rest())
    }
}

/// Why a log could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Its files.
    #[error("the files of the journal could not be used: {0}")]
    Io(#[from] io::Error),
    /// What is in them.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A record.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The cursors.
    #[error("the cursors of the journal cannot be used: {0}")]
    Cursors(BlockError),
}

/// Why bytes of another node's journal were not taken.
#[derive(Debug, thiserror::Error)]
pub enum CopyFailed {
    /// They do not belong there.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// They could not be written.
    #[error("the files of the journal could not be written: {0}")]
    Io(#[from] io::Error),
}

/// An op that was read back.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Its position.
    pub position: LogPosition,
    /// The position of the next one: where a cursor stands that is behind this one.
    pub next: LogPosition,
    /// The op.
    pub op: Op,
}

/// The segments of a directory, to read.
struct Segments<'a, F>(&'a F);

impl<F: Files> ReadSegments for Segments<'_, F> {
    fn read_segment(&self, number: u64, offset: u64, buf: &mut [u8]) -> Result<usize, ReadFailed> {
        self.0.read(&segment_name(number), offset, buf).map_err(|e| ReadFailed(e.to_string()))
    }
}

/// How a log is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Open {
    /// The journal's settings.
    pub settings: Settings,
    /// Whether this node appends, or takes copies.
    pub leads: bool,
    /// The generation of the data.
    pub generation: GenerationId,
    /// What the clock says.
    pub time: HybridTime,
    /// Give up everything from this position on: what a damaged journal needs.
    pub cut: Option<LogPosition>,
    /// How many files wait to be segments at most; those above are taken away.
    pub spares: usize,
}

/// What one step of a [`Log`] did.
#[derive(Debug)]
pub enum Stepped {
    /// There was nothing to do.
    Idle,
    /// A sync, or a segment was begun.
    Prepared,
    /// A batch is written.
    Wrote(Batch),
    /// There is no room for the next segment: one must be recycled first. Nothing has failed.
    NoRoom,
}

/// A journal and its files.
pub struct Log<F> {
    journal: Journal,
    files: F,
    spares: Vec<u64>,
    max_spares: usize,
}

impl<F: Files> Log<F> {
    /// Opens the journal in a directory, or makes one. All that was found is durable then.
    ///
    /// # Errors
    /// [`LogError`]; with [`RecoverError::Damaged`] it can be opened with a cut.
    pub fn open(mut files: F, open: &Open) -> Result<(Self, Found), LogError> {
        let resource = open.settings.resource;
        let mut names = files.list()?;
        if names.iter().any(|name| name == GIVEN_UP) {
            remove_all(&mut files)?;
            names = files.list()?;
        }
        let numbers: Vec<u64> = names.iter().filter_map(|n| number_of(n, "segment-")).collect();
        let spares = names.iter().filter_map(|n| number_of(n, "spare-")).collect();
        let has_cursors = names.iter().any(|name| name == CURSORS);
        let cursors = match has_cursors {
            true => cursors_of(&read_cursors(&files)?, resource).map_err(LogError::Cursors)?,
            false => Cursors::new(resource),
        };
        let mut frames = Vec::new();
        let reader = Segments(&files);
        let found =
            recover(&reader, resource, &numbers, &cursors, open.cut, &mut |segment, frame, at| {
                frames.push((*segment, frame.clone(), at));
            })?;
        let Open { settings, leads, generation, time, .. } = *open;
        let mut journal = Journal::new(settings, &found, cursors, leads, generation, time);
        for (segment, frame, offset) in &frames {
            journal.restore(segment, frame, *offset);
        }
        if !has_cursors {
            make_cursors(&mut files)?;
        }
        let mut log = Self { journal, files, spares, max_spares: open.spares };
        log.settle(&found)?;
        Ok((log, found))
    }

    /// Makes durable what was found, and takes away what does not count.
    fn settle(&mut self, found: &Found) -> Result<(), LogError> {
        for (header, _) in &found.segments {
            self.files.sync(&segment_name(header.number))?;
        }
        if let Some((header, _)) = found.segments.last() {
            self.files.create(&segment_name(header.number), header.capacity)?;
        }
        for number in &found.remnants {
            self.files.remove(&segment_name(*number))?;
        }
        self.files.sync_dir()?;
        if let Some(target) = self.journal.sync_target() {
            self.journal.synced(target);
        }
        Ok(())
    }

    /// The journal: queues, cursors, index, retention.
    #[must_use]
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The journal, to change its cursors and switches.
    pub const fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The files.
    #[must_use]
    pub const fn files(&self) -> &F {
        &self.files
    }

    /// The files, to keep something else beside the journal's.
    pub const fn files_mut(&mut self) -> &mut F {
        &mut self.files
    }

    /// Ends it, and gives the files back.
    #[must_use]
    pub fn into_files(self) -> F {
        self.files
    }

    /// Queues an op.
    ///
    /// # Errors
    /// [`PushError`].
    pub fn push(&mut self, op: Op) -> Result<Ticket, PushError> {
        self.journal.push(op)
    }

    /// Does everything that the journal wants: all that was pushed is written then.
    ///
    /// # Errors
    /// When a write or a sync failed: the journal has failed.
    pub fn pump(&mut self) -> io::Result<()> {
        let result = self.try_pump();
        if result.is_err() {
            self.journal.fail();
        }
        result
    }

    fn try_pump(&mut self) -> io::Result<()> {
        loop {
            match self.try_step(true)? {
                Stepped::Idle => return Ok(()),
                Stepped::NoRoom => return Err(io::ErrorKind::StorageFull.into()),
                Stepped::Prepared | Stepped::Wrote(_) => {}
            }
        }
    }

    /// Does the next thing that the journal wants. With `durable`, a write is durable at once where
    /// the files can do that; without, it goes to the page cache and is durable after a sync.
    ///
    /// # Errors
    /// When a write or a sync failed: the journal has failed.
    pub fn step(&mut self, durable: bool) -> io::Result<Stepped> {
        let result = self.try_step(durable);
        if result.is_err() {
            self.journal.fail();
        }
        result
    }

    /// Writes the next batch to the page cache, if that is what comes next: nothing that waits for
    /// a device.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_cached(&mut self) -> io::Result<Option<Batch>> {
        if !self.journal.is_write_next() {
            return Ok(None);
        }
        match self.step(false)? {
            Stepped::Wrote(batch) => Ok(Some(batch)),
            _ => Ok(None),
        }
    }

    fn try_step(&mut self, durable: bool) -> io::Result<Stepped> {
        match self.journal.next_step() {
            Next::Idle | Next::Wait => return Ok(Stepped::Idle),
            Next::Sync(_) => self.try_sync()?,
            Next::Begin(header) => match self.begin(&header) {
                Err(error) if is_full(&error) => {
                    self.journal.not_begun();
                    return Ok(Stepped::NoRoom);
                }
                result => result?,
            },
            Next::Write(batch) => {
                let name = segment_name(batch.segment);
                // What was written to the page cache is only durable by a sync.
                let durable = durable && self.journal.sync_target().is_none();
                let through = match durable {
                    true => self.files.write_through(&name, batch.offset, &batch.parts)?,
                    false => {
                        self.files.write(&name, batch.offset, &batch.parts)?;
                        false
                    }
                };
                self.journal.written(batch.id);
                if through {
                    self.journal.synced(batch.end);
                }
                return Ok(Stepped::Wrote(batch));
            }
        }
        Ok(Stepped::Prepared)
    }

    fn try_sync(&mut self) -> io::Result<()> {
        let Some(target) = self.journal.sync_target() else { return Ok(()) };
        let last = self.journal.segments.back().map(|(header, _)| header.number);
        if let Some(number) = last {
            self.files.sync(&segment_name(number))?;
            self.journal.synced(target);
        }
        Ok(())
    }

    /// Makes everything durable that was pushed: a flush.
    ///
    /// # Errors
    /// When a write or a sync failed: the journal has failed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.pump()?;
        let result = self.try_sync();
        if result.is_err() {
            self.journal.fail();
        }
        result
    }

    /// Makes everything durable that is written.
    ///
    /// # Errors
    /// When the sync failed: the journal has failed.
    pub fn sync(&mut self) -> io::Result<()> {
        let result = self.try_sync();
        if result.is_err() {
            self.journal.fail();
        }
        result
    }

    /// Begins to make everything durable that is written, if something is not. It ends, perhaps on
    /// another thread, with [`Syncing::wait`]; meanwhile anything may be appended.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn begin_sync(&mut self) -> io::Result<Option<Syncing>> {
        let Some(target) = self.journal.sync_target() else { return Ok(None) };
        let Some((header, _)) = self.journal.segments.back() else { return Ok(None) };
        match self.files.sync_apart(&segment_name(header.number)) {
            Ok(rest) => Ok(Some(Syncing { target, rest })),
            Err(error) => {
                self.journal.fail();
                Err(error)
            }
        }
    }

    /// What [`Self::begin_sync`] began has ended.
    ///
    /// # Errors
    /// The one that it is given: the journal has failed.
    pub fn end_sync(&mut self, sync: &Syncing, result: io::Result<()>) -> io::Result<()> {
        match &result {
            Ok(()) => self.journal.synced(sync.target),
            Err(_) => self.journal.fail(),
        }
        result
    }

    /// Marks the journal as given up, durably: the next opening begins with an empty one, whatever
    /// is left of this one.
    ///
    /// # Errors
    /// When it is not known to have worked.
    pub fn give_up(&mut self) -> io::Result<()> {
        self.journal.fail();
        self.files.rename(CURSORS, GIVEN_UP)?;
        self.files.sync_dir()
    }

    /// Begins with an empty journal, which follows. Nothing of this one counts any more.
    ///
    /// # Errors
    /// When the files cannot be removed: the journal has failed.
    pub fn clear(&mut self) -> io::Result<()> {
        let leads = self.journal.leads();
        let cleared = self.give_up().and_then(|()| remove_all(&mut self.files));
        cleared.and_then(|()| make_cursors(&mut self.files))?;
        let settings = *self.journal.settings();
        let cursors =
            Cursors { switches: self.journal.switches(), ..Cursors::new(settings.resource) };
        let time = self.journal.time();
        let found = Found::nothing();
        self.journal =
            Journal::new(settings, &found, cursors, leads, self.journal.generation(), time);
        self.spares.clear();
        self.store_cursors()
    }

    /// A file that waits to be a segment was made beforehand, under this number's name.
    ///
    /// # Errors
    /// When it is one too many, and cannot be removed.
    pub fn spare_made(&mut self, number: u64) -> io::Result<()> {
        if self.spares.len() < self.max_spares {
            self.spares.push(number);
            Ok(())
        } else {
            self.files.remove(&spare_name(number))
        }
    }

    /// The ranges that each loser of a plan does not get.
    ///
    /// # Errors
    /// When the records cannot be read: then these peers need everything.
    pub fn cut_ranges(&self, plan: &CutPlan) -> Result<BTreeMap<NodeId, RangeSet>, LogError> {
        let segments = self.journal.durable_segments();
        Ok(cut_ranges(&Segments(&self.files), &segments, plan)?)
    }

    /// Makes a segment of a spare, or of a new file. Header and file are durable before the name
    /// is, so a segment always has a header.
    fn begin(&mut self, header: &SegmentHeader) -> io::Result<()> {
        let spare = match self.spares.pop() {
            Some(spare) => spare,
            None => {
                self.make_spare(header.number, header.capacity)?;
                header.number
            }
        };
        let (from, to) = (spare_name(spare), segment_name(header.number));
        if let Err(error) = self.files.create(&from, header.capacity) {
            // It was of another length, and cannot be used. That it stays changes nothing.
            let _ = self.files.remove(&from);
            return Err(error);
        }
        self.files.write(&from, 0, &[Bytes::copy_from_slice(&header.encode())])?;
        self.files.sync(&from)?;
        self.files.rename(&from, &to)?;
        self.files.sync_dir()?;
        self.journal.begun(header.number);
        Ok(())
    }

    fn make_spare(&mut self, number: u64, len: u64) -> io::Result<()> {
        let name = spare_name(number);
        let made = self.files.create(&name, len).and_then(|()| self.files.sync(&name));
        if made.is_err() {
            // A part of one takes room and is of no use. That it cannot be removed changes nothing.
            let _ = self.files.remove(&name);
        }
        made
    }

    /// Makes a spare file ready if there is none, so that the next segment begins without delay.
    ///
    /// # Errors
    /// When it cannot be made; the journal goes on without.
    pub fn prepare_spare(&mut self) -> io::Result<()> {
        if self.spares.is_empty() && self.max_spares > 0 {
            let next = self.journal.durable_segments().last().map_or(1, |(h, _)| h.number + 1);
            self.make_spare(next, self.journal.settings().segment_bytes)?;
            self.spares.push(next);
        }
        Ok(())
    }

    /// How many files wait to be segments.
    #[must_use]
    pub fn spares(&self) -> usize {
        self.spares.len()
    }

    /// Writes the cursors, durably.
    ///
    /// # Errors
    /// When that did not work: they stay what they were.
    pub fn store_cursors(&mut self) -> io::Result<()> {
        let (copy, block) = self.journal.advance_cursors();
        let offset = u64::from(copy) * BLOCK_LEN as u64;
        let through =
            self.files.write_through(CURSORS, offset, &[Bytes::copy_from_slice(&block)])?;
        if through { Ok(()) } else { self.files.sync(CURSORS) }
    }

    /// Makes spares of segments that nobody needs, or takes them away; how many.
    ///
    /// # Errors
    /// When that did not work; the segment stays.
    pub fn recycle(&mut self) -> io::Result<usize> {
        let mut count = 0;
        while let Some(number) = self.journal.recyclable() {
            if count == 0 {
                // So that nobody looks for what is gone.
                self.store_cursors()?;
            }
            let name = segment_name(number);
            if self.spares.len() < self.max_spares {
                self.files.rename(&name, &spare_name(number))?;
                self.spares.push(number);
            } else {
                self.files.remove(&name)?;
            }
            self.journal.recycled(number);
            // The name must be gone before the file has other content.
            self.files.sync_dir()?;
            count += 1;
        }
        Ok(count)
    }

    /// Cuts what is over the budget, after `note` has made the ranges durable that each peer
    /// does not get; then recycles. `None` when nothing is to be cut.
    ///
    /// # Errors
    /// When the records cannot be read, or `note` fails: nothing was cut.
    pub fn cut(
        &mut self,
        note: impl FnOnce(&BTreeMap<NodeId, RangeSet>) -> io::Result<()>,
    ) -> Result<Option<CutPlan>, LogError> {
        let Some(plan) = self.journal.plan_cut() else { return Ok(None) };
        note(&self.cut_ranges(&plan)?)?;
        self.journal.cut(&plan);
        self.recycle()?;
        Ok(Some(plan))
    }

    /// Goes through the durable records from `from` on.
    ///
    /// # Errors
    /// [`RecordsError::Gone`] when they are not kept any more.
    pub fn records(&self, from: LogPosition) -> Result<Vec<(LogPosition, Op)>, LogError> {
        let reader = Segments(&self.files);
        let mut records = self.journal.records(&reader, from)?;
        let mut all = Vec::new();
        while let Some(found) = records.next()? {
            all.push((found.position, op_of(&records, &found)?));
        }
        Ok(all)
    }

    /// The durable records from `from` on up to `to` (exclusively), about `max` bytes of payload at
    /// most and at least one record; and the position that a cursor has behind them.
    ///
    /// # Errors
    /// As [`Self::records`].
    pub fn records_between(
        &self,
        from: LogPosition,
        to: LogPosition,
        max: u64,
    ) -> Result<(Vec<(LogPosition, Op)>, LogPosition), LogError> {
        let reader = Segments(&self.files);
        let mut records = self.journal.records(&reader, from)?;
        let (mut all, mut end, mut bytes) = (Vec::new(), from, 0);
        while bytes < max {
            let Some(found) = records.next()?.filter(|found| found.position < to) else { break };
            bytes += found.record.range.len.max(1);
            end = found.next;
            all.push((found.position, op_of(&records, &found)?));
        }
        Ok((all, end))
    }

    /// The durable records from `from` on, in order: as many as have `max_bytes` of payload, at
    /// least one and at most 1024.
    ///
    /// # Errors
    /// [`RecordsError::Gone`] when they are not kept any more.
    pub fn records_from(&self, from: LogPosition, max_bytes: u64) -> Result<Vec<Logged>, LogError> {
        const MOST: usize = 1024;
        let reader = Segments(&self.files);
        let mut records = self.journal.records(&reader, from)?;
        let (mut all, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes && all.len() < MOST {
            let Some(found) = records.next()? else { break };
            let op = op_of(&records, &found)?;
            bytes += op.payload().len() as u64;
            all.push(Logged { position: found.position, next: found.next, op });
        }
        Ok(all)
    }

    /// What the durable records from `from` to `to` (exclusively) change.
    ///
    /// # Errors
    /// [`RecordsError::Gone`] when they are not kept any more.
    pub fn changed_between(
        &self,
        from: LogPosition,
        to: LogPosition,
    ) -> Result<RangeSet, LogError> {
        let reader = Segments(&self.files);
        let mut records = self.journal.records(&reader, from)?;
        let mut changed = RangeSet::new();
        while let Some(found) = records.next()? {
            if found.position >= to {
                break;
            }
            changed.insert(found.record.range);
        }
        Ok(changed)
    }

    /// Makes everything durable that was pushed, and begins a new segment if the last one has
    /// records; its number, and where it begins.
    ///
    /// # Errors
    /// When a write or a sync failed: the journal has failed.
    pub fn begin_segment(&mut self) -> io::Result<(u64, LogPosition)> {
        self.flush()?;
        self.journal.rotate_now();
        self.pump()?;
        let last = self.journal.durable_segments().pop();
        let begun = last.map(|(header, _)| (header.number, header.base));
        begun.ok_or_else(|| io::Error::other("no segment was begun"))
    }

    /// The position to replay to (exclusively) for the state of a time, from `from` on.
    ///
    /// # Errors
    /// [`LogError`] when the records cannot be read.
    pub fn position_after(
        &self,
        from: LogPosition,
        time: HybridTime,
    ) -> Result<LogPosition, LogError> {
        let reader = Segments(&self.files);
        Ok(self.journal.records(&reader, from)?.position_after(time)?)
    }

    /// Bytes of a segment's frames for a peer, from a position on: durable ones only.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn fetch(&self, number: u64, from: LogPosition, max: usize) -> io::Result<Bytes> {
        let segments = self.journal.durable_segments();
        let segment = segments.iter().find(|(header, _)| header.number == number);
        let Some((header, len)) = segment else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such segment"));
        };
        let end = header.base.after(*len);
        let want = usize::try_from(end.since(from)).unwrap_or(usize::MAX).min(max);
        let mut bytes = BytesMut::zeroed(want);
        let offset = holdfast_format::journal::SEGMENT_HEADER_LEN + from.since(header.base);
        let got = self.files.read(&segment_name(number), offset, &mut bytes)?;
        bytes.truncate(got);
        Ok(bytes.freeze())
    }

    /// Takes a segment of another node, and bytes of its frames; how many bytes were taken.
    ///
    /// # Errors
    /// When they do not continue what is here, or cannot be written.
    pub fn copy(&mut self, header: &SegmentHeader, bytes: &Bytes) -> Result<usize, CopyFailed> {
        let last = self.journal.durable_segments().last().map(|(header, _)| header.number);
        if last != Some(header.number) {
            self.flush()?;
            let header = self.journal.copy_segment(*header)?;
            if last.is_none() {
                // What lies before it is not missing.
                self.store_cursors()?;
            }
            self.begin(&header)?;
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let (batch, taken) = self.journal.copy_frames(bytes)?;
        let name = segment_name(batch.segment);
        let all_durable = self.journal.sync_target().is_none();
        let written = match all_durable {
            true => self.files.write_through(&name, batch.offset, &batch.parts),
            false => self.files.write(&name, batch.offset, &batch.parts).map(|()| false),
        };
        if written.is_err() {
            self.journal.fail();
        }
        let through = written?;
        self.journal.written(batch.id);
        if through {
            self.journal.synced(batch.end);
        }
        Ok(taken)
    }

    /// Reads a range: from the journal where that is newer, else from the disk.
    ///
    /// # Errors
    /// When either cannot be read.
    pub fn read(&self, range: ByteRange, disk: &mut dyn Backing) -> Result<Bytes, LogError> {
        let mut all = BytesMut::new();
        for part in self.journal.lookup(range) {
            match part.source {
                PartSource::Disk => all.extend_from_slice(&disk.read(part.range)?),
                PartSource::Zeroes => all.resize(all.len() + len_of(part.range)?, 0),
                PartSource::Journal { place, skip } => {
                    let piece = RunPiece { range: part.range, place, skip };
                    all.extend_from_slice(&self.piece(&piece)?);
                }
            }
        }
        Ok(all.freeze())
    }

    /// The data of a piece of a run, or of a part of a read; verified.
    ///
    /// # Errors
    /// When they cannot be read, or are damaged.
    pub fn piece(&self, piece: &RunPiece) -> Result<Bytes, LogError> {
        let payload = piece.place.read(&Segments(&self.files))?;
        let skip = usize::try_from(piece.skip).map_err(io::Error::other)?;
        Ok(payload.slice(skip..skip + len_of(piece.range)?))
    }

    /// Writes back what is durable, in one round; whether there was something. With `flush`, the
    /// disk is flushed behind it, so that the journal does not need it any more.
    ///
    /// # Errors
    /// When the disk or the journal failed; it stays to be written back.
    pub fn write_back(
        &mut self,
        disk: &mut dyn Backing,
        limits: WriteBackLimits,
        flush: bool,
    ) -> Result<bool, LogError> {
        let planned = self.journal.write_back(limits);
        if let Some(plan) = &planned {
            let result = self.write_runs(disk, &plan.runs);
            self.journal.written_back(plan.id, result.is_ok());
            result?;
        }
        if flush {
            let token = self.journal.disk_flush_token();
            disk.flush()?;
            self.journal.disk_flushed(token);
        }
        Ok(planned.is_some())
    }

    fn write_runs(&self, disk: &mut dyn Backing, runs: &[crate::Run]) -> Result<(), LogError> {
        for run in runs {
            match run.kind {
                RunKind::Data => {
                    let mut data = BytesMut::with_capacity(len_of(run.range)?);
                    for piece in &run.pieces {
                        data.extend_from_slice(&self.piece(piece)?);
                    }
                    disk.write(run.range.offset, &data)?;
                }
                RunKind::Zeroes => disk.zeroes(run.range, false)?,
                RunKind::Discard => disk.zeroes(run.range, true)?,
            }
        }
        Ok(())
    }
}

/// The disk under a journal.
pub trait Backing {
    /// Reads a range.
    ///
    /// # Errors
    /// When not all of it could be read.
    fn read(&mut self, range: ByteRange) -> io::Result<Bytes>;

    /// Writes.
    ///
    /// # Errors
    /// When not all of it could be written.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Writes zeroes, with `discard` giving the space back.
    ///
    /// # Errors
    /// When not all of it could be written.
    fn zeroes(&mut self, range: ByteRange, discard: bool) -> io::Result<()>;

    /// Makes durable all that was written.
    ///
    /// # Errors
    /// When that is not known to have worked.
    fn flush(&mut self) -> io::Result<()>;
}

fn op_of<R: ReadSegments>(
    records: &Records<'_, R>,
    found: &crate::RecordAt,
) -> Result<Op, RecordsError> {
    Ok(Op::read_back(found.record, records.payload(found)?))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn len_of(range: ByteRange) -> io::Result<usize> {
    usize::try_from(range.len).map_err(io::Error::other)
}

fn make_cursors<F: Files>(files: &mut F) -> io::Result<()> {
    files.create(CURSORS, CURSORS_BYTES)?;
    files.sync(CURSORS)?;
    files.sync_dir()
}

/// Takes away all files of a journal that was given up; the mark at the very end.
fn remove_all<F: Files>(files: &mut F) -> io::Result<()> {
    let names = files.list()?;
    let ours = |name: &&String| {
        number_of(name, "segment-").or_else(|| number_of(name, "spare-")).is_some()
            || *name == CURSORS
    };
    for name in names.iter().filter(ours) {
        files.remove(name)?;
    }
    files.sync_dir()?;
    files.remove(GIVEN_UP)?;
    files.sync_dir()
}

/// The newest cursors. A file of them that was never written to stands for an empty journal.
fn cursors_of(copies: &[Block; 2], resource: ResourceId) -> Result<Cursors, BlockError> {
    if let Some(cursors) = Cursors::newest([&copies[0], &copies[1]], resource) {
        return Ok(cursors);
    }
    let why = |copy: u8| Cursors::decode(&copies[usize::from(copy)], resource, copy).err();
    let whys: Vec<BlockError> = [why(0), why(1)].into_iter().flatten().collect();
    if let Some(foreign) = whys.iter().find(|why| matches!(why, BlockError::Resource { .. })) {
        return Err(*foreign);
    }
    // They are written in turn: with one that was never written, the other one was written once at
    // most, and that may have been torn.
    match whys.iter().find(|why| **why != BlockError::Blank) {
        Some(why) if !whys.contains(&BlockError::Blank) => Err(*why),
        _ => Ok(Cursors::new(resource)),
    }
}

impl<F: Files + ?Sized> Files for Box<F> {
    fn list(&self) -> io::Result<Vec<String>> {
        (**self).list()
    }

    fn create(&mut self, name: &str, len: u64) -> io::Result<()> {
        (**self).create(name, len)
    }

    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        (**self).write(name, offset, parts)
    }

    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        (**self).write_through(name, offset, parts)
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        (**self).read(name, offset, buf)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        (**self).sync(name)
    }

    fn sync_apart(&mut self, name: &str) -> io::Result<Option<SyncApart>> {
        (**self).sync_apart(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        (**self).rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        (**self).remove(name)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        (**self).sync_dir()
    }
}

fn read_cursors<F: Files>(files: &F) -> io::Result<[Block; 2]> {
    let mut copies = [[0; BLOCK_LEN]; 2];
    for (index, copy) in (0..).zip(&mut copies) {
        // What cannot be read is a copy that does not count.
        if files.read(CURSORS, index * BLOCK_LEN as u64, copy).unwrap_or(0) < BLOCK_LEN {
            copy.fill(0);
        }
    }
    Ok(copies)
}
