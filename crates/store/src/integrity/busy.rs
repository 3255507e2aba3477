//! Who changes which blocks of the disk just now.

use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks that have one owner. No two ranges overlap.
#[derive(Default)]
pub(super) struct Busy(BTreeMap<u64, u64>);

impl Busy {
    pub(super) fn overlaps(&self, blocks: &Range<u64>) -> bool {
        // The last one that begins before the end reaches farthest.
        self.0.range(..blocks.end).next_back().is_some_and(|(_, end)| *end > blocks.start)
    }

    pub(super) fn take(&mut self, blocks: &Range<u64>) {
        if !blocks.is_empty() {
            debug_assert!(!self.overlaps(blocks), "blocks have one owner");
            self.0.insert(blocks.start, blocks.end);
        }
    }

    pub(super) fn give_back(&mut self, blocks: &Range<u64>) {
        if !blocks.is_empty() {
            self.0.remove(&blocks.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Busy;

    #[test]
    fn overlaps_are_found() {
        let mut busy = Busy::default();
        busy.take(&(10..20));
        busy.take(&(30..31));
        busy.take(&(5..5));
        for (range, expected) in
            [(0..10, false), (0..11, true), (12..13, true), (19..25, true), (20..30, false)]
        {
            assert_eq!(busy.overlaps(&range), expected, "{range:?}");
        }
        assert!(busy.overlaps(&(0..100)) && !busy.overlaps(&(31..32)));
        busy.give_back(&(10..20));
        assert!(!busy.overlaps(&(0..30)));
    }
}
