//! What is known of the sums: which pages can be believed on disk, which are complete, and those that
//! are in memory. No I/O.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use holdfast_format::checksums::{BLOCKS_PER_PAGE, ChecksumState, PAGES_PER_GROUP, Sums, zero_sum};

/// So many pages are kept in memory: 64 MiB, for 63 GiB of the disk.
const MAX_PAGES: usize = 16_384;

/// Multiplies; page numbers are numbers of this machine, nobody chooses them to collide.
#[derive(Default)]
pub(super) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// The sums of a page in memory.
pub(super) struct Page {
    pub(super) sums: Box<Sums>,
    /// Blocks that have a sum.
    filled: u64,
    /// The file has something else.
    pub(super) dirty: bool,
    /// It is being written to the file.
    pub(super) writing: bool,
    /// Looked at since it was last considered for being dropped.
    used: bool,
    /// When it was last written to, in ticks.
    pub(super) written: u32,
}

/// What a write leaves in its blocks.
#[derive(Debug)]
pub(super) enum Effect {
    /// This sum, in the only block.
    One(u32),
    /// These sums.
    Many(Box<[u32]>),
    /// Zeros.
    Zeroes,
    /// Nobody knows.
    Unknown,
}

pub(super) struct Table {
    /// How many blocks have sums.
    blocks: u64,
    /// By group; a bit: the page on disk may be taken for true after a crash.
    pub(super) states: Vec<ChecksumState>,
    /// By page, 64 in a word: every block has a sum, in memory or, if it is not there, in the file.
    complete: Vec<u64>,
    complete_count: u64,
    pages: HashMap<u64, Page, BuildHasherDefault<PageHasher>>,
    /// The pages in memory, in the order in which they are considered for being dropped.
    order: VecDeque<u64>,
    /// Complete, and not to be taken for true after a crash.
    pub(super) open: BTreeSet<u64>,
    pub(super) tick: u32,
}

pub(super) fn page_of(block: u64) -> u64 {
    block / BLOCKS_PER_PAGE
}

