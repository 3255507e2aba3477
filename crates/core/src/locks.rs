//! Overlapping writes happen one after the other, in the order of arrival.

use holdfast_units::ByteRange;
use std::collections::{BTreeMap, VecDeque};

/// Who holds or wants a range: an index into one of the core's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// A client's write.
    Write(usize),
    /// A write that a peer sent.
    PeerWrite(usize),
    /// Blocks that a resync source sent.
    ResyncWrite(usize),
    /// A read for a resync target.
    ResyncRead(usize),
    /// Blocks that are healed.
    Heal(usize),
    /// A read for a peer that heals.
    HealRead(usize),
    /// Copies that are compared.
    Span(u64),
    /// Blocks of this node that were found to be wrong.
    Repair(usize),
}

/// Ranges in use. Those held never overlap; one that overlaps a held one, or one that came before
/// and waits, waits too. So equal blocks are written in the same order on every node.
#[derive(Default)]
pub(crate) struct Locks {
    held: BTreeMap<u64, (u64, Owner)>,
    waiting: VecDeque<(ByteRange, Owner)>,
}

impl Locks {
    /// Takes the range, or queues for it. Whether it is held now.
    pub(crate) fn acquire(&mut self, range: ByteRange, owner: Owner) -> bool {
        let free = !self.is_held(range) && !self.waiting.iter().any(|(w, _)| w.overlaps(range));
        if free {
            self.held.insert(range.offset, (range.end(), owner));
        } else {
            self.waiting.push_back((range, owner));
        }
        free
    }

    /// Gives a held range back and appends whoever got a range by that.
    pub(crate) fn release(&mut self, range: ByteRange, granted: &mut Vec<Owner>) {
        let was = self.held.remove(&range.offset);
        debug_assert!(was.is_some_and(|(end, _)| end == range.end()), "released what was held");
        self.grant_waiting(range, granted);
    }

    /// Gives waiting ranges near a place that became free to those that nothing stands before.
    fn grant_waiting(&mut self, near: ByteRange, granted: &mut Vec<Owner>) {
        let mut at = 0;
        while at < self.waiting.len() {
            let (wanted, owner) = self.waiting[at];
            let free = wanted.overlaps(near)
                && !self.is_held(wanted)
                && !self.waiting.iter().take(at).any(|(w, _)| w.overlaps(wanted));
            if free {
                self.waiting.remove(at);
                self.held.insert(wanted.offset, (wanted.end(), owner));
                granted.push(owner);
            } else {
                at += 1;
            }
        }
    }

    /// Whether a comparison of copies holds some of the range, or waits for it.
    pub(crate) fn has_span(&self, range: ByteRange) -> bool {
        let is_span = |owner: &Owner| matches!(owner, Owner::Span(_));
        let held = self.held.range(..range.end()).rev();
        held.map(|(_, held)| held)
            .take_while(|(end, _)| *end > range.offset)
            .any(|(_, owner)| is_span(owner))
            || self.waiting.iter().any(|(w, owner)| w.overlaps(range) && is_span(owner))
    }

    fn is_held(&self, range: ByteRange) -> bool {
        self.held.range(..range.end()).next_back().is_some_and(|(_, (end, _))| *end > range.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::{Locks, Owner};
    use holdfast_units::ByteRange;

    fn r(first: u64, blocks: u64) -> ByteRange {
        ByteRange::new(first * 4096, blocks * 4096)
    }

    #[test]
    fn overlapping_ranges_are_served_in_order() {
        let mut locks = Locks::default();
        let mut granted = Vec::new();
        assert!(locks.acquire(r(0, 4), Owner::Write(0)));
        assert!(locks.acquire(r(4, 4), Owner::Write(1)));
        assert!(!locks.acquire(r(3, 2), Owner::Write(2)));
        assert!(!locks.acquire(r(4, 1), Owner::Write(3)), "behind a waiter that overlaps it");
        locks.release(r(4, 4), &mut granted);
        assert!(granted.is_empty());
        locks.release(r(0, 4), &mut granted);
        assert_eq!(granted, [Owner::Write(2)]);
        locks.release(r(3, 2), &mut granted);
        assert_eq!(granted, [Owner::Write(2), Owner::Write(3)]);
    }
}
