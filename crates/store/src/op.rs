use bytes::Bytes;
use holdfast_units::{ByteRange, LogPosition};

use crate::DiskError;

/// The longest read or write in one operation, in bytes. Discard and write-zeroes have no limit
/// but the size of the disk.
pub const MAX_TRANSFER: u64 = 32 << 20;

/// The caller's name for an operation. The disk only hands it back, so it need not be unique. Numbers
/// from 2^63 on are the disk's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u64);

/// What a disk is asked to do. Ranges are multiples of [`crate::DiskInfo::block_size`].
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Read at most [`MAX_TRANSFER`] bytes.
    Read {
        /// What to read.
        range: ByteRange,
        /// Answer [`Outcome::Zeroes`] without reading when all of the range is a hole.
        holes: bool,
    },
    /// Write at most [`MAX_TRANSFER`] bytes.
    Write {
        /// Where to write.
        range: ByteRange,
        /// Exactly `range.len` bytes. Best from a [`crate::BufferPool`]: other memory may have to
        /// be copied first.
        data: Bytes,
        /// Complete only when this write is durable.
        fua: bool,
    },
    /// Make durable what was written by operations that have completed.
    Flush,
    /// The content is not needed any more. It is undefined afterwards, though it does not change
    /// from read to read; where [`crate::DiskInfo::discard_zeroes`] says so it reads as zeros.
    Discard {
        /// What is not needed.
        range: ByteRange,
    },
    /// Make the range read as zeros.
    WriteZeroes {
        /// What to zero.
        range: ByteRange,
        /// The space may be given back. Without it, the space stays allocated.
        unmap: bool,
        /// Complete only when the zeros are durable.
        fua: bool,
    },
}

impl DiskOp {
    /// Which kind of operation it is.
    #[must_use]
    pub const fn kind(&self) -> OpKind {
        match self {
            Self::Read { .. } => OpKind::Read,
            Self::Write { .. } => OpKind::Write,
            Self::Flush => OpKind::Flush,
            Self::Discard { .. } => OpKind::Discard,
            Self::WriteZeroes { .. } => OpKind::WriteZeroes,
        }
    }

    /// The range that it concerns; empty for a flush.
    #[must_use]
    pub const fn range(&self) -> ByteRange {
        match self {
            Self::Read { range, .. }
            | Self::Write { range, .. }
            | Self::Discard { range }
            | Self::WriteZeroes { range, .. } => *range,
            Self::Flush => ByteRange::new(0, 0),
        }
    }
}

/// The kinds of operations, for errors, rules and statistics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OpKind {
    /// [`DiskOp::Read`]
    Read,
    /// [`DiskOp::Write`]
    Write,
    /// [`DiskOp::Flush`]
    Flush,
    /// [`DiskOp::Discard`]
    Discard,
    /// [`DiskOp::WriteZeroes`]
    WriteZeroes,
}

impl OpKind {
    /// One word for it: `read`, `write`, `flush`, `discard`, `zeroes`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "zeroes",
        }
    }
}

impl std::fmt::Display for OpKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What came of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was done; there is nothing to hand back.
    Done,
    /// What a read found: exactly as many bytes as were asked for.
    Data(Bytes),
    /// A read with `holes` found only a hole: the range reads as zeros and holds no data.
    Zeroes,
    /// A write was done, and is a record of a journal before the disk, at this position. Only a disk
    /// that has one says so.
    Logged(LogPosition),
}

/// The end of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Which one, in the caller's words.
    pub op: OpId,
    /// What came of it.
    pub result: Result<Outcome, DiskError>,
}
