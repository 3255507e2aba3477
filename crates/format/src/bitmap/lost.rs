//! A page of the list of blocks of which there is no good copy: those that may be old, and those that
//! only could not be read. It has the place of a bitmap page, in the node's own slot.

use super::page::{AT_BITS, BITS_PER_PAGE, PageAddress, seal_page};
use super::sparse::SparseBitmap;
use crate::block::{BLOCK_LEN, Block, BlockError, get_u16, put};
use std::ops::Range;

const AT_KIND: usize = 45;
const AT_RUNS: usize = 46;

/// All bits: blocks that may be old. Older versions know nothing else.
const OLD: u8 = 0;
/// All bits: blocks that could not be read.
const UNREAD: u8 = 1;
/// No bits, but runs of both.
const RUNS: u8 = 2;

const RUN_LEN: usize = 4;
const MOST_RUNS: usize = (BLOCK_LEN - AT_BITS) / RUN_LEN;
/// In the second half of a run: its blocks could not be read. The rest is its length less one.
const RUN_UNREAD: u16 = 1 << 15;

const _: () = assert!(BITS_PER_PAGE <= 1 << 15);

/// Blocks of which there is no good copy on a disk. No block is in both.
#[derive(Clone, Debug)]
pub struct LostBlocks {
    /// Blocks whose content may be old: not to be looked at until they are written.
    pub old: SparseBitmap,
    /// Blocks that could not be read. Who can read them has what they hold.
    pub unread: SparseBitmap,
}

impl LostBlocks {
    /// None, of a disk of so many blocks.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        Self { old: SparseBitmap::new(blocks), unread: SparseBitmap::new(blocks) }
    }

    /// The bytes of a page. Where both kinds lie in more runs than a page holds, all count as old.
    ///
    /// # Panics
    /// When the list has no such page.
    #[must_use]
    pub fn encode_page(&self, address: &PageAddress) -> Block {
        let blocks = self.old.blocks_of_page(address.page());
        let any = |bits: &SparseBitmap| bits.count_range(blocks.clone()) > 0;
        let (old, unread) = (any(&self.old), any(&self.unread));
        if !unread {
            return self.old.encode_page(address);
        }
        if !old {
            let mut page = self.unread.encode_page(address);
            put(&mut page, AT_KIND, [UNREAD]);
            seal_page(&mut page, address);
            return page;
        }
        let runs = self.runs_of(&blocks);
        if runs.len() > MOST_RUNS {
            let mut all = self.old.clone();
            all.or_assign(&self.unread);
            return all.encode_page(address);
        }
        // Of an empty bitmap, so all but the runs is there.
        let mut page = SparseBitmap::new(self.old.len()).encode_page(address);
        put(&mut page, AT_KIND, [RUNS]);
        put(&mut page, AT_RUNS, u16::try_from(runs.len()).unwrap_or(0).to_le_bytes());
        for (i, (run, unread)) in runs.into_iter().enumerate() {
            let half = |n: u64| u16::try_from(n).unwrap_or(0);
            let (start, len) = (half(run.start - blocks.start), half(run.end - run.start - 1));
            let flag = if unread { RUN_UNREAD } else { 0 };
            put(&mut page, AT_BITS + i * RUN_LEN, start.to_le_bytes());
            put(&mut page, AT_BITS + i * RUN_LEN + 2, (len | flag).to_le_bytes());
        }
        seal_page(&mut page, address);
        page
    }

    fn runs_of(&self, blocks: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut runs = Vec::new();
        for (bits, unread) in [(&self.old, false), (&self.unread, true)] {
            let mut at = blocks.start;
            while at < blocks.end
                && let Some(run) = bits.next_run(at, blocks.end - at)
                && run.start < blocks.end
            {
                at = run.end.min(blocks.end);
                runs.push((run.start..at, unread));
            }
        }
        runs
    }

    /// Takes a page into the list.
    ///
    /// # Errors
    /// [`BlockError`] when its bytes cannot be trusted: then every block of it counts as old.
    ///
    /// # Panics
    /// When the list has no such page.
    pub fn load_page(&mut self, address: &PageAddress, block: &Block) -> Result<(), BlockError> {
        let mut page = SparseBitmap::new(self.old.len());
        if let Err(error) = page.load_page(address, block) {
            self.lose_page(address.page());
            return Err(error);
        }
        match block[AT_KIND] {
            OLD => self.old.load_page(address, block),
            UNREAD => self.unread.load_page(address, block),
            RUNS => {
                let loaded = self.load_runs(address, block);
                if loaded.is_err() {
                    self.lose_page(address.page());
                }
                loaded
            }
            _ => {
                self.lose_page(address.page());
                Err(BlockError::Content("it lists unreadable blocks in an unknown way"))
            }
        }
    }

    fn load_runs(&mut self, address: &PageAddress, block: &Block) -> Result<(), BlockError> {
        let page = address.page();
        let blocks = self.old.blocks_of_page(page);
        let count = usize::from(get_u16(block, AT_RUNS));
        let wrong = BlockError::Content("it lists unreadable blocks that it cannot have");
        if count > MOST_RUNS {
            return Err(wrong);
        }
        for at in (0..count).map(|i| AT_BITS + i * RUN_LEN) {
            let (start, len) = (get_u16(block, at), get_u16(block, at + 2));
            let start = blocks.start + u64::from(start);
            let run = start..start + u64::from(len & !RUN_UNREAD) + 1;
            if run.end > blocks.end {
                return Err(wrong);
            }
            let bits = if len & RUN_UNREAD == 0 { &mut self.old } else { &mut self.unread };
            bits.set_range(run);
        }
        // What may be old is not to be looked at, whatever else is said of it.
        for block in blocks.filter(|block| self.old.get(*block)).collect::<Vec<_>>() {
            self.unread.clear_range(block..block + 1);
        }
        self.old.mark_clean(page);
        self.unread.mark_clean(page);
        Ok(())
    }

    /// A page could not be read: every block of it counts as old.
    ///
    /// # Panics
    /// When the list has no such page.
    pub fn lose_page(&mut self, page: u32) {
        let blocks = self.old.blocks_of_page(page);
        self.unread.clear_range(blocks);
        self.old.lose_page(page);
    }

    /// Takes the numbers of pages that are not on disk as they are here, about `limit` of them.
    pub fn take_dirty_pages(&mut self, limit: usize) -> Vec<u32> {
        let mut pages = self.old.take_dirty_pages(limit);
        pages.extend(self.unread.take_dirty_pages(limit));
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.old.count() + self.unread.count()
    }
}

