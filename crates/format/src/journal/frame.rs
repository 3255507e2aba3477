//! Frames: what one write of the journal makes durable for many writers.

use super::MAX_POSITION;
use crate::MAX_DEVICE_SIZE;
use holdfast_units::{ByteRange, HybridTime, LogPosition, MAX_REQUEST};
use std::ops::Range;

/// The bytes of a frame before its table of records.
pub const FRAME_HEADER_LEN: usize = 64;
/// The bytes of a record in the table.
pub const RECORD_LEN: usize = 40;
/// The most records that a frame has.
pub const MAX_FRAME_RECORDS: usize = 64;
/// The longest header, table included. Who has so many bytes of a frame can decode its header.
pub const MAX_FRAME_HEADER_LEN: usize = FRAME_HEADER_LEN + MAX_FRAME_RECORDS * RECORD_LEN;
/// The longest frame, header and padding included.
pub const MAX_FRAME_LEN: u32 = 4 << 20;

const MAGIC: [u8; 4] = *b"HFJF";
const AT_CRC: usize = 4;
const AT_POSITION: usize = 8;
const AT_EPOCH: usize = 16;
const AT_PREVIOUS_EPOCH: usize = 24;
const AT_DURABLE: usize = 32;
const AT_SEGMENT: usize = 40;
const AT_LEN: usize = 48;
const AT_RECORDS: usize = 52;
const AT_FLAGS: usize = 54;
const AT_ZERO: usize = 56;

const RECORD_FUA: u16 = 1;

/// What a record does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RecordKind {
    /// Writes its payload.
    Write = 1,
    /// Writes zeroes and keeps the space.
    Zeroes = 2,
    /// Writes zeroes and gives the space back.
    Discard = 3,
    /// Changes nothing: a client's flush covered all before it.
    Flush = 4,
}

impl RecordKind {
    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Write),
            2 => Some(Self::Zeroes),
            3 => Some(Self::Discard),
            4 => Some(Self::Flush),
            _ => None,
        }
    }
}

/// How a payload is stored.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(u8)]
pub enum Compression {
    /// As it was submitted.
    #[default]
    None = 0,
    /// As a block of LZ4.
    Lz4 = 1,
    /// As a frame of Zstandard.
    Zstd = 2,
}

impl Compression {
    /// One word for it: `none`, `lz4`, `zstd`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// What [`Self::as_str`] calls so.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        [Self::None, Self::Lz4, Self::Zstd].into_iter().find(|one| one.as_str() == word)
    }

    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// One record, without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it changes; empty for a flush.
    pub range: ByteRange,
    /// When it was submitted; never less than that of the record before it.
    pub time: HybridTime,
    /// What it does.
    pub kind: RecordKind,
    /// Whether the client wanted it durable at once.
    pub fua: bool,
    /// How the payload is stored.
    pub compression: Compression,
    /// Bytes of the payload as stored; 0 when there is none.
    pub stored_len: u32,
    /// CRC-32C of the payload as it was submitted; 0 when there is none.
    pub crc: u32,
    /// CRC-32C of the payload as stored; equal to `crc` without compression.
    pub stored_crc: u32,
}

impl Record {
    /// A record without payload.
    #[must_use]
    pub const fn without_payload(kind: RecordKind, range: ByteRange, time: HybridTime) -> Self {
        Self {
            range,
            time,
            kind,
            fua: false,
            compression: Compression::None,
            stored_len: 0,
            crc: 0,
            stored_crc: 0,
        }
    }

