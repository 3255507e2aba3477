//! Reading frames of a segment, one after the other.

use holdfast_format::ReadFailed;
use holdfast_format::journal::{
    FrameContext, FrameError, FrameHeader, MAX_FRAME_HEADER_LEN, SEGMENT_HEADER_LEN, SegmentHeader,
};
use holdfast_units::LogPosition;

/// How much is read at a time, in bytes.
const CHUNK: u64 = 1 << 20;

/// Whoever can read the files of segments.
pub trait ReadSegments {
    /// Reads the bytes of a segment's file from `offset` on; how many there were, less than asked
    /// for only at the end of the file.
    ///
    /// # Errors
    /// [`ReadFailed`] when there is no such segment or it cannot be read.
    fn read_segment(&self, number: u64, offset: u64, buf: &mut [u8]) -> Result<usize, ReadFailed>;
}

/// Why there is no next frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    Frame(FrameError),
    Read(ReadFailed),
}

/// Goes through the frames of one segment.
pub(crate) struct Scanner<'a, R> {
    reader: &'a R,
    header: SegmentHeader,
    context: FrameContext,
    chunk: Vec<u8>,
    /// Where the chunk is in the file.
    chunk_at: u64,
    /// The next frame may be of any epoch.
    any_epoch: bool,
}

impl<'a, R: ReadSegments> Scanner<'a, R> {
    /// From the segment's first frame on.
    pub(crate) const fn new(reader: &'a R, header: SegmentHeader) -> Self {
        let context = FrameContext {
            position: header.base,
            segment: header.number,
            epoch: header.epoch,
            alignment: header.alignment,
        };
        Self { reader, header, context, chunk: Vec::new(), chunk_at: 0, any_epoch: false }
    }

    /// The position of the next frame.
    pub(crate) const fn position(&self) -> LogPosition {
        self.context.position
    }

    /// The epoch that the next frame must be of or continue.
    pub(crate) const fn epoch(&self) -> u64 {
        self.context.epoch
    }

    pub(crate) const fn segment(&self) -> &SegmentHeader {
        &self.header
    }

    /// Goes to the frame at a position that is known to be one's beginning, and to be durable: so
    /// its epoch is the right one.
    pub(crate) const fn trust(&mut self, position: LogPosition) {
        self.context.position = position;
        self.any_epoch = true;
    }

    /// Where a position is in the file.
    pub(crate) const fn offset_of(&self, position: LogPosition) -> u64 {
        SEGMENT_HEADER_LEN + position.since(self.header.base)
    }

    /// The bytes from `offset` on, up to `len`; fewer at the end of the file.
    pub(crate) fn bytes(&mut self, offset: u64, len: u64) -> Result<&[u8], ReadFailed> {
        let end = self.chunk_at + self.chunk.len() as u64;
        if offset < self.chunk_at || offset + len > end {
            let want = len.max(CHUNK).min(self.header.capacity.saturating_sub(offset));
            let want = usize::try_from(want).map_err(|_| ReadFailed("it is too long".into()))?;
            self.chunk.resize(want, 0);
            let got = self.reader.read_segment(self.header.number, offset, &mut self.chunk);
            self.chunk.truncate(got.as_ref().map_or(0, |got| *got));
            self.chunk_at = offset;
            got?;
        }
        let from = usize::try_from(offset - self.chunk_at).unwrap_or(usize::MAX);
        let rest = self.chunk.get(from..).unwrap_or_default();
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
        Ok(&rest[..len])
    }

    /// The header of the next frame and where it is in the file, if it belongs there. Stays.
    pub(crate) fn peek(&mut self) -> Result<(FrameHeader, u64), Stop> {
        let context = self.context;
        let offset = self.offset_of(context.position);
        let head = self.bytes(offset, MAX_FRAME_HEADER_LEN as u64).map_err(Stop::Read)?;
        let header = FrameHeader::decode(head, context.alignment).map_err(Stop::Frame)?;
        let epoch = if self.any_epoch { header.epoch } else { context.epoch };
        header.follows(&FrameContext { epoch, ..context }).map_err(Stop::Frame)?;
        Ok((header, offset))
    }

    /// The next frame, if it belongs there and, with `payloads`, all of it is whole; and where it
    /// is in the file. Goes behind it.
    pub(crate) fn next(&mut self, payloads: bool) -> Result<(FrameHeader, u64), Stop> {
        let (header, offset) = self.peek()?;
        if payloads {
            let alignment = self.context.alignment;
            let frame = self.bytes(offset, header.len.into()).map_err(Stop::Read)?;
            if frame.len() as u64 != u64::from(header.len) {
                return Err(Stop::Frame(FrameError::Short));
            }
            header.check_payloads(frame, alignment).map_err(Stop::Frame)?;
        }
        self.context.position = header.end();
        self.context.epoch = header.epoch;
        self.any_epoch = false;
        Ok((header, offset))
    }

    /// Whether anything behind the next position says that it was durable: a frame in its place
    /// that was made when all before `durable_before` or more was durable.
    ///
    /// Frames that an earlier use of the file left, or a crash, do not: when they were made,
    /// nothing was durable from there on.
    pub(crate) fn later_evidence(&mut self) -> Result<Option<LogPosition>, ReadFailed> {
        let torn = self.context.position;
        let step = u64::from(self.context.alignment);
        let mut at = self.offset_of(torn) + step;
        while at < self.header.capacity {
            let alignment = self.context.alignment;
            let head = self.bytes(at, MAX_FRAME_HEADER_LEN as u64)?;
            if head.is_empty() {
                break;
            }
            if let Ok(frame) = FrameHeader::decode(head, alignment) {
                let there = frame.segment == self.header.number
                    && self.offset_of(frame.position) == at
                    && frame.position > torn;
                if there && frame.durable > torn {
                    return Ok(Some(frame.position));
                }
            }
            at += step;
        }
        Ok(None)
    }
}
