//! A spare in use: its table in memory, which slots are taken, and the rounds that write changes.

use std::collections::{BTreeSet, VecDeque};

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
    /// Something was written to it since a flush of it was begun.
    pub(super) dirty: bool,
    /// Flushes of it that are under way.
    pub(super) flushing: usize,
    /// It comes or goes: it gets nothing new.
    pub(super) leaving: bool,
    /// One copy of its header could not be written.
    pub(super) weak_header: bool,
    /// What waits for room in the disk.
    pub(super) backlog: VecDeque<(usize, DiskOp)>,
}

impl Spare {
    pub(super) const fn layout(&self) -> &SpareLayout {
        &self.header.layout
    }

    /// Blocks of its metadata that are durable once only.
    pub(super) fn weak_blocks(&self) -> u64 {
        self.table.weak_blocks() + u64::from(self.weak_header)
    }

    /// Whether something that was written to it may not be durable yet.
    pub(super) const fn needs_flush(&self) -> bool {
        self.dirty || self.flushing > 0
    }
}

/// A block of the table; none of its slots is in use when it has no entries.
#[derive(Default)]
struct Page {
    sequence: u64,
    /// By how much a copy that is behind may have a lower one, and the same entries.
    ahead: u64,
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
    /// The sum of the sequences of all blocks, with those of the round that is under way.
    writes: u64,
    /// What copies that are behind, and have the same entries, may be short of that.
    ahead: u64,
    /// The same of what is durable.
    durable_writes: u64,
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
    pub(super) pass: Pass,
    pub(super) flushing: bool,
    /// How many blocks of this copy were begun, and how many of them are under way.
    pub(super) begun: usize,
    pub(super) running: usize,
    /// By copy, the blocks that could not be written.
    pub(super) failed: [BTreeSet<u32>; 2],
    pub(super) waiters: Vec<usize>,
}

/// What a round writes: this copy, and then the other one; and where one of them could not be written,
/// the good one once more, with the next sequence. The other one, whatever of this round it has, is so
/// far behind that it is never taken for the newest when the good one is torn by a later round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pass {
    First,
    Second,
    GetAhead,
}

impl Round {
    fn new(blocks: Vec<(u32, Bytes)>, waiters: Vec<usize>) -> Self {
        Self {
            blocks,
            pass: Pass::First,
            flushing: false,
            begun: 0,
            running: 0,
            failed: [BTreeSet::new(), BTreeSet::new()],
            waiters,
        }
    }

    /// Which copy of this block is written now.
    pub(super) fn copy_of(&self, block: u32) -> usize {
        match self.pass {
            Pass::First => 0,
            Pass::Second => 1,
            Pass::GetAhead => usize::from(self.failed[0].contains(&block)),
        }
    }
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
            writes: 0,
            ahead: 0,
            durable_writes: 0,
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
        self.writes += block.sequence;
        page.entries = used.then(|| Box::new(block));
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    /// How often blocks of the table were written: the sum of their sequences, as far as they are durable,
    /// and of that what is found whichever copy of a block counts. It only grows.
    pub(super) const fn durable_writes(&self) -> u64 {
        self.durable_writes
    }

    /// The same of what was read, be it durable or not.
    pub(super) const fn writes(&self) -> u64 {
        self.writes
    }

    /// All that was read or written is durable now.
    pub(super) const fn settled(&mut self) {
        self.durable_writes = self.writes - self.ahead;
    }

    /// A copy of a block whose sequence is lower by so much stays so.
    pub(super) fn stays_behind(&mut self, number: u32, by: u64) {
        self.pages[number as usize].ahead += by;
        self.ahead += by;
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
        let mut changed: BTreeSet<u32> = BTreeSet::new();
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
            changed.insert(number);
        }
        for number in &changed {
            self.ahead -= std::mem::take(&mut self.pages[*number as usize].ahead);
        }
        let blocks = self.encode_next(changed, header, bytes_of);
        self.round = Some(Round::new(blocks, std::mem::take(&mut self.queue_waiters)));
        true
    }

    /// These blocks as they are now, with their next sequences.
    fn encode_next(
        &mut self,
        numbers: impl IntoIterator<Item = u32>,
        header: &SpareHeader,
        bytes_of: impl Fn(&[u8]) -> Bytes,
    ) -> Vec<(u32, Bytes)> {
        let encode = |number: u32| {
            let page = &mut self.pages[number as usize];
            page.sequence += 1;
            self.writes += 1;
            let block = page.entries.get_or_insert_with(Box::default);
            block.sequence = page.sequence;
            (number, bytes_of(&block.encode(number, header.resource, header.spare)))
        };
        numbers.into_iter().map(encode).collect()
    }

    /// A pass of the round was written and flushed. Whether another one follows.
    pub(super) fn next_pass(
        &mut self,
        header: &SpareHeader,
        bytes_of: impl Fn(&[u8]) -> Bytes,
    ) -> bool {
        let Some(round) = &mut self.round else { return false };
        let [a, b] = &round.failed;
        match round.pass {
            Pass::First => {
                (round.pass, round.begun) = (Pass::Second, 0);
                true
            }
            Pass::Second => {
                for (number, _) in &round.blocks {
                    if a.contains(number) || b.contains(number) {
                        self.weak.insert(*number);
                    } else {
                        self.weak.remove(number);
                    }
                }
                let failed = [a.clone(), b.clone()];
                self.get_ahead(header, failed, bytes_of)
            }
            Pass::GetAhead => false,
        }
    }

    /// Has the good copies of blocks one copy of which could not be written get ahead of those, before
    /// there is a round. Whether there is something to do.
    pub(super) fn begin_getting_ahead(
        &mut self,
        header: &SpareHeader,
        failed: [BTreeSet<u32>; 2],
        bytes_of: impl Fn(&[u8]) -> Bytes,
    ) -> bool {
        self.round = Some(Round::new(Vec::new(), Vec::new()));
        let any = self.get_ahead(header, failed, bytes_of);
        if !any {
            self.round = None;
        }
        any
    }

    fn get_ahead(
        &mut self,
        header: &SpareHeader,
        failed: [BTreeSet<u32>; 2],
        bytes_of: impl Fn(&[u8]) -> Bytes,
    ) -> bool {
        let once: Vec<u32> = failed[0].symmetric_difference(&failed[1]).copied().collect();
        if once.is_empty() {
            return false;
        }
        once.iter().for_each(|number| self.stays_behind(*number, 1));
        let blocks = self.encode_next(once, header, bytes_of);
        let Some(round) = &mut self.round else { return false };
        *round = Round {
            blocks,
            pass: Pass::GetAhead,
            failed,
            waiters: std::mem::take(&mut round.waiters),
            ..Round::new(Vec::new(), Vec::new())
        };
        true
    }

    /// Ends the round. Who waited for it, and whether every block is in one copy at least.
    pub(super) fn end_round(&mut self) -> (Vec<usize>, bool) {
        let Some(round) = self.round.take() else { return (Vec::new(), true) };
        let [a, b] = &round.failed;
        (round.waiters, a.is_disjoint(b))
    }

    /// Everybody who waits for a round, when there will be none any more.
    pub(super) fn abandon(&mut self) -> Vec<usize> {
        self.queue.clear();
        let mut waiters = std::mem::take(&mut self.queue_waiters);
        waiters.extend(self.round.take().into_iter().flat_map(|round| round.waiters));
        waiters
    }
}
