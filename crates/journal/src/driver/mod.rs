//! A blocking driver of a journal over a directory of files, or a device.
//!
//! [`Log`] does what [`Journal::next`] wants, one step after the other, on the calling thread.
//! What it needs of the place is [`Files`]; [`Directory`] and [`Device`] are the real ones.

mod around;
mod cursors;
mod device;
mod directory;
mod files;
mod losses;
mod media;
mod offline;
mod place;
mod reading;
mod rescue;
mod write_back;

pub use device::{Device, Media, device_room};
pub use directory::{Directory, DirectoryOptions};
pub use files::{Files, SyncApart};
pub use losses::{Losses, Seen};
pub use media::RawMedia;
pub use offline::Offline;
pub use place::{Place, open_claimed};
pub use reading::Logged;
pub use write_back::Backing;

use cursors::{cursors_of, make_cursors, read_cursors};
use rescue::remove_all;

use crate::RangeSet;
use crate::journal::{Batch, CopyError, Journal, Next, Settings};
use crate::op::{Op, PushError, Ticket};
use crate::records::RecordsError;
use crate::recover::Reading::{LastSegment, NotWrittenBack};
use crate::recover::{Backlog, Found, RecoverError, recover};
use crate::retention::CutPlan;
use crate::scan::ReadSegments;
use bytes::Bytes;
use holdfast_format::journal::{Cursors, SegmentHeader, Switches};
use holdfast_format::{BLOCK_LEN, Block, BlockError, ReadFailed};
use holdfast_units::{GenerationId, HybridTime, LogPosition, NodeId};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

