//! The journal of a resource: everything that was written to it, in order.
//!
//! The logic is sans-IO: [`Journal`] says what is to be written and synced, is told when that is
//! done, and knows then what is completed, durable, not yet written back, and still needed by
//! whom. It has no clock, file, thread or random source. [`driver`] is a small blocking driver of
//! it over a directory of preallocated files. Bytes, orders and promises: `docs/design/journal.md`.
//!
//! ```text
//! push(op)    -> Ticket                queued
//! next_step() -> Write(batch)          many queued ops become one frame, one write
//!                Begin(segment)        first make this file, durably
//!                Sync(position)        first sync
//! written(batch), begun(segment), synced(position)
//! written_ticket(), durable_ticket()   what may be answered, and which flushes
//! ```

#![deny(clippy::cast_possible_truncation)]

mod chain;
mod compress;
pub mod driver;
mod index;
mod journal;
mod op;
mod ranges;
mod records;
mod recover;
mod retention;
mod salvage;
mod scan;
pub mod ship;

pub use chain::{Relation, compare};
pub use compress::{CompressError, compress, decompress};
pub use index::{Part, PartSource, Place, Run, RunKind, RunPiece, WriteBack, WriteBackLimits};
pub use journal::{Batch, BatchId, CopyError, Journal, JournalStatus, Next, Settings};
pub use op::{Op, OpError, PushError, Ticket};
pub use ranges::RangeSet;
pub use records::{RecordAt, Records, RecordsError};
pub use recover::{Backlog, Damage, Found, Reading, RecoverError, Tail, recover};
pub use retention::{CutPlan, cut_ranges};
pub use salvage::{Held, Learned, Salvage};
pub use scan::ReadSegments;
