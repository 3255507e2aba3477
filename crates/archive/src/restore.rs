//! Building the state of a moment.

use crate::error::ArchiveError;
use crate::index::PART_CHUNKS;
use crate::manifest::{Base, Line, Segment};
use crate::piece::CHUNK;
use crate::reader::{Archive, ArchivedSegments};
use crate::store::Store;
use bytes::Bytes;
use holdfast_format::journal::{RecordKind, SEGMENT_HEADER_LEN, SegmentHeader};
use holdfast_journal::driver::Backing;
use holdfast_journal::{Records, RecordsError};
use holdfast_units::{ByteRange, HybridTime, LogPosition};
use serde::{Deserialize, Serialize};
use std::io;

/// So much is zeroed at a time.
const ZEROES: u64 = 1 << 30;

/// After so many bytes a restore can be taken up again.
const CHECKPOINT_BYTES: u64 = 256 << 20;

/// Which state is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// The newest one that is archived.
    Latest,
    /// With everything that was written until then, inclusively: milliseconds since 1970.
    Time(u64),
    /// With all records before this position.
    Position(LogPosition),
}

/// The moments of a line that can be restored: from the first to the last, all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moments {
    /// The line.
    pub line: u32,
    /// The first position.
    pub from: LogPosition,
    /// When that was.
    pub from_time: HybridTime,
    /// The last position.
    pub to: LogPosition,
    /// Until when what was written is archived.
    pub to_time: HybridTime,
}

/// How a state is built: the same for the same archive and moment, until something is given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The line.
    pub line: u32,
    /// The position: the state has all records before it, and none from there on.
    pub position: LogPosition,
    /// The time of the base image that is used.
    pub base_time: HybridTime,
    /// The first record that is replayed.
    pub base_from: LogPosition,
    /// The size of the state, in bytes.
    pub size: u64,
    /// The bytes of objects of the base image.
    pub base_bytes: u64,
    /// The bytes of the journal that are replayed.
    pub log_bytes: u64,
    line_index: usize,
    base_index: usize,
}

/// How far a restore is, durably: it can go on from there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// So many parts of the base image are written.
    pub parts: u64,
    /// All records before this are written, if the base image is.
    pub position: u64,
}

/// What a restore tells while it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// So many bytes of the plan's `base_bytes` and `log_bytes` are done.
    Done(u64),
    /// This much is durable.
    Checkpoint(Checkpoint),
}

impl<S: Store> Archive<S> {
    /// What can be restored, oldest line first.
    #[must_use]
    pub fn moments(&self) -> Vec<Moments> {
        self.manifest.lines.iter().filter_map(moments_of).collect()
    }

    /// How the state of a moment is built; `line` says of which line a position is, when more than
    /// one has it.
    ///
    /// # Errors
    /// [`ArchiveError::Moment`] when it cannot be restored; it says what can be. Or objects of the
    /// journal that are needed to find it cannot be read.
    pub fn plan(&self, moment: Moment, line: Option<u32>) -> Result<Plan, ArchiveError> {
        let lines: Vec<(usize, Moments)> = self
            .manifest
            .lines
            .iter()
            .enumerate()
            .filter_map(|(index, line)| Some((index, moments_of(line)?)))
            .filter(|(_, moments)| line.is_none_or(|wanted| wanted == moments.line))
            .collect();
        let Some((newest, newest_moments)) = lines.last().copied() else {
            let what = line.map_or_else(String::new, |line| format!(" in line {line}"));
            return Err(self.no(&format!("no base image is finished{what} yet")));
        };
        let (index, position) = match moment {
            Moment::Latest => (newest, newest_moments.to),
            Moment::Position(position) => {
                let has = |(_, m): &&(usize, Moments)| (m.from..=m.to).contains(&position);
                let mut found = lines.iter().filter(has);
                match (found.next(), found.next()) {
                    (Some((index, _)), None) => (*index, position),
                    (None, _) => {
                        return Err(self.no(&format!("position {position} is not in it")));
                    }
                    (Some((_, a)), Some((_, b))) => {
                        let why = format!(
                            "position {position} is in more than one line ({} and {}), say which",
                            a.line, b.line
                        );
                        return Err(self.no(&why));
                    }
                }
            }
            Moment::Time(millis) => self.find_time(&lines, millis)?,
        };
        self.plan_position(index, position)
    }

    fn no(&self, why: &str) -> ArchiveError {
        ArchiveError::Moment {
            why: format!("resource {} cannot be restored to that moment: {why}", self.name),
        }
    }

