//! Going through the records of a journal, in order.

use crate::compress::{CompressError, decompress};
use crate::index::{Place, place_of};
use crate::scan::{ReadSegments, Scanner, Stop};
use bytes::Bytes;
use holdfast_format::ReadFailed;
use holdfast_format::journal::{FrameError, FrameHeader, Record, SegmentHeader};
use holdfast_units::{HybridTime, LogPosition};
use std::collections::VecDeque;

/// Why a record cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordsError {
    /// It is not kept any more.
    #[error("position {from} is not in the journal any more, which begins at {first}")]
    Gone {
        /// What was asked for.
        from: LogPosition,
        /// Where the journal begins.
        first: LogPosition,
    },
    /// It could not be read.
    #[error("segment {segment} of the journal could not be read: {}", .why.0)]
    Read {
        /// Which segment.
        segment: u64,
        /// Why.
        why: ReadFailed,
    },
    /// It is damaged.
    #[error("the journal is damaged in segment {segment} at position {position}: {why}")]
    Damaged {
        /// Which segment.
        segment: u64,
        /// Where.
        position: LogPosition,
        /// What is wrong.
        why: FrameError,
    },
    /// Its payload cannot be unpacked.
    #[error("the payload of a record of the journal cannot be used: {0}")]
    Payload(#[from] CompressError),
}

/// A record and where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordAt {
    /// Its position.
    pub position: LogPosition,
    /// The position of the next record: where a cursor stands that is behind this one.
    pub next: LogPosition,
    /// All before this position was durable when its frame was made: whoever carries records out
    /// elsewhere makes that durable before this one.
    pub barrier: LogPosition,
    /// The record.
    pub record: Record,
    /// Its payload, if it has one.
    pub place: Option<Place>,
}

/// Goes through records, one after the other; every frame is verified before its records are told.
pub struct Records<'a, R> {
    reader: &'a R,
    segments: VecDeque<(SegmentHeader, u64)>,
    scanner: Option<(Scanner<'a, R>, LogPosition)>,
    frame: VecDeque<RecordAt>,
    from: LogPosition,
}

impl<'a, R: ReadSegments> Records<'a, R> {
    /// The records of these segments from `from` on; the lengths say how far.
    ///
    /// # Errors
    /// [`RecordsError::Gone`] when `from` lies before the first one.
    pub fn new(
        reader: &'a R,
        segments: Vec<(SegmentHeader, u64)>,
        from: LogPosition,
    ) -> Result<Self, RecordsError> {
        let first = segments.first().map_or(from, |(header, _)| header.base);
        if from < first {
            return Err(RecordsError::Gone { from, first });
        }
        let ends_behind = |(header, len): &(SegmentHeader, u64)| header.base.after(*len) > from;
        let segments = segments.into_iter().filter(ends_behind).collect();
        Ok(Self { reader, segments, scanner: None, frame: VecDeque::new(), from })
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// [`RecordsError`]; it stays there.
    #[expect(clippy::should_implement_trait, reason = "an iterator could not say that it failed")]
    pub fn next(&mut self) -> Result<Option<RecordAt>, RecordsError> {
        loop {
            while let Some(found) = self.frame.pop_front() {
                if found.position >= self.from {
                    return Ok(Some(found));
                }
            }
            if !self.load()? {
                return Ok(None);
            }
        }
    }

    /// Loads the next frame; whether there was one.
    fn load(&mut self) -> Result<bool, RecordsError> {
        loop {
            let Some((scanner, end)) = &mut self.scanner else {
                let Some((header, len)) = self.segments.pop_front() else { return Ok(false) };
                let mut scanner = Scanner::new(self.reader, header);
                // A position within a frame is less than the alignment behind its beginning.
                let alignment = u64::from(header.alignment);
                let within = self.from.since(header.base) / alignment * alignment;
                if within > 0 {
                    scanner.trust(header.base.after(within));
                }
                self.scanner = Some((scanner, header.base.after(len)));
                continue;
            };
            if scanner.position() >= *end {
                self.scanner = None;
                continue;
            }
            let segment = *scanner.segment();
            let (frame, offset) = scanner.next(true).map_err(|stop| match stop {
                Stop::Read(why) => RecordsError::Read { segment: segment.number, why },
                Stop::Frame(why) => RecordsError::Damaged {
                    segment: segment.number,
                    position: scanner.position(),
                    why,
                },
            })?;
            self.frame = records_of(&frame, &segment, offset);
            return Ok(true);
        }
    }

    /// The payload of a record as it was submitted, verified; empty when it has none.
    ///
    /// # Errors
    /// [`RecordsError`].
    pub fn payload(&self, found: &RecordAt) -> Result<Bytes, RecordsError> {
        found.place.map_or(Ok(Bytes::new()), |place| place.read(self.reader))
    }

    /// Goes on to the first record that is later than `time`; its position, or that of the end.
    /// Whoever replays everything before it has the state of that time.
    ///
    /// # Errors
    /// [`RecordsError`].
    pub fn position_after(mut self, time: HybridTime) -> Result<LogPosition, RecordsError> {
        // Times only go up: the answer is not before the last segment that was begun by then.
        let end = self.segments.back().map_or(self.from, |(header, len)| header.base.after(*len));
        while self.segments.get(1).is_some_and(|(header, _)| header.time <= time) {
            self.segments.pop_front();
        }
        while let Some(found) = self.next()? {
            if found.record.time > time {
                return Ok(found.position);
            }
        }
        Ok(end)
    }
}

pub(crate) fn records_of(
    frame: &FrameHeader,
    segment: &SegmentHeader,
    offset: u64,
) -> VecDeque<RecordAt> {
    let last = frame.records.len() as u64 - 1;
    let records = frame.records.iter().zip(frame.payloads(segment.alignment));
    (0..)
        .zip(records)
        .map(|(index, (record, payload))| RecordAt {
            position: frame.position.after(index),
            barrier: frame.durable,
            next: if index == last { frame.end() } else { frame.position.after(index + 1) },
            record: *record,
            place: place_of(record, segment.number, offset + u64::from(payload.start)),
        })
        .collect()
}

impl Place {
    /// Reads the payload as it was submitted, and verifies it.
    ///
    /// # Errors
    /// [`RecordsError::Read`], or [`RecordsError::Payload`] when it is damaged.
    pub fn read<R: ReadSegments>(&self, reader: &R) -> Result<Bytes, RecordsError> {
        let damaged = RecordsError::Payload(CompressError::Damaged);
        let len = usize::try_from(self.stored_len).map_err(|_| damaged.clone())?;
        let mut stored = vec![0; len];
        let got = reader
            .read_segment(self.segment, self.offset, &mut stored)
            .map_err(|why| RecordsError::Read { segment: self.segment, why })?;
        if got != len || crc32c::crc32c(&stored) != self.stored_crc {
            return Err(damaged);
        }
        let plain_len = usize::try_from(self.plain_len).map_err(|_| damaged.clone())?;
        let plain = decompress(self.compression, &Bytes::from(stored), plain_len)?;
        if crc32c::crc32c(&plain) == self.crc { Ok(plain) } else { Err(damaged) }
    }
}
