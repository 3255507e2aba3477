use super::order::Access;
use crate::NbdError;
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::io;

/// What a remote disk is asked to do. Ranges are multiples of the disk's block size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RemoteRequest {
    /// Give back what a range holds; at most [`RemoteRequest::MAX_TRANSFER`] bytes.
    Read {
        /// What to read.
        range: ByteRange,
    },
    /// Store bytes; at most [`RemoteRequest::MAX_TRANSFER`].
    Write {
        /// Where they begin.
        offset: u64,
        /// What to store.
        data: Bytes,
        /// Completed only when it is durable.
        fua: bool,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// What to zero.
        range: ByteRange,
        /// Its space may be given back.
        may_unmap: bool,
        /// Completed only when it is durable.
        fua: bool,
    },
    /// The content of a range is not needed any more; what it reads as is undefined then.
    Trim {
        /// What is not needed.
        range: ByteRange,
    },
    /// Make durable what was completed before.
    Flush,
}

impl RemoteRequest {
    /// The longest read or write, in bytes.
    pub const MAX_TRANSFER: u64 = 32 << 20;

    /// The range that it concerns; empty for a flush.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        match self {
            Self::Read { range } | Self::WriteZeroes { range, .. } | Self::Trim { range } => *range,
            Self::Write { offset, data, .. } => ByteRange::new(*offset, data.len() as u64),
            Self::Flush => ByteRange::new(0, 0),
        }
    }

    pub(super) const fn access(&self) -> Access {
        match self {
            Self::Read { .. } | Self::Flush => Access::Read,
            Self::Write { .. } | Self::WriteZeroes { .. } | Self::Trim { .. } => Access::Write,
        }
    }

    /// Why it cannot be done on a disk like this, if so.
    pub(super) fn fault(&self, size: u64, block: u32, read_only: bool) -> Option<NbdError> {
        let (range, block) = (self.range(), u64::from(block));
        let transfers = matches!(self, Self::Read { .. } | Self::Write { .. });
        let changes = self.access() == Access::Write;
        if changes && read_only {
            Some(NbdError::NotPermitted)
        } else if range.offset > size || range.len > size - range.offset {
            Some(if changes { NbdError::NoSpace } else { NbdError::Invalid })
        } else if !range.offset.is_multiple_of(block)
            || !range.len.is_multiple_of(block)
            || (transfers && range.len > Self::MAX_TRANSFER)
        {
            Some(NbdError::Invalid)
        } else {
            None
        }
    }
}

/// Why a request to a remote disk failed. A change that failed may have been made, in part or not
/// at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RemoteFailure {
    /// The server said so, or it would have.
    #[error("{0}")]
    Server(#[from] NbdError),
    /// The server did not answer within the time that requests have.
    #[error("the server did not answer in time")]
    TimedOut,
    /// All pending requests were aborted by order.
    #[error("it was aborted")]
    Aborted,
    /// The disk was closed.
    #[error("the disk was closed")]
    Closed,
    /// Too many requests are under way; this one was not begun.
    #[error("too many requests are under way")]
    Busy,
}

impl From<RemoteFailure> for io::Error {
    fn from(failure: RemoteFailure) -> Self {
        let kind = match failure {
            RemoteFailure::Server(error) => return error.into(),
            RemoteFailure::TimedOut => io::ErrorKind::TimedOut,
            RemoteFailure::Busy => io::ErrorKind::ResourceBusy,
            RemoteFailure::Aborted => io::ErrorKind::ConnectionAborted,
            RemoteFailure::Closed => io::ErrorKind::NotConnected,
        };
        Self::new(kind, failure)
    }
}

/// What came of a request: the data of a read, nothing for all others.
pub type RemoteOutcome = Result<Bytes, RemoteFailure>;