    /// Why no writer makes such a record.
    fn fault(&self) -> Option<&'static str> {
        if !self.range.is_aligned() || self.range.end() > MAX_DEVICE_SIZE {
            return Some("a record has an impossible range");
        }
        let empty = self.range.is_empty();
        let bare = self.stored_len == 0
            && self.crc == 0
            && self.stored_crc == 0
            && self.compression == Compression::None;
        let right = match self.kind {
            RecordKind::Flush => empty && self.range.offset == 0 && bare,
            RecordKind::Zeroes | RecordKind::Discard => !empty && bare,
            RecordKind::Write => {
                !empty && self.range.len <= MAX_REQUEST && self.payload_lengths_fit()
            }
        };
        if right {
            None
        } else {
            Some("a record has a payload that does not fit its kind or range")
        }
    }

    fn payload_lengths_fit(&self) -> bool {
        let stored = u64::from(self.stored_len);
        match self.compression {
            Compression::None => stored == self.range.len && self.crc == self.stored_crc,
            Compression::Lz4 | Compression::Zstd => stored > 0 && stored < self.range.len,
        }
    }

    fn encode(&self, to: &mut [u8]) {
        to[..8].copy_from_slice(&self.range.offset.to_le_bytes());
        to[8..16].copy_from_slice(&self.range.len.to_le_bytes());
        to[16..24].copy_from_slice(&self.time.0.to_le_bytes());
        to[24..28].copy_from_slice(&self.stored_len.to_le_bytes());
        to[28..32].copy_from_slice(&self.crc.to_le_bytes());
        to[32..36].copy_from_slice(&self.stored_crc.to_le_bytes());
        to[36] = self.kind as u8;
        to[37] = self.compression as u8;
        let flags = if self.fua { RECORD_FUA } else { 0 };
        to[38..40].copy_from_slice(&flags.to_le_bytes());
    }

    fn decode(from: &[u8]) -> Result<Self, FrameError> {
        let kind = RecordKind::from_number(from[36])
            .ok_or(FrameError::Content("a record is of an unknown kind"))?;
        let compression = Compression::from_number(from[37])
            .ok_or(FrameError::Content("a record has an unknown compression"))?;
        let flags = u16::from_le_bytes(bytes(from, 38));
        if flags & !RECORD_FUA != 0 {
            return Err(FrameError::Content("a record has unknown flags"));
        }
        let record = Self {
            range: ByteRange::new(u64_at(from, 0), u64_at(from, 8)),
            time: HybridTime(u64_at(from, 16)),
            kind,
            fua: flags & RECORD_FUA != 0,
            compression,
            stored_len: u32_at(from, 24),
            crc: u32_at(from, 28),
            stored_crc: u32_at(from, 32),
        };
        record.fault().map_or(Ok(record), |why| Err(FrameError::Content(why)))
    }
}

/// Why bytes are not the frame that was looked for. `Display` completes "there is no frame: ...".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// There are not so many bytes as it should have.
    #[error("the segment ends within it")]
    Short,
    /// The place is empty.
    #[error("nothing was written here")]
    Blank,
    /// It does not begin as a frame.
    #[error("this is not the beginning of a frame")]
    Magic,
    /// The header does not fit its checksum.
    #[error("the checksum of its header is {computed:08x} and should be {stored:08x}")]
    Checksum {
        /// What the header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A payload does not fit its checksum.
    #[error("the payload of its record {index} does not fit its checksum")]
    Payload {
        /// Which record, counted from 0.
        index: usize,
    },
    /// It was written for another place: left from an earlier use of the file.
    #[error("it belongs to position {found}, not to {expected}")]
    Position {
        /// Where it belongs.
        found: LogPosition,
        /// Where it was looked for.
        expected: LogPosition,
    },
    /// It was written for another segment.
    #[error("it belongs to segment {found}, not to {expected}")]
    Segment {
        /// Where it belongs.
        found: u64,
        /// Where it was looked for.
        expected: u64,
    },
    /// It does not continue what stands before it: left from before a crash.
    #[error("it is of epoch {found:016x} and does not continue epoch {expected:016x}")]
    Epoch {
        /// Its epoch.
        found: u64,
        /// That of the frame before it.
        expected: u64,
    },
    /// A field has a value that no version writes.
    #[error("{0}")]
    Content(&'static str),
}

/// Where a frame is, and what stands before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameContext {
    /// Its position.
    pub position: LogPosition,
    /// The segment that it is in.
    pub segment: u64,
    /// The epoch of the frame before it, or of the segment's header.
    pub epoch: u64,
    /// The alignment of the segment: 512 or 4096.
    pub alignment: u32,
}

