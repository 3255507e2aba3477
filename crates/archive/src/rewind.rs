//! A copy of a disk that is the state at another record of its journal.
//!
//! The disk has everything before one position (`has`), and nothing from another one on
//! (`may_have`); what lies between may be on it, in any mixture. A later state is the disk with
//! the records up to there. For an earlier one, what was overwritten since then must be in the
//! journal as it was before: then replaying the journal up to there brings it back.

use crate::restore::Moment;
use bytes::Bytes;
use holdfast_format::journal::{RecordKind, SegmentHeader};
use holdfast_journal::driver::Backing;
use holdfast_journal::{RangeSet, ReadSegments, Records, RecordsError};
use holdfast_units::{BLOCK_SIZE, ByteRange, HybridTime, LogPosition, format_size};
use std::io;

/// What is read of the disk at a time, in bytes.
const STEP: u64 = 1 << 20;

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// The journal does not reach back so far.
    #[error("it is older than the journal, which begins at position {first}")]
    Gone {
        /// Where it begins.
        first: LogPosition,
    },
    /// The journal does not reach so far.
    #[error("it is not in the journal, which ends at position {end}")]
    Ahead {
        /// Where it ends.
        end: LogPosition,
    },
    /// What was overwritten since then is not in the journal any more.
    #[error(
        "{} of the disk were written since then, and what was there before is not in the journal \
         any more",
        format_size(*bytes)
    )]
    Overwritten {
        /// How much.
        bytes: u64,
    },
    /// The journal cannot be read, or is damaged.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The disk cannot be read.
    #[error("the disk could not be read: {0}")]
    Disk(io::Error),
    /// The copy cannot be written.
    #[error("the copy could not be written: {0}")]
    Target(io::Error),
}

/// A disk that nobody writes to, and its journal.
pub struct JournalCopy<'a, R> {
    /// Reads the segments.
    pub reader: &'a R,
    /// The segments, oldest first, with the bytes of their frames; not empty.
    pub segments: Vec<(SegmentHeader, u64)>,
    /// Everything before this is on the disk.
    pub has: LogPosition,
    /// Nothing from here on is on the disk.
    pub may_have: LogPosition,
}

/// How a copy is made.
#[derive(Clone, Debug)]
pub struct Rewind {
    /// The state has all records before this, and none from there on.
    pub position: LogPosition,
    /// The first record that is replayed. When something is to be brought back that is all of the
    /// journal: a record that is left out could be newer than one that is not, and overlap it.
    from: LogPosition,
}

impl Rewind {
    /// The first record that is replayed.
    #[must_use]
    pub const fn from(&self) -> LogPosition {
        self.from
    }

    /// The bytes of the journal that are gone through.
    #[must_use]
    pub const fn log_bytes(&self) -> u64 {
        self.position.since(self.from)
    }
}

impl<R: ReadSegments> JournalCopy<'_, R> {
    fn records(&self, from: LogPosition) -> Result<Records<'_, R>, RecordsError> {
        Records::new(self.reader, self.segments.clone(), from)
    }

    fn begin(&self) -> LogPosition {
        self.segments.first().map_or(self.has, |(header, _)| header.base)
    }

    fn end(&self) -> LogPosition {
        self.segments.last().map_or(self.has, |(header, len)| header.base.after(*len))
    }

    /// Whether, and how, the state of a moment can be made.
    ///
    /// # Errors
    /// [`RewindError`]: why not.
    pub fn plan(&self, moment: Moment) -> Result<Rewind, RewindError> {
        let (first, end) = (self.begin(), self.end());
        let position = match moment {
            Moment::Latest => end,
            Moment::Position(position) => position,
            Moment::Time(millis) => {
                let time = HybridTime(HybridTime::from_unix_millis(millis).0 | 0xffff);
                if self.segments.first().is_some_and(|(header, _)| header.time > time) {
                    return Err(RewindError::Gone { first });
                }
                self.records(first)?.position_after(time)?
            }
        };
        if position < first {
            return Err(RewindError::Gone { first });
        }
        if position > end {
            return Err(RewindError::Ahead { end });
        }
        if position >= self.may_have {
            return Ok(Rewind { position, from: self.has });
        }
        let (mut before, mut missing) = (RangeSet::new(), RangeSet::new());
        let mut records = self.records(first)?;
        while let Some(found) = records.next()?.filter(|found| found.position < self.may_have) {
            let ranges = if found.position < position { &mut before } else { &mut missing };
            if !found.record.range.is_empty() {
                ranges.insert(found.record.range);
            }
        }
        if missing.is_empty() {
            return Ok(Rewind { position, from: self.has });
        }
        before.iter().for_each(|range| missing.remove(range));
        match missing.bytes() {
            0 => Ok(Rewind { position, from: first }),
            bytes => Err(RewindError::Overwritten { bytes }),
        }
    }

    /// Makes the copy; the disk must not have changed since the plan. With `blank`, the target
    /// reads as zeroes all over. `tell` is told the bytes of disk and journal that are done.
    ///
    /// # Errors
    /// [`RewindError`]; what is in the target then is no state.
    pub fn copy(
        &self,
        plan: &Rewind,
        disk: &mut dyn Backing,
        size: u64,
        target: &mut dyn Backing,
        blank: bool,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), RewindError> {
        let mut at = 0;
        while at < size {
            let range = ByteRange::new(at, STEP.min(size - at));
            let data = disk.read(range).map_err(RewindError::Disk)?;
            copy_part(range, &data, target, blank).map_err(RewindError::Target)?;
            at = range.end();
            tell(at);
        }
        let mut records = self.records(plan.from)?;
        while let Some(found) = records.next()?.filter(|found| found.position < plan.position) {
            let range = found.record.range;
            match found.record.kind {
                RecordKind::Write => {
                    let data: Bytes = records.payload(&found)?;
                    target.write(range.offset, &data).map_err(RewindError::Target)?;
                }
                RecordKind::Zeroes | RecordKind::Discard => {
                    target.zeroes(range, true).map_err(RewindError::Target)?;
                }
                RecordKind::Flush => {}
            }
            tell(size + found.next.since(plan.from));
        }
        target.flush().map_err(RewindError::Target)
    }
}

/// Writes what is not zero; zeroes only where something else may be.
fn copy_part(
    range: ByteRange,
    data: &Bytes,
    target: &mut dyn Backing,
    blank: bool,
) -> io::Result<()> {
    if data.iter().any(|byte| *byte != 0) {
        let block = usize::try_from(BLOCK_SIZE).map_err(io::Error::other)?;
        if !blank {
            return target.write(range.offset, data);
        }
        for (at, part) in (range.offset..).step_by(block).zip(data.chunks(block)) {
            if part.iter().any(|byte| *byte != 0) {
                target.write(at, part)?;
            }
        }
        return Ok(());
    }
    if blank { Ok(()) } else { target.zeroes(range, true) }
}