    fn find_time(
        &self,
        lines: &[(usize, Moments)],
        millis: u64,
    ) -> Result<(usize, LogPosition), ArchiveError> {
        // All that was written in that millisecond belongs to it.
        let time = HybridTime(HybridTime::from_unix_millis(millis).0 | 0xffff);
        let found = lines.iter().rev().find(|(_, moments)| moments.from_time <= time);
        let Some((index, moments)) = found else {
            return Err(self.no("it is older than the oldest one that is archived"));
        };
        if time.unix_millis() > moments.to_time.unix_millis() {
            let newest = lines.last().is_some_and(|(_, last)| last.line == moments.line);
            return Err(self.no(if newest {
                "what was written until then is not archived yet"
            } else {
                "what was written then was not archived, or belongs to no base image"
            }));
        }
        let line = &self.manifest.lines[*index];
        let position = self.position_after(line, time)?.unwrap_or(moments.to);
        if position < moments.from {
            return Err(self.no("it is older than the oldest one that is archived"));
        }
        Ok((*index, position))
    }

    /// The position of the first record that is later; `None` when there is none.
    fn position_after(
        &self,
        line: &Line,
        time: HybridTime,
    ) -> Result<Option<LogPosition>, ArchiveError> {
        for segment in &line.segments {
            let mut before = None;
            for (from, object) in segment.objects() {
                if object.time > time.0 {
                    let header = self.header(line, segment)?;
                    let bytes = self.log_object(line, segment, from, object)?;
                    let skip = if from == 0 { SEGMENT_HEADER_LEN } else { 0 };
                    let frames = bytes.slice(usize::try_from(skip).unwrap_or(usize::MAX)..);
                    let context = Self::context(&header, before);
                    let row = crate::frames::Frames::new(&frames, context, HybridTime(0));
                    let found = row.position_after(time).map_err(|why| {
                        let name = segment.object_name(&self.name, line.number, from, object);
                        ArchiveError::Damaged { name, why: why.to_string() }
                    })?;
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                before = Some(object);
            }
        }
        Ok(None)
    }

    fn plan_position(
        &self,
        line_index: usize,
        position: LogPosition,
    ) -> Result<Plan, ArchiveError> {
        let line = &self.manifest.lines[line_index];
        let usable = line.bases.iter().rposition(|base| base.ready <= position.0);
        let Some(base_index) = usable else {
            return Err(self.no("it is older than the oldest one that is archived"));
        };
        let base = &line.bases[base_index];
        let known = line.sizes.iter().rfind(|size| size.position <= position.0);
        Ok(Plan {
            line: line.number,
            position,
            base_time: HybridTime(base.time),
            base_from: LogPosition(base.from),
            size: base.bytes.max(known.map_or(0, |size| size.bytes)),
            base_bytes: base.stored,
            log_bytes: position.since(LogPosition(base.from)),
            line_index,
            base_index,
        })
    }

    /// Builds the state that a plan says. With `blank`, the target reads as zeroes all over, and
    /// zeroes are not written. With `from`, an earlier one is taken up that had come so far, with
    /// the same plan and target. The target is flushed at the end.
    ///
    /// # Errors
    /// [`ArchiveError`] that names the object which is missing or damaged, or says that the target
    /// could not be written; what is in the target then is no state.
    pub fn restore(
        &self,
        plan: &Plan,
        target: &mut dyn Backing,
        blank: bool,
        from: Checkpoint,
        tell: &mut dyn FnMut(Progress) -> io::Result<()>,
    ) -> Result<(), ArchiveError> {
        let line = &self.manifest.lines[plan.line_index];
        let base = &line.bases[plan.base_index];
        let mut run = Run { target, tell, checkpoint: from, done: 0, since: 0 };
        self.restore_base(base, blank, &mut run)?;
        if !blank && run.checkpoint.position <= base.from {
            // What the image does not have was added later, and was zeroes then.
            let mut at = base.bytes;
            while at < plan.size {
                let range = ByteRange::new(at, ZEROES.min(plan.size - at));
                run.zeroes(range)?;
                at = range.end();
            }
        }
        let start = LogPosition(base.from.max(run.checkpoint.position));
        run.done = base.stored + start.since(LogPosition(base.from));
        let reader = ArchivedSegments::new(self, line);
        for segment in &line.segments {
            if segment.end() > start && segment.base < plan.position.0 {
                self.replay(&reader, segment, start, plan, &mut run)?;
            }
        }
        run.target.flush().map_err(ArchiveError::Target)
    }

    /// The segment of the journal that the position of a plan lies in or at the end of, one with
    /// records if there is one; `None` when there is none: nothing was written since the base image.
    ///
    /// # Errors
    /// When the archive does not have it whole.
    pub fn segment_of(&self, plan: &Plan) -> Result<Option<SegmentHeader>, ArchiveError> {
        let line = &self.manifest.lines[plan.line_index];
        let at = plan.position.0;
        let holds = |one: &&Segment| one.base <= at && at <= one.end().0;
        let with_records = line.segments.iter().rfind(|one| one.frames() > 0 && holds(one));
        let found = with_records.or_else(|| line.segments.iter().rfind(holds));
        found.map(|segment| self.header(line, segment)).transpose()
    }

    fn restore_base(
        &self,
        base: &Base,
        blank: bool,
        run: &mut Run<'_>,
    ) -> Result<(), ArchiveError> {
        for part in run.checkpoint.parts..base.parts.len() as u64 {
            let index = self.index(base, part)?;
            let index = self.check_count(base, index)?;
            for (within, entry) in index.entries.iter().enumerate() {
                let at = (part * PART_CHUNKS + within as u64) * CHUNK;
                let whole = ByteRange::new(at, CHUNK.min(base.bytes - at));
                let Some(entry) = entry else {
                    if !blank {
                        run.zeroes(whole)?;
                    }
                    continue;
                };
                let piece = self.piece(part, within, entry)?;
                for (range, data) in piece.parts(base.bytes) {
                    match data {
                        Some(data) => run.write(range.offset, &data)?,
                        None if blank => {}
                        None => run.zeroes(range)?,
                    }
                }
                run.progress(entry.bytes)?;
            }
            run.checkpoint.parts = part + 1;
            run.keep()?;
        }
        Ok(())
    }

    fn replay(
        &self,
        reader: &ArchivedSegments<'_, S>,
        segment: &Segment,
        start: LogPosition,
        plan: &Plan,
        run: &mut Run<'_>,
    ) -> Result<(), ArchiveError> {
        let line = &self.manifest.lines[plan.line_index];
        let header = self.header(line, segment)?;
        let from = start.max(header.base);
        let failed = |why: RecordsError| {
            reader.take_error().unwrap_or_else(|| {
                let at = match &why {
                    RecordsError::Damaged { position, .. } => *position,
                    _ => from,
                };
                ArchiveError::damaged(&reader.name_at(at), why.to_string())
            })
        };
        let segments = vec![(header, segment.frames())];
        let mut records = Records::new(reader, segments, from).map_err(failed)?;
        let mut at = from;
        while let Some(found) = records.next().map_err(failed)? {
            if found.position >= plan.position {
                break;
            }
            let range = found.record.range;
            match found.record.kind {
                RecordKind::Write => {
                    let data: Bytes = records.payload(&found).map_err(failed)?;
                    run.write(range.offset, &data)?;
                }
                RecordKind::Zeroes | RecordKind::Discard => run.zeroes(range)?,
                RecordKind::Flush => {}
            }
            run.progress(found.next.since(at))?;
            at = found.next;
            run.checkpoint.position = at.0;
            if run.since >= CHECKPOINT_BYTES {
                run.keep()?;
            }
        }
        Ok(())
    }
}

fn moments_of(line: &Line) -> Option<Moments> {
    let first = line.bases.first()?;
    let to = line.end().map_or(first.ready, |end| end.0.max(first.ready));
    let from_time = HybridTime(first.time);
    Some(Moments {
        line: line.number,
        from: LogPosition(first.ready),
        from_time,
        to: LogPosition(to),
        to_time: line.complete_until().max(from_time),
    })
}

struct Run<'a> {
    target: &'a mut dyn Backing,
    tell: &'a mut dyn FnMut(Progress) -> io::Result<()>,
    checkpoint: Checkpoint,
    done: u64,
    /// Bytes since the last checkpoint.
    since: u64,
}

impl Run<'_> {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), ArchiveError> {
        self.since += data.len() as u64;
        self.target.write(offset, data).map_err(ArchiveError::Target)
    }

    fn zeroes(&mut self, range: ByteRange) -> Result<(), ArchiveError> {
        self.target.zeroes(range, true).map_err(ArchiveError::Target)
    }

    fn progress(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.done += bytes;
        (self.tell)(Progress::Done(self.done)).map_err(ArchiveError::Target)
    }

    fn keep(&mut self) -> Result<(), ArchiveError> {
        self.since = 0;
        self.target.flush().map_err(ArchiveError::Target)?;
        (self.tell)(Progress::Checkpoint(self.checkpoint)).map_err(ArchiveError::Target)
    }
}