/// The header of a frame: everything but the payloads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Where it begins.
    pub position: LogPosition,
    /// The epoch of its writer.
    pub epoch: u64,
    /// The epoch before that in the first frame of one; else the same.
    pub previous_epoch: u64,
    /// All before this was durable when it was made.
    pub durable: LogPosition,
    /// The segment that it is in.
    pub segment: u64,
    /// Its length in bytes with payloads and padding: what [`frame_len`] gives.
    pub len: u32,
    /// Its records, 1 to [`MAX_FRAME_RECORDS`].
    pub records: Vec<Record>,
}

/// How long a frame of these records is, in bytes; `None` when they are none, too many, or too
/// long for one frame.
#[must_use]
pub fn frame_len(records: &[Record], alignment: u32) -> Option<u32> {
    if records.is_empty() || records.len() > MAX_FRAME_RECORDS {
        return None;
    }
    let end = Payloads::new(records, alignment).map(|range| range.end).last()?;
    let len = end.checked_next_multiple_of(alignment)?;
    (len <= MAX_FRAME_LEN).then_some(len)
}

impl FrameHeader {
    /// The bytes of the header and its table, without padding.
    #[must_use]
    pub fn header_len(&self) -> usize {
        FRAME_HEADER_LEN + self.records.len() * RECORD_LEN
    }

    /// The bytes of the header and its table, without padding: [`Self::header_len`] of them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; self.header_len()];
        b[..4].copy_from_slice(&MAGIC);
        b[AT_POSITION..][..8].copy_from_slice(&self.position.0.to_le_bytes());
        b[AT_EPOCH..][..8].copy_from_slice(&self.epoch.to_le_bytes());
        b[AT_PREVIOUS_EPOCH..][..8].copy_from_slice(&self.previous_epoch.to_le_bytes());
        b[AT_DURABLE..][..8].copy_from_slice(&self.durable.0.to_le_bytes());
        b[AT_SEGMENT..][..8].copy_from_slice(&self.segment.to_le_bytes());
        b[AT_LEN..][..4].copy_from_slice(&self.len.to_le_bytes());
        let count = u16::try_from(self.records.len()).unwrap_or(u16::MAX);
        b[AT_RECORDS..][..2].copy_from_slice(&count.to_le_bytes());
        for (record, to) in
            self.records.iter().zip(b[FRAME_HEADER_LEN..].chunks_exact_mut(RECORD_LEN))
        {
            record.encode(to);
        }
        let crc = checksum(&b);
        b[AT_CRC..][..4].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads a header from the first bytes of a frame. Of them [`MAX_FRAME_HEADER_LEN`] are always
    /// enough; there may be fewer at the end of a segment.
    ///
    /// Whether the frame belongs here is [`Self::follows`]; whether its payloads are whole,
    /// [`Self::check_payloads`].
    ///
    /// # Errors
    /// [`FrameError`]; never `Position`, `Segment`, `Epoch` or `Payload`.
    pub fn decode(b: &[u8], alignment: u32) -> Result<Self, FrameError> {
        let head = b.get(..FRAME_HEADER_LEN).ok_or(FrameError::Short)?;
        if head[..4] != MAGIC {
            let blank = head.iter().all(|byte| *byte == 0);
            return Err(if blank { FrameError::Blank } else { FrameError::Magic });
        }
        let count = usize::from(u16::from_le_bytes(bytes(head, AT_RECORDS)));
        if count == 0 || count > MAX_FRAME_RECORDS {
            return Err(FrameError::Content("it has an impossible number of records"));
        }
        let header = b.get(..FRAME_HEADER_LEN + count * RECORD_LEN).ok_or(FrameError::Short)?;
        let (stored, computed) = (u32_at(header, AT_CRC), checksum(header));
        if stored != computed {
            return Err(FrameError::Checksum { stored, computed });
        }
        if u64_at(head, AT_ZERO) != 0 || bytes(head, AT_FLAGS) != [0; 2] {
            return Err(FrameError::Content("it uses what this program does not know"));
        }
        let records = header[FRAME_HEADER_LEN..]
            .chunks_exact(RECORD_LEN)
            .map(Record::decode)
            .collect::<Result<Vec<_>, _>>()?;
        let frame = Self {
            position: LogPosition(u64_at(head, AT_POSITION)),
            epoch: u64_at(head, AT_EPOCH),
            previous_epoch: u64_at(head, AT_PREVIOUS_EPOCH),
            durable: LogPosition(u64_at(head, AT_DURABLE)),
            segment: u64_at(head, AT_SEGMENT),
            len: u32_at(head, AT_LEN),
            records,
        };
        frame.fault(alignment).map_or(Ok(frame), |why| Err(FrameError::Content(why)))
    }

