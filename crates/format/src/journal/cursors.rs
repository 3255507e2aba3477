//! Cursors: how far this node and its peers are in the journal.

use super::MAX_POSITION;
use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, get_u32, get_u64, put,
};
use holdfast_units::{LogPosition, MAX_NODES, ResourceId};

const PEERS: usize = MAX_NODES as usize;
const AT_SEQUENCE: usize = HEAD_LEN;
const AT_WRITTEN_BACK: usize = 48;
const AT_DURABLE: usize = 56;
const AT_SWITCHES: usize = 64;
const AT_PEERS: usize = 128;
const PEER_LEN: usize = 24;

const _: () = assert!(AT_PEERS + PEERS * PEER_LEN <= BLOCK_LEN);

/// What is switched off at this node. The two do not depend on each other.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Switches {
    /// Nothing is fetched from other nodes.
    pub fetch_paused: bool,
    /// Nothing is replayed to the disk.
    pub replay_paused: bool,
    /// The disk has been written to past the journal: what is appended next is another history.
    pub bypassed: bool,
}

/// What is known of a peer besides its positions.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PeerSwitches {
    /// The journal is kept for it.
    pub counts: bool,
    /// It keeps a journal of its own: what it has fetched is not needed any more.
    pub keeps_journal: bool,
    /// What it still needed was cut: it goes on by its bitmap.
    pub cut: bool,
}

/// How far a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PeerCursor {
    /// Everything before this is durable in its journal.
    pub fetched: LogPosition,
    /// Everything before this is durable on its disk.
    pub replayed: LogPosition,
    /// What else is known.
    pub switches: PeerSwitches,
}

/// Where everybody is. There are two copies, written in turn: a torn write leaves the older one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursors {
    /// Goes up by one with every write; even in copy 0, odd in copy 1.
    pub sequence: u64,
    /// Whose journal it is.
    pub resource: ResourceId,
    /// Everything before this is durable on the local disk.
    pub written_back: LogPosition,
    /// Everything before this was durable in the journal when this was written.
    pub durable: LogPosition,
    /// The switches of this node.
    pub switches: Switches,
    /// The peers, by node number.
    pub peers: [PeerCursor; PEERS],
}

impl Cursors {
    /// The cursors of an empty journal.
    #[must_use]
    pub fn new(resource: ResourceId) -> Self {
        Self {
            sequence: 0,
            resource,
            written_back: LogPosition::START,
            durable: LogPosition::START,
            switches: Switches::default(),
            peers: [PeerCursor::default(); PEERS],
        }
    }

    /// The copy, 0 or 1, that holds this sequence number.
    #[must_use]
    pub const fn copy(&self) -> u8 {
        if self.sequence.is_multiple_of(2) { 0 } else { 1 }
    }

    /// The bytes, for the copy that belongs to the sequence number.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_LEN];
        let b = &mut block;
        put(b, AT_SEQUENCE, self.sequence.to_le_bytes());
        put(b, AT_WRITTEN_BACK, self.written_back.0.to_le_bytes());
        put(b, AT_DURABLE, self.durable.0.to_le_bytes());
        let Switches { fetch_paused, replay_paused, bypassed } = self.switches;
        put(b, AT_SWITCHES, bits([fetch_paused, replay_paused, bypassed]).to_le_bytes());
        for (i, peer) in self.peers.iter().enumerate() {
            let at = AT_PEERS + i * PEER_LEN;
            let PeerSwitches { counts, keeps_journal, cut } = peer.switches;
            put(b, at, peer.fetched.0.to_le_bytes());
            put(b, at + 8, peer.replayed.0.to_le_bytes());
            put(b, at + 16, bits([counts, keeps_journal, cut]).to_le_bytes());
        }
        let number = u64::from(self.copy());
        block::seal(b, Head { kind: BlockKind::JournalCursors, number, resource: self.resource });
        block
    }

    /// Reads the bytes that were found in the place of copy 0 or 1.
    ///
    /// # Errors
    /// [`BlockError`] says what is wrong with them.
    pub fn decode(b: &Block, resource: ResourceId, copy: u8) -> Result<Self, BlockError> {
        let number = u64::from(copy & 1);
        block::open_of(b, Head { kind: BlockKind::JournalCursors, number, resource })?;
        let sequence = get_u64(b, AT_SEQUENCE);
        if sequence >= block::MAX_SEQUENCE || sequence % 2 != number {
            return Err(BlockError::Content("it has an impossible sequence number"));
        }
        let mut cursors = Self::new(resource);
        cursors.sequence = sequence;
        cursors.written_back = position(b, AT_WRITTEN_BACK)?;
        cursors.durable = position(b, AT_DURABLE)?;
        if cursors.written_back > cursors.durable {
            return Err(BlockError::Content("more is written back than is durable"));
        }
        let switches = get_u32(b, AT_SWITCHES);
        cursors.switches = Switches {
            fetch_paused: switches & 1 != 0,
            replay_paused: switches & 2 != 0,
            bypassed: switches & 4 != 0,
        };
        for (i, peer) in cursors.peers.iter_mut().enumerate() {
            let at = AT_PEERS + i * PEER_LEN;
            let flags = get_u32(b, at + 16);
            *peer = PeerCursor {
                fetched: position(b, at)?,
                replayed: position(b, at + 8)?,
                switches: PeerSwitches {
                    counts: flags & 1 != 0,
                    keeps_journal: flags & 2 != 0,
                    cut: flags & 4 != 0,
                },
            };
        }
        Ok(cursors)
    }

    /// The newer of the copies that count; `None` when none does.
    #[must_use]
    pub fn newest(copies: [&Block; 2], resource: ResourceId) -> Option<Self> {
        let read = |copy: u8| Self::decode(copies[usize::from(copy)], resource, copy).ok();
        match (read(0), read(1)) {
            (Some(a), Some(b)) => Some(if a.sequence > b.sequence { a } else { b }),
            (a, b) => a.or(b),
        }
    }
}

fn position(b: &Block, at: usize) -> Result<LogPosition, BlockError> {
    let position = get_u64(b, at);
    if position < MAX_POSITION {
        Ok(LogPosition(position))
    } else {
        Err(BlockError::Content("it has an impossible position"))
    }
}

fn bits(flags: [bool; 3]) -> u32 {
    flags.into_iter().enumerate().map(|(bit, on)| u32::from(on) << bit).sum()
}
