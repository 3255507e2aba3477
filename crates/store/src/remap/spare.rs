//! A spare in use: its table in memory, which slots are taken, and the rounds that write changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_format::remap::{
    ENTRIES_PER_BLOCK, Entry, EntryState, SpareHeader, SpareLayout, TableBlock,
};

use crate::{Disk, DiskOp};

/// What a spare is on.
pub(super) enum Backing {
    /// A disk of its own.
    Disk(Box<Disk>),
    /// A part of the main disk, from this offset.
    Region(u64),
}

/// A spare of a disk.
pub(super) struct Spare {
    pub(super) header: SpareHeader,
    pub(super) backing: Backing,
    pub(super) table: Table,
    /// Something was written to it since it was flushed.
    pub(super) dirty: bool,
    /// It is to be removed: it gets nothing new.
    pub(super) leaving: bool,
    /// What waits for room in the disk.
    pub(super) backlog: VecDeque<(usize, DiskOp)>,
}

impl Spare {
    pub(super) const fn layout(&self) -> &SpareLayout {
        &self.header.layout
    }
}

/// A block of the table; none of its slots is in use when it has no entries.
#[derive(Default)]
struct Page {
    sequence: u64,
    entries: Option<Box<TableBlock>>,
}

/// How many slots are used for what.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Counts {
    pub(super) mapped: u64,
    pub(super) lost: u64,
    pub(super) bad: u64,
}

impl Counts {
    const fn of(&mut self, state: EntryState) -> Option<&mut u64> {
        match state {
            EntryState::Free => None,
            EntryState::Mapped => Some(&mut self.mapped),
            EntryState::Lost => Some(&mut self.lost),
            EntryState::BadSlot => Some(&mut self.bad),
        }
    }

    pub(super) const fn sum(self) -> u64 {
        self.mapped + self.lost + self.bad
    }
}

/// The table of a spare, as it is on disk or will be after the round that is under way.
pub(super) struct Table {
    slots: u32,
    pages: Vec<Page>,
    /// A bit for each slot that cannot be taken.
    taken: Vec<u64>,
    taken_count: u32,
    /// Where the search for a free slot goes on.
    cursor: u32,
    counts: Counts,
    /// Blocks of which one copy could not be written.
    weak: BTreeSet<u32>,
    /// Changes for the next round, and the tasks that wait for it.
    queue: Vec<(u32, Entry)>,
    queue_waiters: Vec<usize>,
    pub(super) round: Option<Round>,
}

/// Changed blocks on their way to both copies.
pub(super) struct Round {
    pub(super) blocks: Vec<(u32, Bytes)>,
    /// Which copy is being written.
    pub(super) copy: usize,
    pub(super) flushing: bool,
    /// How many blocks of this copy were begun, and how many of them are under way.
    pub(super) begun: usize,
    pub(super) running: usize,
    /// By copy, the blocks that could not be written.
    pub(super) failed: [BTreeSet<u32>; 2],
    pub(super) waiters: Vec<usize>,
}

impl Table {
    pub(super) fn new(layout: &SpareLayout) -> Self {
        let (slots, blocks) = (layout.slots(), layout.table_blocks() as usize);
        let mut pages = Vec::new();
        pages.resize_with(blocks, Page::default);
        Self {
            slots,
            pages,
            taken: vec![0; (slots as usize).div_ceil(64)],
            taken_count: 0,
            cursor: 0,
            counts: Counts::default(),
            weak: BTreeSet::new(),
            queue: Vec::new(),
            queue_waiters: Vec::new(),
            round: None,
        }
    }

    /// Takes over a block that was read.
    pub(super) fn load(&mut self, number: u32, block: TableBlock) {
        let first = number * ENTRIES_PER_BLOCK;
        let mut used = false;
        for (slot, entry) in (first..).zip(&block.entries) {
            if let Some(count) = self.counts.of(entry.state) {
                *count += 1;
                used = true;
                self.take_this(slot);
            }
        }
        let page = &mut self.pages[number as usize];
        page.sequence = block.sequence;
        page.entries = used.then(|| Box::new(block));
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    /// How many slots can be taken.
    pub(super) const fn free(&self) -> u32 {
        self.slots - self.taken_count
    }

    pub(super) fn weak_blocks(&self) -> u64 {
        self.weak.len() as u64
    }

    pub(super) fn is_weak(&self, slot: u32) -> bool {
        self.weak.contains(&(slot / ENTRIES_PER_BLOCK))
    }

    /// Whether a slot can be taken whose block of the table is not weak.
    pub(super) fn has_strong(&self) -> bool {
        let is_free = |slot: &u32| self.taken[*slot as usize / 64] >> (slot % 64) & 1 == 0;
        let of_block = |block: &u32| {
            let first = block * ENTRIES_PER_BLOCK;
            first..(first + ENTRIES_PER_BLOCK).min(self.slots)
        };
        let weak = self.weak.iter().flat_map(of_block).filter(is_free).count();
        self.free() as usize > weak
    }

    pub(super) fn make_weak(&mut self, block: u32) {
        self.weak.insert(block);
    }

    /// All entries that are not free, with their slots.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, Entry)> + '_ {
        self.pages
            .iter()
            .zip(0_u32..)
            .flat_map(|(page, number)| {
                let entries = page.entries.as_deref().map(|block| &block.entries[..]);
                let first = number * ENTRIES_PER_BLOCK;
                (first..).zip(entries.unwrap_or_default()).map(|(slot, entry)| (slot, *entry))
            })
            .filter(|(_, entry)| entry.state != EntryState::Free)
    }

