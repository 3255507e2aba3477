//! What a node that follows a journal knows of its own disk.

use super::MAX_POSITION;
use crate::block::{self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, get_u64, put};
use holdfast_units::{LogPosition, ResourceId};

const AT_SEQUENCE: usize = HEAD_LEN;
const AT_STATE: usize = 48;
const AT_FLAGS: usize = 49;
const AT_REPLAYED: usize = 56;
const AT_APPLYING: usize = 64;
const AT_FILL: usize = 72;
const AT_FILL_FROM: usize = 80;
const AT_FILL_SEGMENT: usize = 88;
const AT_FILL_TO: usize = 96;
const AT_LIMIT: usize = 104;

const WIPE: u8 = 1;
const FETCH_PAUSED: u8 = 2;
const REPLAY_PAUSED: u8 = 4;
const SHORTENED: u8 = 8;
const KNOWN_FLAGS: u8 = WIPE | FETCH_PAUSED | REPLAY_PAUSED | SHORTENED;

/// Stands for "not known" where a position is written.
const NONE: u64 = u64::MAX;

/// What the disk of a node that follows holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(u8)]
pub enum FollowState {
    /// Nothing that counts.
    #[default]
    Nothing = 0,
    /// It is being filled: a mixture of many moments.
    Filling = 1,
    /// The state of one moment, once everything that may have been begun is replayed.
    Consistent = 2,
    /// What the journal makes of it when it is written back: this node leads, or did so last.
    Led = 3,
}

/// The state of a node that follows. There are two copies, written in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Following {
    /// Goes up by one with every write; even in copy 0, odd in copy 1.
    pub sequence: u64,
    /// Whose disk it is.
    pub resource: ResourceId,
    /// What it holds.
    pub state: FollowState,
    /// The journal of this node does not count any more and is to be emptied.
    pub wipe: bool,
    /// Nothing is fetched.
    pub fetch_paused: bool,
    /// Nothing is replayed.
    pub replay_paused: bool,
    /// The journal of this node was cut for damage before [`Self::applying`]: where it ends says
    /// nothing of what the disk may have.
    pub shortened: bool,
    /// Everything before this is durable on the disk.
    pub replayed: LogPosition,
    /// Nothing from here on was written to the disk since the last flush.
    pub applying: LogPosition,
    /// The number of the last filling; 0: there was none.
    pub fill: u64,
    /// Where the journal begins that belongs to the filling.
    pub fill_from: LogPosition,
    /// The segment that begins there.
    pub fill_segment: u64,
    /// The disk is the state of a moment again when it is replayed up to here; `None` while it is
    /// still copied.
    pub fill_to: Option<LogPosition>,
    /// Nothing from here on is replayed: the journals went on apart there.
    pub limit: Option<LogPosition>,
}