/// The name of the file of cursors.
pub const CURSORS: &str = "cursors";
/// What the file of cursors is renamed to when the journal is given up: nothing of it counts.
pub const GIVEN_UP: &str = "given-up";
/// Says that the journal had failed and what it held was on its way to the disk, where the cursors
/// could not say so: what is appended next does not continue it.
pub const RESCUED: &str = "rescued";
/// What the name of a file begins with that is still being made, to become a spare.
pub const MAKING: &str = "making-";

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
    given_up: bool,
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
        for name in names.iter().filter(|name| name.starts_with(MAKING)) {
            // Whoever makes it does not know that it is of no use any more.
            files.remove(name)?;
        }
        let spares = names.iter().filter_map(|n| number_of(n, "spare-")).collect();
        let has_cursors = names.iter().any(|name| name == CURSORS);
        let mut cursors = match has_cursors {
            true => cursors_of(&read_cursors(&files)?, resource).map_err(LogError::Cursors)?,
            false => Cursors::new(resource),
        };
        let rescued = names.iter().any(|name| name == RESCUED);
        cursors.switches.bypassed |= rescued;
        let Open { settings, leads, generation, time, cut, .. } = *open;
        let reader = Segments(&files);
        let mut backlog = Backlog::new(&cursors);
        let found = if leads {
            let mut add = |segment: &_, frame: &_, at| backlog.add(segment, frame, at);
            recover(&reader, resource, &numbers, &cursors, NotWrittenBack, cut, &mut add)
        } else {
            recover(&reader, resource, &numbers, &cursors, LastSegment, cut, &mut |_, _, _| {})
        }?;
        let mut journal = Journal::new(settings, &found, cursors, leads, generation, time);
        journal.restore(backlog);
        if !has_cursors {
            make_cursors(&mut files)?;
        }
        let mut log = Self { journal, files, spares, max_spares: open.spares, given_up: false };
        log.settle(&found)?;
        if rescued {
            log.store_cursors()?;
            log.files.remove(RESCUED)?;
            log.files.sync_dir()?;
        }
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

    /// The next batch, for a caller that writes it around the page cache ([`Files::direct_file`]) and
    /// says so with [`Self::wrote_through`]. Nothing while another step comes first, or something
    /// is written that only a sync makes durable. Until all of them have been written, nothing may
    /// be written otherwise.
    pub fn next_through(&mut self) -> Option<Batch> {
        if self.journal.sync_target().is_some() || !self.journal.is_write_next() {
            return None;
        }
        match self.journal.next_step() {
            Next::Write(batch) => Some(batch),
            _ => None,
        }
    }

    /// A batch is durable in its place, and so are all before it.
    pub fn wrote_through(&mut self, batch: &Batch) {
        self.journal.written(batch.id);
        self.journal.synced(batch.end);
    }

    /// The file of the last segment, as [`Files::direct_file`], with its number and length.
    ///
    /// # Errors
    /// As [`Files::direct_file`].
    pub fn last_direct(&self) -> io::Result<Option<(u64, u64, File, u64)>> {
        let Some((header, _)) = self.journal.segments.back() else { return Ok(None) };
        let found = self.files.direct_file(&segment_name(header.number))?;
        Ok(found.map(|(file, begin)| (header.number, header.capacity, file, begin)))
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

    /// Begins with an empty journal, which follows. Nothing of this one counts any more.
    ///
    /// # Errors
    /// When the files cannot be removed: the journal has failed.
    pub fn clear(&mut self) -> io::Result<()> {
        let leads = self.journal.leads();
        let cleared = self.give_up().and_then(|()| remove_all(&mut self.files));
        cleared.and_then(|()| make_cursors(&mut self.files))?;
        self.given_up = false;
        let settings = *self.journal.settings();
        // What comes from now on is all that is on the disk.
        let switches = Switches { bypassed: false, ..self.journal.switches() };
        let cursors = Cursors { switches, ..Cursors::new(settings.resource) };
        let time = self.journal.time();
        let found = Found::nothing();
        self.journal =
            Journal::new(settings, &found, cursors, leads, self.journal.generation(), time);
        self.spares.clear();
        self.store_cursors()
    }

    /// A file that can wait to be a segment was made beforehand, under a name that begins with
    /// [`MAKING`]: it gets this number's name. Until then it was nobody's.
    ///
    /// # Errors
    /// When it cannot be renamed; or is one too many, and cannot be removed.
    pub fn spare_made(&mut self, made: &str, number: u64) -> io::Result<()> {
        if self.spares.len() < self.max_spares && !self.spares.contains(&number) {
            self.files.rename(made, &spare_name(number))?;
            self.spares.push(number);
            Ok(())
        } else {
            self.files.remove(made)
        }
    }

    /// Makes a segment of a spare, or of a new file. Header and file are durable before the name
    /// is, so a segment always has a header.
    fn begin(&mut self, header: &SegmentHeader) -> io::Result<()> {
        let spare = self.take_spare(header)?;
        let (from, to) = (spare_name(spare), segment_name(header.number));
        self.files.write(&from, 0, &[Bytes::copy_from_slice(&header.encode())])?;
        self.files.sync(&from)?;
        self.files.rename(&from, &to)?;
        self.files.sync_dir()?;
        self.journal.begun(header.number);
        Ok(())
    }

    /// A file that can become the segment: one that waits, or a new one.
    fn take_spare(&mut self, header: &SegmentHeader) -> io::Result<u64> {
        if let Some(spare) = self.spares.pop() {
            let name = spare_name(spare);
            match self.files.create(&name, header.capacity) {
                Ok(()) => return Ok(spare),
                Err(error) => {
                    // It was of another length, and cannot be used. That it stays changes nothing.
                    let _ = self.files.remove(&name);
                    if !is_full(&error) {
                        return Err(error);
                    }
                }
            }
        }
        self.make_spare(header.number, header.capacity)?;
        Ok(header.number)
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
    /// When that did not work: they stay what they were, and the next ones are written to the same
    /// place, for the other copy is the one that is good.
    pub fn store_cursors(&mut self) -> io::Result<()> {
        let (copy, block) = self.journal.advance_cursors();
        let stored = self.write_cursors(copy, &block);
        if stored.is_err() {
            self.journal.cursors_not_stored();
        }
        stored
    }

    fn write_cursors(&mut self, copy: u8, block: &Block) -> io::Result<()> {
        let offset = u64::from(copy) * BLOCK_LEN as u64;
        let block = Bytes::copy_from_slice(block);
        let through = self.files.write_through(CURSORS, offset, &[block])?;
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

    /// Of a journal that follows: takes the last segment away if it has no frame; whether it had
    /// none.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn drop_empty(&mut self) -> io::Result<bool> {
        let Some(number) = self.journal.drop_empty() else { return Ok(false) };
        self.files.remove(&segment_name(number))?;
        self.files.sync_dir()?;
        Ok(true)
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
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
