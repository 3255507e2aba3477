//! One block of a spare's table: what its slots hold.

use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, get, get_u16, get_u32, get_u64,
    put,
};
use crate::remap::SpareId;
use holdfast_units::ResourceId;

/// How many slots one block of the table is about.
pub const ENTRIES_PER_BLOCK: u32 = 168;
/// No unit has so high a number.
pub const MAX_UNIT: u64 = 1 << 54;
/// No entry has so high an order: one more always fits.
pub const MAX_ORDER: u64 = 1 << 62;

const PER_BLOCK: usize = ENTRIES_PER_BLOCK as usize;
const AT_SEQUENCE: usize = HEAD_LEN;
const AT_SPARE: usize = 48;
const AT_ENTRIES: usize = 64;
const ENTRY_LEN: usize = 24;

const _: () = assert!(AT_ENTRIES + PER_BLOCK * ENTRY_LEN == BLOCK_LEN);

/// What a slot is used for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum EntryState {
    /// For nothing: it can be taken.
    #[default]
    Free = 0,
    /// It holds the unit.
    Mapped = 1,
    /// It holds nothing; the unit has no good copy here.
    Lost = 2,
    /// For nothing, and never again: the slot itself is bad.
    BadSlot = 3,
}

/// Why an entry was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Reason {
    /// There is no entry.
    #[default]
    None = 0,
    /// A write failed.
    WriteError = 1,
    /// A read failed.
    ReadError = 2,
    /// Somebody asked for it.
    ByHand = 3,
    /// It was in a list of bad blocks.
    Imported = 4,
    /// It was moved from another spare.
    Moved = 5,
    /// What was written did not read back.
    NotReadBack = 6,
}

impl Reason {
    /// One or two words for it, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::WriteError => "write-error",
            Self::ReadError => "read-error",
            Self::ByHand => "by-hand",
            Self::Imported => "imported",
            Self::Moved => "moved",
            Self::NotReadBack => "not-read-back",
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::WriteError,
            2 => Self::ReadError,
            3 => Self::ByHand,
            4 => Self::Imported,
            5 => Self::Moved,
            6 => Self::NotReadBack,
            _ => return None,
        })
    }
}

/// What the table says of one slot. The default is a free one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// The unit's number on the main disk.
    pub unit: u64,
    /// Of two entries for one unit the one with the higher order counts.
    pub order: u64,
    /// When it was made, in seconds since 1970.
    pub time: u32,
    /// How many errors were seen on the unit, or on the slot when that is bad.
    pub errors: u16,
    /// What the slot is used for.
    pub state: EntryState,
    /// Why.
    pub reason: Reason,
}

/// A block of the table, the same in both copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableBlock {
    /// Up by one with each write.
    pub sequence: u64,
    /// The entries of its slots.
    pub entries: [Entry; PER_BLOCK],
}

impl Default for TableBlock {
    fn default() -> Self {
        Self { sequence: 0, entries: [Entry::default(); PER_BLOCK] }
    }
}

impl TableBlock {
    /// The bytes of the block with this number of the table of a spare.
    #[must_use]
    pub fn encode(&self, number: u32, resource: ResourceId, spare: SpareId) -> Block {
        let mut block = [0; BLOCK_LEN];
        let b = &mut block;
        put(b, AT_SEQUENCE, self.sequence.to_le_bytes());
        put(b, AT_SPARE, spare.0);
        for (i, entry) in self.entries.iter().enumerate() {
            let at = AT_ENTRIES + i * ENTRY_LEN;
            put(b, at, entry.unit.to_le_bytes());
            put(b, at + 8, entry.order.to_le_bytes());
            put(b, at + 16, entry.time.to_le_bytes());
            put(b, at + 20, entry.errors.to_le_bytes());
            put(b, at + 22, [entry.state as u8, entry.reason as u8]);
        }
        block::seal(b, head(number, resource));
        block
    }

    /// Reads the bytes that were found in the place of this block of the table. `slots` is how many
    /// the spare has.
    ///
    /// # Errors
    /// [`BlockError`] says what is wrong with them: torn, misplaced, of another spare or resource,
    /// entries that no version writes.
    pub fn decode(
        block: &Block,
        number: u32,
        resource: ResourceId,
        spare: SpareId,
        slots: u32,
    ) -> Result<Self, BlockError> {
        block::open_of(block, head(number, resource))?;
        if get::<16>(block, AT_SPARE) != spare.0 {
            return Err(BlockError::Content("it belongs to another spare"));
        }
        let sequence = get_u64(block, AT_SEQUENCE);
        if sequence >= block::MAX_SEQUENCE {
            return Err(BlockError::Content("it has an impossible sequence number"));
        }
        let mut table = Self { sequence, ..Self::default() };
        let first = u64::from(number) * u64::from(ENTRIES_PER_BLOCK);
        for (i, entry) in table.entries.iter_mut().enumerate() {
            *entry = decode_entry(block, AT_ENTRIES + i * ENTRY_LEN)?;
            if first + i as u64 >= u64::from(slots) && *entry != Entry::default() {
                return Err(BlockError::Content("it has an entry for a slot that does not exist"));
            }
        }
        Ok(table)
    }

    /// The block as it is when a spare is made.
    #[must_use]
    pub fn fresh(number: u32, resource: ResourceId, spare: SpareId) -> Block {
        Self { sequence: 1, ..Self::default() }.encode(number, resource, spare)
    }

    /// Whether bytes are what is in the place of this block when any spare is made, and nothing else.
    #[must_use]
    pub fn is_fresh(block: &Block, number: u32) -> bool {
        let spare = SpareId(get(block, AT_SPARE));
        *block == Self::fresh(number, block::resource_in(block), spare)
    }

    /// The sequence in bytes that cannot be decoded, where they begin as this block of the table does:
    /// of a write that was torn that of the new block or of the old one, since no disk tears the first
    /// sector.
    #[must_use]
    pub fn torn_sequence(
        block: &Block,
        number: u32,
        resource: ResourceId,
        spare: SpareId,
    ) -> Option<u64> {
        let begins = block::begins_as(block, head(number, resource));
        let is_it = begins && get::<16>(block, AT_SPARE) == spare.0;
        is_it.then(|| get_u64(block, AT_SEQUENCE))
    }
}

fn head(number: u32, resource: ResourceId) -> Head {
    Head { kind: BlockKind::SpareTable, number: u64::from(number), resource }
}

fn decode_entry(block: &Block, at: usize) -> Result<Entry, BlockError> {
    let state = match block[at + 22] {
        0 => EntryState::Free,
        1 => EntryState::Mapped,
        2 => EntryState::Lost,
        3 => EntryState::BadSlot,
        _ => return Err(BlockError::Content("it has an entry of an unknown state")),
    };
    let reason = Reason::from_number(block[at + 23])
        .ok_or(BlockError::Content("it has an entry for an unknown reason"))?;
    let entry = Entry {
        unit: get_u64(block, at),
        order: get_u64(block, at + 8),
        time: get_u32(block, at + 16),
        errors: get_u16(block, at + 20),
        state,
        reason,
    };
    if state == EntryState::Free && entry != Entry::default() {
        return Err(BlockError::Content("it has a free entry that is not empty"));
    }
    if entry.unit >= MAX_UNIT || entry.order >= MAX_ORDER {
        return Err(BlockError::Content("it has an entry with impossible numbers"));
    }
    Ok(entry)
}
