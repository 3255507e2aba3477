//! The activity log: which extents may hold writes that did not reach all copies.
//!
//! A ring of blocks. Each transaction block holds what changed, and a slice of the whole picture,
//! which goes round: the newest `ceil(extents / AL_CONTEXT)` transactions give all of it. The ring
//! has at least one block more, so the picture survives when the newest block is torn.

use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, MAX_SEQUENCE, get_u16, get_u32,
    get_u64, put,
};
use crate::layout::{MetaLayout, al_number};
use holdfast_units::ResourceId;
use std::collections::BTreeMap;

/// The most slots that one transaction can change.
pub const AL_MAX_UPDATES: usize = 64;

/// How many slots of the whole picture one transaction carries.
pub const AL_CONTEXT: u16 = 912;

/// The most extents that an activity log can hold.
pub const AL_MAX_EXTENTS: u16 = 65534;

/// How many extents an activity log holds when the user does not say: 4.8 GiB of hot data.
pub const DEFAULT_AL_EXTENTS: u16 = 1237;

/// The ring never has fewer blocks, so that the number of extents can be changed in place.
const MIN_RING: u32 = 8;

const EMPTY: u32 = u32::MAX;

const AT_SEQUENCE: usize = HEAD_LEN;
const AT_SLOTS: usize = 48;
const AT_UPDATES: usize = 50;
const AT_CONTEXT_START: usize = 52;
const AT_CONTEXT_LEN: usize = 54;
const AT_RING: usize = 56;
const AT_HEAD_CHECKSUM: usize = 60;
const AT_UPDATE_SLOTS: usize = 64;
const AT_UPDATE_EXTENTS: usize = AT_UPDATE_SLOTS + AL_MAX_UPDATES * 2;
const AT_CONTEXT: usize = AT_UPDATE_EXTENTS + AL_MAX_UPDATES * 4;

/// The updates of a transaction are in its first sector, which a crash does not tear.
const SECTOR: usize = 512;

const _: () = assert!(AT_CONTEXT == 448 && AT_CONTEXT <= SECTOR);
const _: () = assert!(AT_CONTEXT + AL_CONTEXT as usize * 4 == BLOCK_LEN);

/// How many blocks the ring for an activity log of `extents` extents has: enough for all slots
/// in all but one block, and at least 8 (32 KiB).
#[must_use]
pub fn al_blocks_for(extents: u16) -> u32 {
    (u32::from(extents.div_ceil(AL_CONTEXT)) + 1).max(MIN_RING)
}

/// One slot's new content: an extent number, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AlUpdate {
    /// Which slot.
    pub slot: u16,
    /// What it holds from now on.
    pub extent: Option<u32>,
}

/// Why a transaction was not made. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AlError {
    /// More than [`AL_MAX_UPDATES`] updates.
    #[error(
        "{count} updates do not fit into one transaction of the activity log: {AL_MAX_UPDATES} do"
    )]
    TooMany {
        /// How many there were.
        count: usize,
    },
    /// The log has no such slot.
    #[error("the activity log has {slots} slots, and no slot {slot}")]
    NoSuchSlot {
        /// The slot that was asked for.
        slot: u16,
        /// How many there are.
        slots: usize,
    },
    /// The extent number `u32::MAX`, which means an empty slot on disk.
    #[error("the activity log cannot hold extent {EMPTY}")]
    NoSuchExtent,
}

/// A block of the ring that could not be used, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AlDamage {
    /// Its index in the ring.
    pub index: u32,
    /// What is wrong with it.
    pub error: BlockError,
}

/// The activity log cannot be trusted: any block may differ from the other copies.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the activity log is damaged: {why}")]
pub struct AlDamaged {
    /// Why.
    pub why: &'static str,
    /// The blocks that could not be used.
    pub blocks: Vec<AlDamage>,
    /// A sequence number above all that were seen: where a newly formatted log may start.
    pub next_sequence: u64,
}

/// What [`AlLog::recover`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlRecovered {
    /// The log as of its newest transaction.
    pub log: AlLog,
    /// Blocks that could not be used and were not needed: the torn newest one, or old ones.
    pub unused: Vec<AlDamage>,
    /// Of the newest transaction only the first sector is whole. The log has its updates; this block
    /// must be written, at this index in the ring, before the next transaction.
    pub again: Option<(u32, Block)>,
}

/// The slots of the activity log, and what is needed to write the next transaction.
///
/// A transaction must be durable before the next one is written, and before the first write into
/// an extent that it makes hot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlLog {
    resource: ResourceId,
    slots: Vec<Option<u32>>,
    ring: u32,
    /// Of the next transaction.
    sequence: u64,
    /// The first slot of the next slice of the picture.
    cursor: u16,
}

