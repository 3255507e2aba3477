//! Blocks of a disk of which there is no good copy on it.

use crate::ranges::RangeSet;
use holdfast_format::journal::{LossList, MAX_LOSSES};
use holdfast_units::{BLOCK_SIZE, ByteRange, ResourceId};

/// Why blocks of a disk have no good copy on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// They cannot be read.
    Unread,
    /// They are not what was written.
    Old,
}

/// Blocks of which there is no good copy on a disk. No block is in both.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Losses {
    /// Blocks that are not what was written: not to be looked at until they are written.
    pub old: RangeSet,
    /// Blocks that could not be read. Who can read them has what they hold.
    pub unread: RangeSet,
}

impl Losses {
    /// A part of the disk has no good copy.
    pub fn lose(&mut self, range: ByteRange, seen: Seen) {
        match seen {
            Seen::Old => {
                self.unread.remove(range);
                self.old.insert(range);
                if self.old.len() > MAX_LOSSES {
                    self.old.coarsen(MAX_LOSSES / 2);
                    self.old.iter().for_each(|old| self.unread.remove(old));
                }
            }
            Seen::Unread if !self.old.overlaps(range) => {
                self.unread.insert(range);
                if self.unread.len() > MAX_LOSSES {
                    self.unread.coarsen(MAX_LOSSES / 2);
                    self.old.iter().for_each(|old| self.unread.remove(old));
                }
            }
            Seen::Unread => {}
        }
    }

    /// What is in another list, too, has no good copy.
    pub fn extend(&mut self, other: &Self) {
        other.old.iter().for_each(|range| self.lose(range, Seen::Old));
        for range in other.unread.iter().flat_map(ByteRange::blocks) {
            self.lose(ByteRange::of_blocks(range..range + 1), Seen::Unread);
        }
    }

    /// A part of the disk was written.
    pub fn stored(&mut self, range: ByteRange) {
        self.old.remove(range);
        self.unread.remove(range);
    }

    /// Whether it has any block of a range.
    #[must_use]
    pub fn overlaps(&self, range: ByteRange) -> bool {
        self.old.overlaps(range) || self.unread.overlaps(range)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.old.is_empty() && self.unread.is_empty()
    }

    /// How many blocks there are.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        (self.old.bytes() + self.unread.bytes()) / BLOCK_SIZE
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> RangeSet {
        let mut all = self.old.clone();
        all.extend(&self.unread);
        all
    }

    /// As they are kept: when there are too many stretches, with what lies between them.
    #[must_use]
    pub fn list(&self, resource: ResourceId) -> LossList {
        let (mut old, mut unread) = (self.old.clone(), self.unread.clone());
        if old.len().max(unread.len()) > MAX_LOSSES {
            old.coarsen(MAX_LOSSES / 2);
            unread.coarsen(MAX_LOSSES / 2);
            // Each stretch that is taken out may make two of one.
            old.iter().for_each(|old| unread.remove(old));
        }
        let (old, unread) = (old.iter().collect(), unread.iter().collect());
        LossList { resource, old, unread }
    }
}

impl From<&LossList> for Losses {
    fn from(list: &LossList) -> Self {
        let mut losses = Self::default();
        list.unread.iter().for_each(|range| losses.unread.insert(*range));
        for range in &list.old {
            losses.unread.remove(*range);
            losses.old.insert(*range);
        }
        losses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_with_too_many_stretches_is_kept_with_what_lies_between() {
        let block = |number: u64| ByteRange::of_blocks(number..number + 1);
        let most = MAX_LOSSES as u64;
        let mut losses = Losses::default();
        losses.lose(ByteRange::of_blocks(0..4 * most), Seen::Old);
        (0..2 * most).for_each(|number| losses.stored(block(2 * number)));
        (0..100).for_each(|number| losses.lose(block(8 * most + 40 * number), Seen::Unread));
        assert!(losses.old.len() > MAX_LOSSES);
        let resource = ResourceId([7; 16]);
        let list = LossList::decode(&losses.list(resource).encode(), resource).unwrap();
        let found = Losses::from(&list);
        for range in losses.all().iter() {
            assert_eq!(found.all().next_from(range.offset).map(|r| r.offset), Some(range.offset));
        }
    }
}