    fn take_this(&mut self, slot: u32) {
        let word = &mut self.taken[slot as usize / 64];
        let bit = 1 << (slot % 64);
        if *word & bit == 0 {
            *word |= bit;
            self.taken_count += 1;
        }
    }

    /// A slot that nobody uses. Those whose block of the table is weak only if `weak` says so.
    pub(super) fn take(&mut self, weak: bool) -> Option<u32> {
        if self.free() == 0 {
            return None;
        }
        let mut slot = self.cursor;
        let mut left = self.slots;
        while left > 0 {
            if slot >= self.slots {
                slot = 0;
            }
            let word = self.taken[slot as usize / 64];
            let skip = if word == u64::MAX && slot.is_multiple_of(64) {
                64.min(self.slots - slot)
            } else if word >> (slot % 64) & 1 == 1 || (!weak && self.is_weak(slot)) {
                1
            } else {
                self.take_this(slot);
                self.cursor = slot + 1;
                return Some(slot);
            };
            slot += skip;
            left = left.saturating_sub(skip);
        }
        None
    }

    /// A slot that was taken can be taken again.
    pub(super) fn give_back(&mut self, slot: u32) {
        let word = &mut self.taken[slot as usize / 64];
        let bit = 1 << (slot % 64);
        if *word & bit != 0 {
            *word &= !bit;
            self.taken_count -= 1;
        }
    }

    /// Changes for the next round, on behalf of a task.
    pub(super) fn queue(&mut self, changes: impl IntoIterator<Item = (u32, Entry)>, task: usize) {
        self.queue.extend(changes);
        self.queue_waiters.push(task);
    }

    /// Makes a round of all changes that are queued, if there are some and no round is under way.
    pub(super) fn begin_round(
        &mut self,
        header: &SpareHeader,
        bytes_of: impl Fn(&[u8]) -> Bytes,
    ) -> bool {
        if self.round.is_some() || self.queue_waiters.is_empty() {
            return false;
        }
        let mut changed: BTreeMap<u32, Bytes> = BTreeMap::new();
        for (slot, entry) in std::mem::take(&mut self.queue) {
            let number = slot / ENTRIES_PER_BLOCK;
            let page = &mut self.pages[number as usize];
            let block = page.entries.get_or_insert_with(Box::default);
            let old = &mut block.entries[(slot % ENTRIES_PER_BLOCK) as usize];
            if let Some(count) = self.counts.of(old.state) {
                *count -= 1;
            }
            if let Some(count) = self.counts.of(entry.state) {
                *count += 1;
            }
            *old = entry;
            changed.insert(number, Bytes::new());
        }
        for (number, bytes) in &mut changed {
            let page = &mut self.pages[*number as usize];
            page.sequence += 1;
            let block = page.entries.get_or_insert_with(Box::default);
            block.sequence = page.sequence;
            *bytes = bytes_of(&block.encode(*number, header.resource, header.spare));
        }
        self.round = Some(Round {
            blocks: changed.into_iter().collect(),
            copy: 0,
            flushing: false,
            begun: 0,
            running: 0,
            failed: [BTreeSet::new(), BTreeSet::new()],
            waiters: std::mem::take(&mut self.queue_waiters),
        });
        true
    }

    /// Ends the round. Who waited for it, and whether every block is in one copy at least.
    pub(super) fn end_round(&mut self) -> (Vec<usize>, bool) {
        let Some(round) = self.round.take() else { return (Vec::new(), true) };
        let [a, b] = &round.failed;
        for (number, _) in &round.blocks {
            if a.contains(number) || b.contains(number) {
                self.weak.insert(*number);
            } else {
                self.weak.remove(number);
            }
        }
        let whole = a.is_disjoint(b);
        (round.waiters, whole)
    }

    /// Everybody who waits for a round, when there will be none any more.
    pub(super) fn abandon(&mut self) -> Vec<usize> {
        self.queue.clear();
        let mut waiters = std::mem::take(&mut self.queue_waiters);
        waiters.extend(self.round.take().into_iter().flat_map(|round| round.waiters));
        waiters
    }
}
