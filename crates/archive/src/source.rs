//! What an archive is made of.

use bytes::Bytes;
use holdfast_format::journal::SegmentHeader;
use holdfast_units::{ByteRange, HybridTime, LogPosition};

/// Why a resource could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// A resource and its journal, on the node that writes to it.
pub trait Source {
    /// The segments, oldest first, with the bytes of their frames that are durable.
    ///
    /// # Errors
    /// When the journal cannot be used.
    fn segments(&mut self) -> Result<Vec<(SegmentHeader, u64)>, SourceError>;

    /// Bytes of a segment's frames from a position on, at most `max`: only what is durable.
    ///
    /// # Errors
    /// When they cannot be read, or are not kept any more.
    fn fetch(&mut self, segment: u64, from: LogPosition, max: usize) -> Result<Bytes, SourceError>;

    /// Makes durable all that was completed; the position behind it. Everything that is completed
    /// later has a later position.
    ///
    /// # Errors
    /// When the journal failed.
    fn flush(&mut self) -> Result<LogPosition, SourceError>;

    /// The newest data of a range of at most [`READ_MAX`] bytes, whole blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self, range: ByteRange) -> Result<Bytes, SourceError>;

    /// The size of the resource, in bytes.
    ///
    /// # Errors
    /// When it is not in use any more.
    fn size(&mut self) -> Result<u64, SourceError>;

    /// What the clock says by which records get their times.
    fn now(&mut self) -> HybridTime;
}

/// No more is read at a time.
pub(crate) const READ_MAX: u64 = 1 << 20;