/// The pages that these blocks are in.
pub(super) fn pages_of(blocks: &Range<u64>) -> Range<u64> {
    if blocks.is_empty() { 0..0 } else { page_of(blocks.start)..page_of(blocks.end - 1) + 1 }
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl Table {
    /// What the file says.
    pub(super) fn new(blocks: u64, mut states: Vec<ChecksumState>) -> Self {
        let groups = index(blocks.div_ceil(BLOCKS_PER_PAGE).div_ceil(PAGES_PER_GROUP));
        states.resize_with(groups, ChecksumState::blank);
        let mut table = Self {
            blocks,
            states,
            complete: Vec::new(),
            complete_count: 0,
            pages: HashMap::default(),
            order: VecDeque::new(),
            open: BTreeSet::new(),
            // Of those that were never written the age is at least that of the oldest.
            tick: 1,
        };
        let count = index(table.page_count());
        table.complete =
            table.states.iter().flat_map(|state| state.words.iter().copied()).collect();
        table.complete.resize(count.div_ceil(64), 0);
        if let Some(last) = table.complete.last_mut()
            && !count.is_multiple_of(64)
        {
            *last &= (1 << (count % 64)) - 1;
        }
        table.complete_count = table.complete.iter().map(|word| u64::from(word.count_ones())).sum();
        table
    }

    pub(super) const fn page_count(&self) -> u64 {
        self.blocks.div_ceil(BLOCKS_PER_PAGE)
    }

    pub(super) const fn complete_count(&self) -> u64 {
        self.complete_count
    }

    /// The blocks of a page that the disk has.
    pub(super) fn blocks_of(&self, page: u64) -> Range<u64> {
        page * BLOCKS_PER_PAGE..((page + 1) * BLOCKS_PER_PAGE).min(self.blocks)
    }

    pub(super) fn is_complete(&self, page: u64) -> bool {
        self.complete[index(page / 64)] >> (page % 64) & 1 == 1
    }

    fn set_complete(&mut self, page: u64, complete: bool) {
        if self.is_complete(page) != complete {
            self.complete[index(page / 64)] ^= 1 << (page % 64);
            let count = &mut self.complete_count;
            *count = if complete { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    /// The first page from `from` on that is not complete, then from the start.
    pub(super) fn next_incomplete(&self, from: u64) -> Option<u64> {
        let all = self.page_count();
        if self.complete_count == all {
            return None;
        }
        let find = |range: Range<u64>| {
            let mut at = range.start;
            while at < range.end {
                let left = !self.complete[index(at / 64)] >> (at % 64);
                if left != 0 {
                    return Some(at + u64::from(left.trailing_zeros()))
                        .filter(|at| *at < range.end);
                }
                at = (at / 64 + 1) * 64;
            }
            None
        };
        find(from.min(all)..all).or_else(|| find(0..from.min(all)))
    }

    pub(super) fn is_marked(&self, page: u64) -> bool {
        let (group, within) = (index(page / PAGES_PER_GROUP), page % PAGES_PER_GROUP);
        self.states[group].words[index(within / 64)] >> (within % 64) & 1 == 1
    }

    /// Notes what the file says, or will say.
    pub(super) fn set_marked(&mut self, page: u64, marked: bool) {
        if self.is_marked(page) != marked {
            let (group, within) = (index(page / PAGES_PER_GROUP), page % PAGES_PER_GROUP);
            self.states[group].words[index(within / 64)] ^= 1 << (within % 64);
        }
        if marked || !self.is_complete(page) {
            self.open.remove(&page);
        } else {
            self.open.insert(page);
        }
    }

    pub(super) fn has(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    pub(super) fn get_mut(&mut self, page: u64) -> Option<&mut Page> {
        self.pages.get_mut(&page)
    }

    /// The sums of a page, when they are in memory.
    pub(super) fn look(&mut self, page: u64) -> Option<&Sums> {
        let page = self.pages.get_mut(&page)?;
        page.used = true;
        Some(&page.sums)
    }

    /// A page came from the file.
    pub(super) fn loaded(&mut self, page: u64, sums: Box<Sums>) {
        if !self.has(page) && self.is_complete(page) {
            let filled = sums.iter().filter(|sum| **sum != 0).count() as u64;
            self.add(
                page,
                Page { sums, filled, dirty: false, writing: false, used: true, written: 0 },
            );
        }
    }

    fn add(&mut self, number: u64, page: Page) {
        let mut chances = self.order.len() * 2;
        while self.pages.len() >= MAX_PAGES && chances > 0 {
            chances -= 1;
            let Some(oldest) = self.order.pop_front() else { break };
            let complete = self.is_complete(oldest);
            let Some(found) = self.pages.get_mut(&oldest) else { continue };
            if found.used || found.writing || (complete && found.dirty) {
                found.used = false;
                self.order.push_back(oldest);
            } else {
                self.pages.remove(&oldest);
            }
        }
        self.pages.insert(number, page);
        self.order.push_back(number);
    }

    /// Nothing is known of this page any more.
    pub(super) fn forget(&mut self, page: u64) {
        self.set_complete(page, false);
        self.open.remove(&page);
        if self.pages.remove(&page).is_some() {
            self.order.retain(|other| *other != page);
        }
    }

    /// These blocks were written to. Their page is not marked.
    pub(super) fn changed(&mut self, blocks: &Range<u64>, effect: &Effect) {
        for page in pages_of(blocks) {
            if matches!(effect, Effect::Unknown) && !self.has(page) && !self.is_complete(page) {
                continue;
            }
            let own = self.blocks_of(page);
            let part = own.start.max(blocks.start)..own.end.min(blocks.end);
            let sum_of = |block: u64| match effect {
                Effect::One(sum) => *sum,
                Effect::Many(sums) => sums[index(block - blocks.start)],
                Effect::Zeroes => zero_sum(block),
                Effect::Unknown => 0,
            };
            self.fill(page, part.clone().map(sum_of), part, true);
        }
    }

    /// These blocks were read: what has no sum gets it.
    pub(super) fn built(&mut self, blocks: Range<u64>, sums: impl Iterator<Item = u32>) {
        self.fill(page_of(blocks.start), sums, blocks, false);
    }

    fn fill(
        &mut self,
        number: u64,
        sums: impl Iterator<Item = u32>,
        blocks: Range<u64>,
        new: bool,
    ) {
        if !self.has(number) {
            debug_assert!(
                !self.is_complete(number) || blocks == self.blocks_of(number),
                "sums that are in the file only would be lost"
            );
            let sums = Box::new([0; 1008]);
            let (dirty, writing) = (true, false);
            self.add(number, Page { sums, filled: 0, dirty, writing, used: true, written: 0 });
        }
        let (own, tick) = (self.blocks_of(number), self.tick);
        let Some(page) = self.pages.get_mut(&number) else { return };
        for (block, sum) in blocks.zip(sums) {
            let place = &mut page.sums[index(block - own.start)];
            if !new && *place != 0 {
                continue;
            }
            page.filled -= u64::from(*place != 0);
            page.filled += u64::from(sum != 0);
            *place = sum;
        }
        (page.dirty, page.used) = (true, true);
        if new {
            page.written = tick;
        }
        let complete = page.filled == own.end - own.start;
        self.set_complete(number, complete);
        if complete {
            debug_assert!(!self.is_marked(number), "it was unmarked before it was written to");
            self.open.insert(number);
        } else {
            self.open.remove(&number);
        }
    }

    /// When an open page was last written to; 0 if that is not known.
    pub(super) fn written(&self, page: u64) -> u32 {
        self.pages.get(&page).map_or(0, |page| page.written)
    }

    /// The disk has become larger. The page that lacks sums because of it, if it was marked.
    pub(super) fn grow(&mut self, blocks: u64) -> Option<u64> {
        if blocks <= self.blocks {
            return None;
        }
        let cut = page_of(self.blocks);
        let marked = !self.blocks.is_multiple_of(BLOCKS_PER_PAGE) && self.is_marked(cut);
        if !self.blocks.is_multiple_of(BLOCKS_PER_PAGE) {
            self.forget(cut);
        }
        self.blocks = blocks;
        self.complete.resize(index(self.page_count().div_ceil(64)), 0);
        let groups = index(self.page_count().div_ceil(PAGES_PER_GROUP));
        self.states.resize_with(groups.max(self.states.len()), ChecksumState::blank);
        marked.then_some(cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_complete_when_each_block_has_a_sum_and_open_until_it_is_marked() {
        let mut table = Table::new(1010, vec![ChecksumState::blank()]);
        assert_eq!((table.page_count(), table.next_incomplete(1)), (2, Some(1)));
        table.changed(&(0..1009), &Effect::Zeroes);
        assert!(table.is_complete(0) && !table.is_complete(1));
        assert_eq!(table.next_incomplete(0), Some(1));
        table.built(1008..1010, [7, 7].into_iter());
        assert!(table.is_complete(1) && table.next_incomplete(0).is_none());
        let last = &table.look(1).unwrap()[..3];
        assert_eq!(last, [zero_sum(1008), 7, 0], "what was written is newer than what was read");
        assert_eq!(table.open.iter().copied().collect::<Vec<_>>(), [0, 1]);
        table.set_marked(1, true);
        assert!(table.is_marked(1) && !table.open.contains(&1));
        table.set_marked(1, false);
        table.changed(&(1008..1009), &Effect::Unknown);
        assert!(!table.is_complete(1) && !table.open.contains(&1));
    }

    #[test]
    fn what_the_file_marks_is_complete_and_bits_behind_the_end_are_not_looked_at() {
        let mut state = ChecksumState::blank();
        state.words.fill(u64::MAX);
        let mut table = Table::new(70 * 1008 + 5, vec![state]);
        assert_eq!((table.complete_count(), table.page_count()), (71, 71));
        table.grow(72 * 1008);
        assert_eq!((table.complete_count(), table.page_count()), (70, 72));
        assert_eq!(table.next_incomplete(0), Some(70), "the last page was cut, now it has more");
    }

    #[test]
    fn memory_is_bounded_and_open_pages_stay() {
        let count = MAX_PAGES as u64 + 100;
        let mut table = Table::new(count * 1008, vec![ChecksumState::blank()]);
        table.changed(&(0..1008), &Effect::Zeroes);
        for page in 1..count {
            table.changed(&(page * 1008..page * 1008 + 1), &Effect::One(page as u32));
        }
        assert_eq!(table.pages.len(), MAX_PAGES);
        assert!(table.has(0), "nobody else has it");
    }
}
