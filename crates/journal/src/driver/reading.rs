//! Records read back: for peers, for who rewinds, and for reads of the disk.

use super::write_back::{Backing, len_of};
use super::{Files, Log, LogError, Segments, segment_name};
use crate::index::{PartSource, RunPiece};
use crate::op::Op;
use crate::records::RecordsError;
use crate::retention::{CutPlan, cut_ranges};
use crate::scan::ReadSegments;
use crate::{RangeSet, Records, Salvage};
use bytes::{Bytes, BytesMut};
use holdfast_units::{ByteRange, HybridTime, LogPosition, NodeId};
use std::collections::BTreeMap;
use std::io;

/// An op that was read back.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Its position.
    pub position: LogPosition,
    /// The position of the next one: where a cursor stands that is behind this one.
    pub next: LogPosition,
    /// All before this position was durable when its frame was made.
    pub barrier: LogPosition,
    /// The op.
    pub op: Op,
}

impl<F: Files> Log<F> {
    /// The ranges that each loser of a plan does not get.
    ///
    /// # Errors
    /// When the records cannot be read: then these peers need everything.
    pub fn cut_ranges(&self, plan: &CutPlan) -> Result<BTreeMap<NodeId, RangeSet>, LogError> {
        let segments = self.journal.durable_segments();
        Ok(cut_ranges(&Segments(&self.files), &segments, plan)?)
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
            let crate::RecordAt { position, next, barrier, .. } = found;
            all.push(Logged { position, next, barrier, op });
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

    /// Goes on with a search for what the disk holds. Whether that was not all.
    pub fn go_on_salvaging(&self, salvage: &mut Salvage) -> bool {
        salvage.step(&Segments(&self.files))
    }

    /// Says that this part of a segment will be read soon, in small pieces.
    pub fn expect(&self, segment: u64, offset: u64, len: u64) {
        self.files.expect(&segment_name(segment), offset, len);
    }
}

fn op_of<R: ReadSegments>(
    records: &Records<'_, R>,
    found: &crate::RecordAt,
) -> Result<Op, RecordsError> {
    Ok(Op::read_back(found.record, records.payload(found)?))
}
