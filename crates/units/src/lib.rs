//! The words that every room of Holdfast shares: ids, byte ranges, sizes, names and states.
//!
//! Nothing here does I/O, reads a clock or allocates beyond a `String`.

#![deny(clippy::cast_possible_truncation)]

mod id;
mod log;
mod name;
mod range;
mod size;
mod state;

pub use id::{GenerationId, Millis, NodeId, PeerSet, ResourceId};
pub use log::{HybridTime, LogPosition};
pub use name::{NameError, check_name};
pub use range::ByteRange;
pub use size::{SizeError, format_size, parse_size};
pub use state::{ConnectionState, DiskState, ReplicationState, Role};

/// The unit of replication: one bit of a bitmap stands for so many bytes. Every request that
/// reaches the replication core starts and ends on a multiple of it.
pub const BLOCK_SIZE: u64 = 4096;

/// What one entry of the activity log covers, in bytes (as in DRBD).
pub const EXTENT_SIZE: u64 = 4 << 20;

/// The longest read or write that the replication core takes in one request, in bytes.
/// Frontends split longer ones.
pub const MAX_REQUEST: u64 = 1 << 20;

/// How many nodes a resource can have: 1 local and 31 peers (DRBD's `PEERS_MAX`).
pub const MAX_NODES: u8 = 32;