impl AlLog {
    /// An empty log of that layout whose first transaction has at least this sequence number.
    /// All of [`AlLog::format`] must be written before it is used.
    #[must_use]
    pub fn new(resource: ResourceId, layout: &MetaLayout, sequence: u64) -> Self {
        let ring = layout.al_blocks();
        Self {
            resource,
            slots: vec![None; usize::from(layout.al_extents())],
            ring,
            // Whole rounds, so that the first block of a formatted ring is block 0.
            sequence: sequence.next_multiple_of(u64::from(ring)),
            cursor: 0,
        }
    }

    /// Every block of the ring with a transaction that changes nothing, so that a later torn
    /// block is known from one that was never written. Index in the ring and bytes.
    pub fn format(&mut self) -> Vec<(u32, Block)> {
        (0..self.ring).map(|_| self.next_block(&[])).collect()
    }

    /// Makes the changes and gives the transaction that records them: the index of its block in
    /// the ring, and its bytes. Later updates of one slot win.
    ///
    /// # Errors
    /// [`AlError`] when there are too many updates or one is impossible; nothing has changed.
    pub fn encode_transaction(&mut self, updates: &[AlUpdate]) -> Result<(u32, Block), AlError> {
        if updates.len() > AL_MAX_UPDATES {
            return Err(AlError::TooMany { count: updates.len() });
        }
        let slots = self.slots.len();
        for update in updates {
            if usize::from(update.slot) >= slots {
                return Err(AlError::NoSuchSlot { slot: update.slot, slots });
            }
            if update.extent == Some(EMPTY) {
                return Err(AlError::NoSuchExtent);
            }
        }
        Ok(self.next_block(updates))
    }

    /// What each slot holds.
    #[must_use]
    pub fn slots(&self) -> &[Option<u32>] {
        &self.slots
    }

    /// The extents that are hot, in the order of their slots.
    pub fn extents(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().flatten().copied()
    }

    /// The sequence number of the next transaction.
    #[must_use]
    pub const fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// Reads the log back from the blocks of the ring, given with their index, in any order;
    /// `None` for a block that could not be read.
    ///
    /// Where the next transaction would go, a block may be unusable. Its first sector tells whether that
    /// transaction was made: then its updates hold, be the rest torn or rotten. If that sector is an older
    /// one, the write was cut off before any write into its extents could have started. If it is neither,
    /// or the block could not be read at all, the transaction may have been finished, and the log counts
    /// as damaged.
    ///
    /// # Errors
    /// [`AlDamaged`] when the newest transactions do not give the whole picture. The caller must
    /// then take every extent for hot, and make that durable before it formats the log anew.
    pub fn recover(
        resource: ResourceId,
        layout: &MetaLayout,
        blocks: impl IntoIterator<Item = (u32, Option<Block>)>,
    ) -> Result<AlRecovered, AlDamaged> {
        let mut found = Found::read(resource, layout, blocks);
        let newest = match found.transactions.last() {
            Some(transaction) => transaction.sequence,
            None => return Err(found.damaged("none of its blocks can be used")),
        };
        let ring = u64::from(layout.al_blocks());
        let next_index = (newest + 1) % ring;
        let next = found.unusable.remove(&next_index);
        let cut_off = match next.map(|block| first_sector(block, next_index, resource, layout)) {
            None => None,
            Some(Some((sequence, updates))) if sequence == newest + 1 => Some(updates),
            Some(Some(_)) => None,
            Some(None) => {
                return Err(found.damaged("the newest block may be one that cannot be used"));
            }
        };
        let needed = usize::from(layout.al_extents().div_ceil(AL_CONTEXT));
        let Some(start) = found.transactions.len().checked_sub(needed) else {
            return Err(found.damaged("a needed block cannot be used"));
        };
        let recent = &found.transactions[start..];
        if !recent.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence) {
            return Err(found.damaged("a needed block cannot be used"));
        }
        match replay(recent, usize::from(layout.al_extents())) {
            Some(slots) => {
                let cursor = recent.last().map_or(0, |t| t.next_cursor(slots.len()));
                let mut log = Self {
                    resource,
                    slots,
                    ring: layout.al_blocks(),
                    sequence: newest + 1,
                    cursor,
                };
                let again = cut_off.map(|updates| log.next_block(&updates));
                Ok(AlRecovered { log, unused: std::mem::take(&mut found.damage), again })
            }
            None => Err(found.damaged("its transactions do not name every slot")),
        }
    }

    fn next_block(&mut self, updates: &[AlUpdate]) -> (u32, Block) {
        for update in updates {
            self.slots[usize::from(update.slot)] = update.extent;
        }
        let start = usize::from(self.cursor);
        let end = self.slots.len().min(start + usize::from(AL_CONTEXT));
        let index = u32::try_from(self.sequence % u64::from(self.ring))
            .expect("a remainder is below its divisor");
        let head = Head {
            kind: BlockKind::ActivityLog,
            number: al_number(index),
            resource: self.resource,
        };
        let transaction = Transaction {
            sequence: self.sequence,
            updates: updates.to_vec(),
            context_start: self.cursor,
            context: self.slots[start..end].to_vec(),
        };
        let block = transaction.encode(head, self.slots.len(), self.ring);
        self.cursor = transaction.next_cursor(self.slots.len());
        self.sequence += 1;
        (index, block)
    }
}

