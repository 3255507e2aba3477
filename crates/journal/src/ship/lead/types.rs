//! What the leading side needs from around it, and what it says.

use super::super::message::{Answer, RefuseCode, Verdict};
use crate::ranges::RangeSet;
use bytes::Bytes;
use holdfast_format::journal::{
    FollowState, FollowerNote, PeerCursor, PeerSwitches, SegmentHeader,
};
use holdfast_units::{ByteRange, LogPosition, NodeId};

/// Why the leader's own journal or disk could not be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct LeadError(pub String);

/// Why a request is not answered as it was meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What kind of refusal.
    pub code: RefuseCode,
    /// A sentence for people.
    pub text: String,
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse { code: refusal.code, text: refusal.text }
    }
}

/// What was found of a range, from where that begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// These bytes, whole blocks.
    Good(Bytes),
    /// Of so many bytes, whole blocks, nobody in reach has a good copy.
    Lost(u64),
}

impl Found {
    /// How much of the range that is.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self {
            Self::Good(bytes) => bytes.len() as u64,
            Self::Lost(len) => *len,
        }
    }

    /// Whether it is nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if they are all of a range.
    #[must_use]
    pub fn all_of(self, range: ByteRange) -> Option<Bytes> {
        match self {
            Self::Good(bytes) if bytes.len() as u64 == range.len => Some(bytes),
            Self::Good(_) | Self::Lost(_) => None,
        }
    }
}

/// The journal and the disk of a node that leads.
pub trait Source {
    /// The bytes of the resource: no record of the journal reaches further, also not one that is
    /// just being written. What lies behind what clients have of it reads as zeroes.
    fn size(&self) -> u64;

    /// The segments that are kept, oldest first, with the bytes of their frames that are durable.
    fn segments(&self) -> Vec<(SegmentHeader, u64)>;

    /// Everything before this is durable in the journal.
    fn durable(&self) -> LogPosition;

    /// How far a peer is.
    fn peer(&self, node: NodeId) -> PeerCursor;

    /// What the journal is kept for.
    fn set_peer(&mut self, node: NodeId, switches: PeerSwitches);

    /// A peer is so far.
    fn peer_reached(&mut self, node: NodeId, fetched: LogPosition, replayed: LogPosition);

    /// A peer needs the journal from here on and no more; durable when this returns.
    ///
    /// # Errors
    /// When it could not be made durable.
    fn peer_restarts(&mut self, node: NodeId, position: LogPosition) -> Result<(), LeadError>;

    /// Makes everything durable that was written, and begins a segment if the last one has
    /// records; its number, and where it begins.
    ///
    /// # Errors
    /// When the journal failed.
    fn begin_segment(&mut self) -> Result<(u64, LogPosition), LeadError>;

    /// Makes everything durable that was written; up to where.
    ///
    /// # Errors
    /// When the journal failed.
    fn flush(&mut self) -> Result<LogPosition, LeadError>;

    /// What the durable records from `from` to `to` (exclusively) change; `None` when they are not
    /// kept any more.
    ///
    /// # Errors
    /// When they cannot be read.
    fn changed_between(
        &self,
        from: LogPosition,
        to: LogPosition,
    ) -> Result<Option<RangeSet>, LeadError>;

    /// Durable bytes of a segment's frames, at most `max`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn fetch(&self, segment: u64, from: LogPosition, max: usize) -> Result<Bytes, LeadError>;

    /// What a client would read now: the beginning of a range, at least a block of it.
    ///
    /// # Errors
    /// When it cannot be read now.
    fn read(&self, range: ByteRange) -> Result<Found, LeadError>;
}

/// Where the notes about followers are kept.
pub trait Notes {
    /// The note about a node, if there is one that can be used.
    fn load(&self, node: NodeId) -> Option<FollowerNote>;

    /// Replaces the note about a node, durably.
    ///
    /// # Errors
    /// When it is not known to be durable: the old one may still be there.
    fn store(&mut self, note: &FollowerNote) -> Result<(), LeadError>;

    /// Takes the note about a node away, durably: it needs everything then.
    ///
    /// # Errors
    /// When it may still be there.
    fn forget(&mut self, node: NodeId) -> Result<(), LeadError>;
}

/// What is to become of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// This is the answer.
    Now(Answer),
    /// There is nothing new: [`Leader::head`] is the answer when there is, or when the time is
    /// over, or when the follower says something else on this connection.
    Wait {
        /// For so long, in milliseconds.
        ms: u32,
    },
}

/// A part of a filling that is given out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handed {
    /// Which; empty when all that is missing was given out.
    pub range: ByteRange,
    /// The follower's features.
    pub features: u64,
    /// It is to be offered by digests of so many bytes, instead of being sent.
    pub offer: Option<u32>,
}

/// How a follower stands, as far as the leader knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowerStatus {
    /// It is connected and was judged.
    pub connected: bool,
    /// What its disk holds.
    pub state: FollowState,
    /// Everything before this is durable at this node.
    pub head: LogPosition,
    /// Everything before this is durable in its journal.
    pub fetched: LogPosition,
    /// Everything before this is durable on its disk.
    pub replayed: LogPosition,
    /// How long what it has not fetched has been there, in milliseconds.
    pub fetch_lag_ms: u64,
    /// The same for what it has not replayed.
    pub replay_lag_ms: u64,
    /// It does not fetch.
    pub fetch_paused: bool,
    /// It does not replay.
    pub replay_paused: bool,
    /// The bytes that it lacks besides the journal.
    pub missing: u64,
    /// What was cut from the journal was still needed by it, and it was not begun to be filled.
    pub cut: bool,
    /// Both went on apart: the last verdict.
    pub apart: Option<Verdict>,
}
