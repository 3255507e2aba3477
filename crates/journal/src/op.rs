//! What is appended.

use crate::compress::compress;
use bytes::Bytes;
use holdfast_format::MAX_DEVICE_SIZE;
use holdfast_format::journal::{Compression, Record, RecordKind};
use holdfast_units::{ByteRange, HybridTime, MAX_REQUEST};

/// The number of an op: they count up by one, in the order in which they were pushed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Ticket(pub u64);

/// Why an op cannot be made: it is not whole blocks, or too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the range {0:?} cannot be recorded in the journal: it must be whole blocks, not empty, and not too long"
)]
pub struct OpError(pub ByteRange);

/// Why an op was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PushError {
    /// Too much is queued: batches must be written first.
    #[error("the queue of the journal is full")]
    Queue,
    /// Too much waits to be written back.
    #[error("the journal holds too much that is not written back")]
    WriteBack,
    /// A write or a sync failed.
    #[error("the journal has failed")]
    Failed,
    /// It does not fit into a segment.
    #[error("the write is longer than a segment of the journal")]
    TooLong,
    /// This node follows the journal of another one.
    #[error("this node follows the journal of another node")]
    Following,
}

/// Something to append: a record and its payload as it will be stored.
#[derive(Clone, Debug)]
pub struct Op {
    pub(crate) record: Record,
    pub(crate) stored: Bytes,
}

impl Op {
    /// A write of `payload` at `offset`. Its checksum is computed here, once.
    ///
    /// # Errors
    /// [`OpError`] when it is not whole blocks, or longer than a request.
    pub fn write(
        offset: u64,
        payload: Bytes,
        time: HybridTime,
        fua: bool,
    ) -> Result<Self, OpError> {
        Self::write_packed(offset, payload, time, fua, Compression::None)
    }

    /// As [`Self::write`], stored compressed if that makes it shorter.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_packed(
        offset: u64,
        payload: Bytes,
        time: HybridTime,
        fua: bool,
        compression: Compression,
    ) -> Result<Self, OpError> {
        let range = check(ByteRange::new(offset, payload.len() as u64))?;
        if range.len > MAX_REQUEST {
            return Err(OpError(range));
        }
        let crc = crc32c::crc32c(&payload);
        let (compression, stored, stored_crc) = match compress(compression, &payload) {
            Some(packed) => {
                let stored_crc = crc32c::crc32c(&packed);
                (compression, packed, stored_crc)
            }
            None => (Compression::None, payload, crc),
        };
        let stored_len = u32::try_from(stored.len()).map_err(|_| OpError(range))?;
        let bare = Record::without_payload(RecordKind::Write, range, time);
        let record = Record { fua, compression, stored_len, crc, stored_crc, ..bare };
        Ok(Self { record, stored })
    }

    /// Zeroes that keep the space, or with `discard` give it back. Both read as zeroes then.
    ///
    /// # Errors
    /// [`OpError`] when it is not whole blocks.
    pub fn zeroes(
        range: ByteRange,
        time: HybridTime,
        discard: bool,
        fua: bool,
    ) -> Result<Self, OpError> {
        let kind = if discard { RecordKind::Discard } else { RecordKind::Zeroes };
        let record = Record { fua, ..Record::without_payload(kind, check(range)?, time) };
        Ok(Self { record, stored: Bytes::new() })
    }

    /// The mark of a client's flush: all before it was durable for somebody.
    #[must_use]
    pub fn flush(time: HybridTime) -> Self {
        let record = Record::without_payload(RecordKind::Flush, ByteRange::default(), time);
        Self { record, stored: Bytes::new() }
    }

    /// An op that was read back, with its payload as it was submitted.
    pub(crate) const fn read_back(record: Record, payload: Bytes) -> Self {
        Self { record, stored: payload }
    }

    /// Whether its payload is stored compressed.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.record.compression != Compression::None
    }

    /// What it changes; empty for a flush.
    #[must_use]
    pub const fn range(&self) -> ByteRange {
        self.record.range
    }

    /// What it does.
    #[must_use]
    pub const fn kind(&self) -> RecordKind {
        self.record.kind
    }

    /// When it was submitted.
    #[must_use]
    pub const fn time(&self) -> HybridTime {
        self.record.time
    }

    /// The payload: as it is stored, or, of an op that was read back, as it was submitted.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.stored
    }
}

fn check(range: ByteRange) -> Result<ByteRange, OpError> {
    let good = !range.is_empty() && range.is_aligned() && range.end() <= MAX_DEVICE_SIZE;
    if good { Ok(range) } else { Err(OpError(range)) }
}