/// Everything that the ring holds.
struct Found {
    /// Oldest first.
    transactions: Vec<Transaction>,
    damage: Vec<AlDamage>,
    /// The blocks with damage, by index; `None` where nothing could be read.
    unusable: BTreeMap<u64, Option<Block>>,
}

impl Found {
    fn read(
        resource: ResourceId,
        layout: &MetaLayout,
        blocks: impl IntoIterator<Item = (u32, Option<Block>)>,
    ) -> Self {
        let mut found =
            Self { transactions: Vec::new(), damage: Vec::new(), unusable: BTreeMap::new() };
        // A ring has this many blocks; more would be the caller's error, and must not grow memory.
        let ring = usize::try_from(layout.al_blocks()).expect("a ring has few blocks");
        for (index, block) in blocks.into_iter().take(ring) {
            let number = al_number(index);
            let head = Head { kind: BlockKind::ActivityLog, number, resource };
            let decoded = block
                .ok_or(BlockError::Unreadable)
                .and_then(|block| Transaction::decode(&block, head, layout));
            match decoded {
                Ok(transaction) => found.transactions.push(transaction),
                Err(error) => {
                    found.damage.push(AlDamage { index, error });
                    found.unusable.insert(u64::from(index), block);
                }
            }
        }
        found.transactions.sort_by_key(|t| t.sequence);
        found
    }

    fn damaged(&mut self, why: &'static str) -> AlDamaged {
        AlDamaged {
            why,
            blocks: std::mem::take(&mut self.damage),
            next_sequence: self.transactions.last().map_or(0, |t| t.sequence + 1),
        }
    }
}

/// The sequence number and the updates in the first sector of a block, if that is whole.
fn first_sector(
    block: Option<Block>,
    index: u64,
    resource: ResourceId,
    layout: &MetaLayout,
) -> Option<(u64, Vec<AlUpdate>)> {
    let number = al_number(u32::try_from(index).ok()?);
    let head = Head { kind: BlockKind::ActivityLog, number, resource };
    Transaction::decode_first_sector(&block?, head, layout)
}

/// What the slots hold after these transactions; `None` when one was never named.
fn replay(transactions: &[Transaction], slots: usize) -> Option<Vec<Option<u32>>> {
    let mut picture: Vec<Option<Option<u32>>> = vec![None; slots];
    for transaction in transactions {
        for update in &transaction.updates {
            picture[usize::from(update.slot)] = Some(update.extent);
        }
        let start = usize::from(transaction.context_start);
        for (slot, extent) in picture[start..].iter_mut().zip(&transaction.context) {
            *slot = Some(*extent);
        }
    }
    picture.into_iter().collect()
}

/// One block of the ring.
struct Transaction {
    sequence: u64,
    updates: Vec<AlUpdate>,
    context_start: u16,
    /// What the slots from `context_start` on hold after the updates.
    context: Vec<Option<u32>>,
}

impl Transaction {
    fn next_cursor(&self, slots: usize) -> u16 {
        let end = usize::from(self.context_start) + self.context.len();
        if end < slots { u16::try_from(end).expect("slots are numbered with 16 bits") } else { 0 }
    }

    fn encode(&self, head: Head, slots: usize, ring: u32) -> Block {
        let mut block = [0; BLOCK_LEN];
        let count = |n: usize| u16::try_from(n).expect("counts here are below 65536").to_le_bytes();
        put(&mut block, AT_SEQUENCE, self.sequence.to_le_bytes());
        put(&mut block, AT_SLOTS, count(slots));
        put(&mut block, AT_UPDATES, count(self.updates.len()));
        put(&mut block, AT_CONTEXT_START, self.context_start.to_le_bytes());
        put(&mut block, AT_CONTEXT_LEN, count(self.context.len()));
        put(&mut block, AT_RING, ring.to_le_bytes());
        for (i, update) in self.updates.iter().enumerate() {
            put(&mut block, AT_UPDATE_SLOTS + i * 2, update.slot.to_le_bytes());
            put(&mut block, AT_UPDATE_EXTENTS + i * 4, pack(update.extent));
        }
        for (i, extent) in self.context.iter().enumerate() {
            put(&mut block, AT_CONTEXT + i * 4, pack(*extent));
        }
        block::seal(&mut block, head);
        let checksum = head_checksum(&block);
        put(&mut block, AT_HEAD_CHECKSUM, checksum.to_le_bytes());
        block::seal(&mut block, head);
        block
    }

