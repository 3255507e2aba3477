//! The thread that owns resources: core, disk, NBD connections and peer links of a resource live
//! on one thread, and everything between them is a plain call.
//!
//! ```text
//!   control plane (other threads)          shard thread (one tokio LocalRuntime)
//!   ─────────────────────────────          ────────────────────────────────────────────
//!   ResourceHandle ── commands ──────────▶ resource task ─┐
//!                  ── links (TLS streams) ▶               │     ┌── NBD connections
//!                  ◀─ view, notices, wanted peers         ▼     ▼
//!   Shard ── listeners ──────────────────▶           ┌── Resource ──┐
//!                                                    │  core, disk, │◀── peer links
//!   metadata thread ◀── MetaWrite ────────           │  frontend    │◀── disk completions
//!                   ─── MetaDone ────────▶           └──────────────┘◀── timer
//! ```
//!
//! Whoever has an event calls [`resource`]'s `feed`, which runs the core and carries out its
//! actions until none is left; operations that end at once are fed back as events by the same
//! loop. Messages and replies go into the queue of their connection, whose task sends what has
//! come together. `docs/design/shard.md` has the why.

mod catch_up;
mod disk;
mod export;
mod frontend;
mod handle;
mod healing;
mod heap;
mod histogram;
mod jobs;
mod link;
mod lost_list;
mod meta_io;
mod meta_move;
mod metadata;
mod open;
mod outbox;
mod past;
mod registry;
mod resource;
mod socket;
mod stages;
mod thread;
mod view;
mod vitals;

#[cfg(test)]
mod tests;

pub use handle::{CloseError, RenameRefused, ResourceHandle};
pub(crate) use healing::is_of_blocks;
pub use link::{LinkOrigin, LinkStream};
pub(crate) use lost_list::{read_lost, write_lost};
pub(crate) use meta_move::{check_room, keep_metadata, move_metadata};
pub use metadata::{
    CreateMetadata, DiskSpec, InitialContent, MetaPlace, MetadataError, NewSpares, boot_id,
    create_metadata,
};
pub(crate) use metadata::{meta_name, region_for, zero};
pub use open::OpenError;
pub(crate) use open::{NewPlace, Successor, open_backing, open_successor};
pub use past::{PastHandle, PastSpec};
pub use socket::LinkSocket;
pub use stages::{Spread, Spreads, StageOp, StageTimes};
pub use thread::{Shard, ShardOptions, TcpAccess};
pub use view::{DiskFailure, DiskView, ResourceView};
pub use vitals::{ErrorKind, ErrorSeen, Times, VitalsReport};

pub use crate::spares::{SpareSpec, SparesError, SparesView};

pub use crate::journaled::{
    JournalCallError, JournalError, JournalHandle, JournalSpec, JournalView, LostRanges,
    Mode as JournalMode,
};
use holdfast_core as core;

/// What a resource is opened with.
#[derive(Clone, Debug)]
pub struct ResourceSpec {
    /// Its name: the name of its NBD export.
    pub name: String,
    /// What the replication core is made of. `boot` is best [`boot_id`], `seed` random.
    pub config: core::Config,
    /// The local disk; `None` for a diskless member.
    pub disk: Option<DiskSpec>,
    /// The journal before the disk, if it has one.
    pub journal: Option<JournalSpec>,
    /// How much may be under way for clients.
    pub limits: Limits,
}

/// How much of a resource's requests may be under way at a time. What is above waits, and the
/// connections that it came from are not read beyond limits of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of reads and writes. One request is let in whatever its size.
    pub in_flight_bytes: u64,
    /// Requests of clients.
    pub in_flight_requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_flight_bytes: 64 << 20, in_flight_requests: 1024 }
    }
}
