//! The journal on disk: segments, the frames of records in them, and the cursors.
//!
//! `docs/design/journal.md` draws the bytes and says what a reader may believe.

mod cursors;
mod following;
mod frame;
mod losses;
mod note;
mod segment;
mod small_file;
mod table;
#[cfg(test)]
mod tests;

pub use cursors::{Cursors, PeerCursor, PeerSwitches, Switches};
pub use following::{FollowState, Following};
pub use frame::{
    Compression, FRAME_HEADER_LEN, FrameContext, FrameError, FrameHeader, MAX_FRAME_HEADER_LEN,
    MAX_FRAME_LEN, MAX_FRAME_RECORDS, RECORD_LEN, Record, RecordKind, frame_len,
};
pub use losses::{LossList, MAX_LOSSES};
pub use note::{FollowerNote, MAX_NOTE_LINKS, MAX_NOTE_RANGES};
pub use segment::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentLink, is_alignment};
pub use small_file::NoteError;
pub use table::{DEVICE_DATA_AT, DEVICE_TABLE_LEN, DeviceTable, MAX_DEVICE_FILES, MAX_DEVICE_NAME};

/// No position is written that is so high: a segment more always fits.
pub(crate) const MAX_POSITION: u64 = 1 << 62;