    fn fault(&self, alignment: u32) -> Option<&'static str> {
        if frame_len(&self.records, alignment) != Some(self.len) {
            Some("its length is not that of its records")
        } else if !self.position.0.is_multiple_of(512) || self.position.0 >= MAX_POSITION {
            Some("it has an impossible position")
        } else if self.durable > self.position {
            Some("it calls durable what comes after it")
        } else if self.records.windows(2).any(|pair| pair[1].time < pair[0].time) {
            Some("its records are not in the order of their times")
        } else {
            None
        }
    }

    /// Whether it is the frame that belongs behind what stands before it.
    ///
    /// # Errors
    /// `Position`, `Segment` or `Epoch`: it is left from an earlier time.
    pub fn follows(&self, context: &FrameContext) -> Result<(), FrameError> {
        if self.position != context.position {
            return Err(FrameError::Position { found: self.position, expected: context.position });
        }
        if self.segment != context.segment {
            return Err(FrameError::Segment { found: self.segment, expected: context.segment });
        }
        if self.epoch != context.epoch && self.previous_epoch != context.epoch {
            return Err(FrameError::Epoch { found: self.epoch, expected: context.epoch });
        }
        Ok(())
    }

    /// Where the payload of each record lies in the frame, in bytes; empty for a record without.
    pub fn payloads(&self, alignment: u32) -> impl Iterator<Item = Range<u32>> {
        Payloads::new(&self.records, alignment)
    }

    /// Checks the payloads of a whole frame, header included, against their checksums.
    ///
    /// # Errors
    /// `Short` or `Payload`.
    pub fn check_payloads(&self, frame: &[u8], alignment: u32) -> Result<(), FrameError> {
        for (index, (record, range)) in
            self.records.iter().zip(self.payloads(alignment)).enumerate()
        {
            let stored = part(frame, &range).ok_or(FrameError::Short)?;
            if !range.is_empty() && crc32c::crc32c(stored) != record.stored_crc {
                return Err(FrameError::Payload { index });
            }
        }
        Ok(())
    }

    /// The position behind its last record: where the next frame begins.
    #[must_use]
    pub const fn end(&self) -> LogPosition {
        self.position.after(self.len as u64)
    }
}

fn part<'a>(frame: &'a [u8], range: &Range<u32>) -> Option<&'a [u8]> {
    frame.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

/// The places of payloads in a frame. Saturates, so that any records can be laid out.
struct Payloads<'a> {
    records: std::slice::Iter<'a, Record>,
    alignment: u32,
    at: u32,
}

impl<'a> Payloads<'a> {
    fn new(records: &'a [Record], alignment: u32) -> Self {
        let header = FRAME_HEADER_LEN + records.len() * RECORD_LEN;
        Self { records: records.iter(), alignment, at: u32::try_from(header).unwrap_or(u32::MAX) }
    }
}

impl Iterator for Payloads<'_> {
    type Item = Range<u32>;

    fn next(&mut self) -> Option<Range<u32>> {
        let record = self.records.next()?;
        if record.stored_len > 0 && record.compression == Compression::None {
            self.at = self.at.checked_next_multiple_of(self.alignment).unwrap_or(u32::MAX);
        }
        let start = self.at;
        self.at = self.at.saturating_add(record.stored_len);
        Some(start..self.at)
    }
}

fn checksum(header: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[..AT_CRC]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &header[AT_CRC + 4..])
}

fn bytes<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&b[at..at + N]);
    found
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(b, at))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(b, at))
}
