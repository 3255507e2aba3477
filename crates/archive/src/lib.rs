//! The archive of a resource: base images and the journal, in a directory or another store, from
//! which the state of any archived moment is built again.
//!
//! ```text
//! Writer<S>   follow(source)      copies what is durable in the journal
//!             base_step(source)   copies the disk, piece by piece, while it is written to
//!             expire(keep, now)   gives up what nobody wants to go back to
//! Archive<S>  plan(moment)        which base, which records
//!             restore(plan, to)   builds it, verifies every checksum
//!             verify()            reads everything
//! ```
//!
//! Where things lie, in which order they become durable, and what an interruption leaves:
//! `docs/design/archive.md`.

#![deny(clippy::cast_possible_truncation)]

mod digest;
mod error;
mod frames;
mod index;
mod manifest;
mod names;
mod piece;
mod reader;
mod restore;
mod retention;
mod rewind;
mod source;
mod store;
mod target;
mod verify;
mod writer;

pub use digest::Digest;
pub use error::ArchiveError;
pub use index::{IndexEntry, IndexPart, PART_CHUNKS};
pub use manifest::{Base, Line, LogObject, Manifest, Pending, Segment, SizeAt};
pub use piece::{CHUNK, Piece};
pub use reader::Archive;
pub use restore::{Checkpoint, Moment, Moments, Plan, Progress};
pub use retention::Keep;
pub use rewind::{JournalCopy, Rewind, RewindError};
pub use source::{Source, SourceError};
#[cfg(feature = "s3")]
pub use store::BucketStore;
pub use store::{BUCKET_SCHEME, DirectoryStore, Store, Version, open_store};
pub use target::FileTarget;
pub use verify::{Fault, Verified};
pub use writer::{BaseProgress, Followed, Writer};
