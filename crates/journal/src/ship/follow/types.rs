//! How a node follows, and how that goes.

use super::super::message::{RefuseCode, Request, Verdict};
use crate::driver::LogError;
use crate::journal::Settings;
use holdfast_units::{ByteRange, LogPosition};
use std::io;

/// The number of a connection; numbers are never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// How a journal is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowOptions {
    /// The journal of this node. Its budget is where fetching waits.
    pub settings: Settings,
    /// The bytes of the resource.
    pub size: u64,
    /// What pieces are asked for, in bytes.
    pub piece: u32,
    /// How many bytes of the journal are held in memory.
    pub window: u64,
    /// How many requests are on their way on one connection.
    pub requests: usize,
    /// So many bytes of a filling are written between two flushes.
    pub copy_flush: u64,
    /// So many bytes of writes are replayed at a time.
    pub replay: u64,
    /// Pieces may travel packed.
    pub lz4: bool,
    /// What this node wrote while it led may be given up when its journal does not say all of it.
    pub may_give_up: bool,
}

impl FollowOptions {
    /// Sensible numbers: pieces of 512 KiB, 16 MiB in memory, 4 requests on a connection.
    #[must_use]
    pub const fn new(settings: Settings, size: u64) -> Self {
        let (piece, window, copy_flush, replay) = (512 << 10, 16 << 20, 16 << 20, 4 << 20);
        let (requests, lz4, may_give_up) = (4, true, false);
        Self { settings, size, piece, window, requests, copy_flush, replay, lz4, may_give_up }
    }
}

/// Why a node cannot follow any more. It can be opened again.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The disk.
    #[error("the disk failed: {0}")]
    Disk(io::Error),
    /// The journal.
    #[error("the journal failed: {0}")]
    Journal(String),
    /// This node led, and its journal does not say all that it wrote. Nothing was changed.
    #[error("this node led, and its journal does not say what is on its disk")]
    Unproven,
}

impl From<LogError> for FollowError {
    fn from(error: LogError) -> Self {
        Self::Journal(error.to_string())
    }
}

/// What the disk is, for whoever wants to use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holding {
    /// Nothing that counts.
    Nothing,
    /// A mixture, until it is filled.
    Filling,
    /// A mixture, until what was begun before a crash is replayed.
    Recovering,
    /// Exactly the state of the origin at this position.
    StateAt(LogPosition),
}

/// What keeps a follower from going on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The leader refuses it.
    Refused(RefuseCode, String),
    /// Its own journal is full until more is replayed.
    NoRoom,
    /// It is to be filled, and keeps its state because its replay is paused.
    Held,
    /// What the leader sends for this position is damaged.
    Damaged(LogPosition),
    /// The record at this position lies behind what the disk has room for: the resource has grown,
    /// and this node's part of it has not yet.
    Smaller(LogPosition),
}

/// How a follower stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowStatus {
    /// What the disk is.
    pub holding: Holding,
    /// Everything before this is durable at the leader, as far as is known.
    pub head: LogPosition,
    /// Everything before this is durable in the journal here.
    pub fetched: LogPosition,
    /// Everything before this is on the disk.
    pub replayed: LogPosition,
    /// Where the journal here begins.
    pub tail: LogPosition,
    /// The bytes of its files.
    pub bytes: u64,
    /// How long what was not fetched has been at the leader, in milliseconds.
    pub fetch_lag_ms: u64,
    /// The same for what was not replayed.
    pub replay_lag_ms: u64,
    /// A filling still has so many bytes to copy.
    pub fill_left: u64,
    /// All the bytes that were fetched or copied since this was opened.
    pub received: u64,
    /// The bytes that came for that over the network.
    pub transferred: u64,
    /// Fetching is switched off.
    pub fetch_paused: bool,
    /// Replaying is switched off.
    pub replay_paused: bool,
    /// The disk is being restored from an archive, or that was interrupted.
    pub restored: bool,
    /// The leader lets it fetch.
    pub follows: bool,
    /// The last verdict.
    pub verdict: Option<Verdict>,
    /// Where a leader said that its journal and this one went on apart: nothing behind it is replayed.
    pub fork: Option<LogPosition>,
    /// What is in the way.
    pub trouble: Option<Trouble>,
    /// The blocks of which the disk has no good copy.
    pub healed: Healed,
}

/// Blocks of which the disk has, or had, no good copy.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Healed {
    /// So many were stored again since this was opened.
    pub healed: u64,
    /// So many there are.
    pub blocks: u64,
    /// So many of them can be read, or could be one day, and are not what was written.
    pub old: u64,
    /// So many of them were written on the Primary since: the replay brings them.
    pub to_come: u64,
    /// It is being looked for some of them.
    pub trying: bool,
    /// The first of them.
    pub first: Vec<ByteRange>,
    /// Why the list of them could not be kept, while that is so: nothing is stored again then, and what
    /// a filling copies does not count. It is tried again every few seconds.
    pub unkept: Option<String>,
}

/// A request to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Send {
    /// On this connection.
    pub conn: ConnId,
    /// What.
    pub request: Request,
}