impl Following {
    /// Of a disk that holds nothing that counts.
    #[must_use]
    pub const fn new(resource: ResourceId) -> Self {
        Self {
            sequence: 0,
            resource,
            state: FollowState::Nothing,
            wipe: false,
            fetch_paused: false,
            replay_paused: false,
            shortened: false,
            replayed: LogPosition::START,
            applying: LogPosition::START,
            fill: 0,
            fill_from: LogPosition::START,
            fill_segment: 0,
            fill_to: None,
            limit: None,
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
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let flags = flag(self.wipe, WIPE)
            | flag(self.fetch_paused, FETCH_PAUSED)
            | flag(self.replay_paused, REPLAY_PAUSED)
            | flag(self.shortened, SHORTENED);
        put(b, AT_SEQUENCE, self.sequence.to_le_bytes());
        put(b, AT_STATE, [self.state as u8]);
        put(b, AT_FLAGS, [flags]);
        put(b, AT_REPLAYED, self.replayed.0.to_le_bytes());
        put(b, AT_APPLYING, self.applying.0.to_le_bytes());
        put(b, AT_FILL, self.fill.to_le_bytes());
        put(b, AT_FILL_FROM, self.fill_from.0.to_le_bytes());
        put(b, AT_FILL_SEGMENT, self.fill_segment.to_le_bytes());
        put(b, AT_FILL_TO, self.fill_to.map_or(NONE, |at| at.0).to_le_bytes());
        put(b, AT_LIMIT, self.limit.map_or(NONE, |at| at.0).to_le_bytes());
        let number = u64::from(self.copy());
        let kind = BlockKind::JournalFollowing;
        block::seal(b, Head { kind, number, resource: self.resource });
        block
    }

    /// Reads the bytes that were found in the place of copy 0 or 1.
    ///
    /// # Errors
    /// [`BlockError`] says what is wrong with them.
    pub fn decode(b: &Block, resource: ResourceId, copy: u8) -> Result<Self, BlockError> {
        let number = u64::from(copy & 1);
        block::open_of(b, Head { kind: BlockKind::JournalFollowing, number, resource })?;
        let sequence = get_u64(b, AT_SEQUENCE);
        if sequence >= block::MAX_SEQUENCE || sequence % 2 != number {
            return Err(BlockError::Content("it has an impossible sequence number"));
        }
        let state = match b[AT_STATE] {
            0 => FollowState::Nothing,
            1 => FollowState::Filling,
            2 => FollowState::Consistent,
            3 => FollowState::Led,
            _ => return Err(BlockError::Content("it has an unknown state")),
        };
        let flags = b[AT_FLAGS];
        if flags & !KNOWN_FLAGS != 0 {
            return Err(BlockError::Content("it has unknown flags"));
        }
        let known = |at| if get_u64(b, at) == NONE { Ok(None) } else { position(b, at).map(Some) };
        Ok(Self {
            sequence,
            resource,
            state,
            wipe: flags & WIPE != 0,
            fetch_paused: flags & FETCH_PAUSED != 0,
            replay_paused: flags & REPLAY_PAUSED != 0,
            shortened: flags & SHORTENED != 0,
            replayed: position(b, AT_REPLAYED)?,
            applying: position(b, AT_APPLYING)?,
            fill: get_u64(b, AT_FILL),
            fill_from: position(b, AT_FILL_FROM)?,
            fill_segment: get_u64(b, AT_FILL_SEGMENT),
            fill_to: known(AT_FILL_TO)?,
            limit: known(AT_LIMIT)?,
        })
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

#[cfg(test)]
mod tests {
    use super::{FollowState, Following};
    use crate::testing::hex;
    use holdfast_units::{LogPosition, ResourceId};

    fn some() -> Following {
        Following {
            sequence: 7,
            state: FollowState::Filling,
            wipe: true,
            replay_paused: true,
            shortened: true,
            replayed: LogPosition(0x1000),
            applying: LogPosition(0x2000),
            fill: 0x0123_4567_89ab_cdef,
            fill_from: LogPosition(0x800),
            fill_segment: 5,
            fill_to: None,
            limit: Some(LogPosition(0x3000)),
            ..Following::new(ResourceId([9; 16]))
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let state = some();
        let block = state.encode();
        assert_eq!(Following::decode(&block, state.resource, 1), Ok(state));
        assert!(Following::decode(&block, state.resource, 0).is_err(), "the other copy");
        let older = Following { sequence: 6, state: FollowState::Consistent, ..state };
        let copies = [&older.encode(), &block];
        assert_eq!(Following::newest(copies, state.resource), Some(state));
        let torn = [0x55; 4096];
        assert_eq!(Following::newest([&older.encode(), &torn], state.resource), Some(older));
        assert_eq!(Following::newest([&torn, &torn], state.resource), None);
    }

    #[test]
    fn the_bytes_are_these() {
        let block = some().encode();
        let lines = hex(&block);
        let fields: Vec<&str> = lines.lines().skip(2).collect();
        assert_eq!(
            fields,
            [
                "020: 09 09 09 09 09 09 09 09 07 00 00 00 00 00 00 00",
                "030: 01 0d 00 00 00 00 00 00 00 10 00 00 00 00 00 00",
                "040: 00 20 00 00 00 00 00 00 ef cd ab 89 67 45 23 01",
                "050: 00 08 00 00 00 00 00 00 05 00 00 00 00 00 00 00",
                "060: ff ff ff ff ff ff ff ff 00 30 00 00 00 00 00 00",
            ]
        );
    }
}