#[cfg(test)]
mod tests {
    use super::{AT_KIND, BITS_PER_PAGE, LostBlocks};
    use crate::layout::{MetaLayout, Placement};
    use crate::{Block, BlockError, PageAddress};
    use holdfast_units::{NodeId, ResourceId};

    const BLOCKS: u64 = 2 * BITS_PER_PAGE - 5;

    fn address(page: u32) -> PageAddress {
        let placement = Placement::External { base: 0 };
        let layout = MetaLayout::new(BLOCKS * 4096, 64, 8, 8, placement).unwrap();
        PageAddress::new(ResourceId([3; 16]), &layout, NodeId::new(1).unwrap(), page)
    }

    fn list(old: &[u64], unread: &[u64]) -> LostBlocks {
        let mut list = LostBlocks::new(BLOCKS);
        old.iter().for_each(|block| _ = list.old.set_range(*block..block + 1));
        unread.iter().for_each(|block| _ = list.unread.set_range(*block..block + 1));
        list
    }

    /// What the pages of a list say.
    fn again(list: &LostBlocks) -> (Vec<u64>, Vec<u64>) {
        let mut found = LostBlocks::new(BLOCKS);
        for page in 0..2 {
            found.load_page(&address(page), &list.encode_page(&address(page))).unwrap();
        }
        assert!(found.take_dirty_pages(10).is_empty(), "it is as on disk");
        (found.old.runs().flatten().collect(), found.unread.runs().flatten().collect())
    }

    #[test]
    fn both_kinds_come_back_as_they_were() {
        let last = BLOCKS - 1;
        let cases: [(&[u64], &[u64]); 5] = [
            (&[], &[]),
            (&[1, 2, BITS_PER_PAGE, last], &[]),
            (&[], &[0, 1, 7, last]),
            (&[3, 4, 5, last], &[0, 1, 2, 6, BITS_PER_PAGE - 1, last - 1]),
            (&[5], &[BITS_PER_PAGE + 1]),
        ];
        for (old, unread) in cases {
            assert_eq!(again(&list(old, unread)), (old.to_vec(), unread.to_vec()));
        }
        let mut all = list(&[], &[]);
        all.old.set_range(0..BITS_PER_PAGE - 1);
        all.unread.set_range(BITS_PER_PAGE - 1..BLOCKS);
        assert_eq!(again(&all).0.len() as u64, BITS_PER_PAGE - 1);
    }

    #[test]
    fn what_may_be_old_alone_is_a_page_of_any_bitmap() {
        let list = list(&[1, 9], &[]);
        let page = list.encode_page(&address(0));
        assert_eq!(page, list.old.encode_page(&address(0)));
        assert_eq!(page[AT_KIND..64], [0; 19]);
        let page = super::tests::list(&[1], &[2, 3]).encode_page(&address(0));
        assert_eq!(page[AT_KIND..48], [2, 2, 0]);
        assert_eq!(page[64..72], [1, 0, 0, 0, 2, 0, 1, 0x80]);
    }

    #[test]
    fn too_many_runs_of_both_are_all_old() {
        let unread: Vec<u64> = (0..BITS_PER_PAGE).step_by(4).collect();
        assert_eq!(again(&list(&[], &unread)), (vec![], unread.clone()));
        let (old, none) = again(&list(&[1, BITS_PER_PAGE + 1], &unread));
        assert_eq!((old.len(), none.len()), (unread.len() + 2, 0));
    }

    fn edit(mut page: Block, at: usize, byte: u8) -> Block {
        page[at] = byte;
        super::seal_page(&mut page, &address(1));
        page
    }

    #[test]
    fn a_page_that_cannot_be_used_is_all_old() {
        let page = list(&[BLOCKS - 1], &[BLOCKS - 2]).encode_page(&address(1));
        // A kind that is not known, too many runs, one past the end, and one that is not whole.
        let torn = {
            let mut page = page;
            page[100] = 1;
            page
        };
        for broken in [edit(page, 45, 3), edit(page, 47, 9), edit(page, 66, 4), torn] {
            let mut found = list(&[], &[BITS_PER_PAGE]);
            let error = found.load_page(&address(1), &broken).unwrap_err();
            assert!(
                matches!(error, BlockError::Content(_) | BlockError::Checksum { .. }),
                "{error}"
            );
            assert_eq!((found.old.count(), found.unread.count()), (BITS_PER_PAGE - 5, 0));
        }
    }

    #[test]
    fn no_block_is_of_both_kinds() {
        let mut both = list(&[5], &[6]);
        both.unread.set_range(5..7);
        assert_eq!(again(&both), (vec![5], vec![6]));
    }
}
