//! Backing devices: the disk under one resource, and the memory that its data travels in.
//!
//! A [`Disk`] is driven by one thread and knows no async runtime. [`Disk::submit`] takes an
//! operation and either completes it at once or later; [`Disk::kick`] hands what was submitted to
//! the kernel; [`Disk::event_fd`] becomes readable when [`Disk::completions`] has something.
//!
//! ```text
//!            submit / kick            completions / event_fd
//!                 |                            ^
//!        +--------v----------------------------+---------+
//!        | Disk: bounds, alignment, flush merging, poison |
//!        +----+----------+----------+---------+----------+
//!             |          |          |         |
//!          inline      uring     blocking   memory   external   (fault wraps any of them)
//! ```
//!
//! What is guaranteed, whatever the engine:
//!
//! - A completed `Flush` (or write with `fua`) means that the backing device has declared durable
//!   every write that had completed before it was submitted (or that write).
//! - After a flush has failed, the disk is poisoned: no later operation succeeds as if nothing had
//!   happened, and no flush that was under way then is reported as done.
//! - Operations in flight at the same time are not ordered. Whoever needs an order waits.
//! - Nothing grows without limit, and bad requests get an error, never a panic.

mod buffer;
mod disk;
mod engine;
mod error;
mod file;
mod integrity;
mod mapped;
mod op;
mod open;
mod probe;
mod remap;
mod replace;
mod wake;

pub use buffer::{AlignedBuf, BUFFER_ALIGN, BufferPool};
pub use disk::{BackingKind, Bell, Disk, DiskInfo, EngineKind, Lent};
pub use engine::external::{ExternalDisk, Ticket};
pub use engine::fault::{FaultHandle, FaultHits, FaultOp, FaultOutcome, FaultRule, FaultRuleError};
pub use engine::memory::MemoryStore;
pub use engine::spots::BadSector;
pub use error::{DiskError, DiskErrorKind, OpenError, OpenErrorKind};
pub use integrity::{
    ChecksumError, ChecksumFile, ChecksumHandle, ChecksumMode, ChecksumStats, remove_checksums,
};
pub use op::{Completion, DiskOp, MAX_TRANSFER, OpId, OpKind, Outcome};
pub use open::{DirectMode, EngineChoice, OpenOptions, create_file};
pub use probe::missing_uring_operations;
pub use remap::{
    BadListError, DiskIdentity, LoadedSpare, PartialRead, RemapChange, RemapEntry, RemapFate,
    RemapOp, RemapReport, RemapStats, RemapWatch, SpareAt, SpareError, SpareErrorKind, SpareFill,
    SpareFormat, SpareInfo, TableWrites, check_spare_place, format_spare, is_leftover, load_spare,
    read_bad_list, read_spare_header, retire_spare,
};
pub use replace::{MAX_LEFT_OVER, ReplaceHandle, ReplaceState, ReplaceStatus, RetiredDisk};