    /// What the first sector alone says: `None` unless it is whole and of this place.
    fn decode_first_sector(
        block: &Block,
        head: Head,
        layout: &MetaLayout,
    ) -> Option<(u64, Vec<AlUpdate>)> {
        let mut expected = [0; BLOCK_LEN];
        block::seal(&mut expected, head);
        let same = |range: std::ops::Range<usize>| block[range.clone()] == expected[range];
        let whole = get_u32(block, AT_HEAD_CHECKSUM) == head_checksum(block);
        if !whole || !same(0..block::AT_CRC) || !same(block::AT_CRC + 4..HEAD_LEN) {
            return None;
        }
        Some((Self::sequence(block, head, layout).ok()?, Self::updates(block, layout).ok()?))
    }

    fn decode(block: &Block, head: Head, layout: &MetaLayout) -> Result<Self, BlockError> {
        block::open_of(block, head)?;
        if get_u32(block, AT_HEAD_CHECKSUM) != head_checksum(block) {
            return Err(BlockError::Content("the checksum of its first sector is another one"));
        }
        let sequence = Self::sequence(block, head, layout)?;
        let updates = Self::updates(block, layout)?;
        let slots = layout.al_extents();
        let context_start = get_u16(block, AT_CONTEXT_START);
        let context_len = get_u16(block, AT_CONTEXT_LEN);
        let expected = slots.saturating_sub(context_start).min(AL_CONTEXT);
        if context_len == 0 || context_len != expected || !context_start.is_multiple_of(AL_CONTEXT)
        {
            return Err(BlockError::Content("its slice of the slots is impossible"));
        }
        let context = (0..usize::from(context_len))
            .map(|i| unpack(get_u32(block, AT_CONTEXT + i * 4)))
            .collect();
        Ok(Self { sequence, updates, context_start, context })
    }

    fn sequence(block: &Block, head: Head, layout: &MetaLayout) -> Result<u64, BlockError> {
        let sequence = get_u64(block, AT_SEQUENCE);
        let (slots, ring) = (get_u16(block, AT_SLOTS), get_u32(block, AT_RING));
        if (slots, ring) != (layout.al_extents(), layout.al_blocks()) {
            return Err(BlockError::Content("it belongs to an activity log of another size"));
        }
        if al_number_of(sequence, ring) != head.number || sequence >= MAX_SEQUENCE {
            return Err(BlockError::Content("its sequence number belongs into another block"));
        }
        Ok(sequence)
    }

    fn updates(block: &Block, layout: &MetaLayout) -> Result<Vec<AlUpdate>, BlockError> {
        let count = usize::from(get_u16(block, AT_UPDATES));
        if count > AL_MAX_UPDATES {
            return Err(BlockError::Content("it has too many updates"));
        }
        let updates: Vec<_> = (0..count)
            .map(|i| AlUpdate {
                slot: get_u16(block, AT_UPDATE_SLOTS + i * 2),
                extent: unpack(get_u32(block, AT_UPDATE_EXTENTS + i * 4)),
            })
            .collect();
        if updates.iter().any(|update| update.slot >= layout.al_extents()) {
            return Err(BlockError::Content("it changes a slot that does not exist"));
        }
        Ok(updates)
    }
}

/// Of the first sector, with both checksums in it zero.
fn head_checksum(block: &Block) -> u32 {
    let mut sector = [0; SECTOR];
    sector.copy_from_slice(&block[..SECTOR]);
    sector[block::AT_CRC..block::AT_CRC + 4].fill(0);
    sector[AT_HEAD_CHECKSUM..AT_HEAD_CHECKSUM + 4].fill(0);
    crc32c::crc32c(&sector)
}

fn al_number_of(sequence: u64, ring: u32) -> u64 {
    al_number(0) + sequence % u64::from(ring)
}

fn pack(extent: Option<u32>) -> [u8; 4] {
    extent.unwrap_or(EMPTY).to_le_bytes()
}

fn unpack(number: u32) -> Option<u32> {
    (number != EMPTY).then_some(number)
}

#[cfg(test)]
mod tests;
