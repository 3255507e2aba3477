//! Sets of bytes of a device.

use holdfast_units::ByteRange;
use std::collections::BTreeMap;

/// A set of bytes, as ranges that neither overlap nor touch.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: BTreeMap::new() }
    }

    /// Adds a range.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.offset, range.end());
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end()).next_back() {
            if e <= range.offset {
                break;
            }
            self.ranges.remove(&s);
            if e > range.end() {
                self.ranges.insert(range.end(), e);
            }
            if s < range.offset {
                self.ranges.insert(s, range.offset);
            }
        }
    }

    /// Whether a byte of `range` is in it.
    #[must_use]
    pub fn overlaps(&self, range: ByteRange) -> bool {
        !range.is_empty()
            && self.ranges.range(..range.end()).next_back().is_some_and(|(_, e)| *e > range.offset)
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = ByteRange> {
        self.ranges.iter().map(|(start, end)| ByteRange::new(*start, end - start))
    }

    /// How many bytes are in it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Self) {
        other.iter().for_each(|range| self.insert(range));
    }

    /// The first part of it at `offset` or behind.
    #[must_use]
    pub fn next_from(&self, offset: u64) -> Option<ByteRange> {
        let around = self.ranges.range(..=offset).next_back().filter(|(_, end)| **end > offset);
        if let Some((_, end)) = around {
            return Some(ByteRange::new(offset, end - offset));
        }
        self.ranges.range(offset..).next().map(|(start, end)| ByteRange::new(*start, end - start))
    }

    /// How many ranges it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Closes gaps until it has at most `most` ranges: it holds more then, never less.
    pub fn coarsen(&mut self, most: usize) {
        let mut gap = 1 << 16;
        while self.ranges.len() > most.max(1) {
            let mut closed: BTreeMap<u64, u64> = BTreeMap::new();
            let mut last: Option<(u64, u64)> = None;
            for (start, end) in std::mem::take(&mut self.ranges) {
                last = Some(match last {
                    Some((from, to)) if start - to <= gap => (from, end),
                    Some((from, to)) => {
                        closed.insert(from, to);
                        (start, end)
                    }
                    None => (start, end),
                });
            }
            closed.extend(last);
            self.ranges = closed;
            gap *= 4;
        }
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::RangeSet;
    use holdfast_units::ByteRange;
    use proptest::prelude::*;

    #[test]
    fn a_coarser_set_holds_all_of_it() {
        let mut set = RangeSet::new();
        (0..100).for_each(|n| set.insert(ByteRange::new((n * n) << 14, 4096)));
        let fine = set.clone();
        set.coarsen(10);
        assert!(set.len() <= 10 && set.bytes() > fine.bytes());
        for range in fine.iter() {
            let found = set.next_from(range.offset).unwrap();
            assert!(found.offset == range.offset && found.end() >= range.end(), "{range:?}");
        }
        assert_eq!(set.next_from(1 << 40), None);
        assert_eq!(set.next_from(0).map(|r| r.offset), Some(0));
    }

    proptest! {
        #[test]
        fn equals_a_set_of_bytes(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..40),
            probe in (0u64..64, 0u64..16),
        ) {
            let mut set = RangeSet::new();
            let mut naive = [false; 100];
            for (add, offset, len) in steps {
                let range = ByteRange::new(offset, len);
                if add { set.insert(range) } else { set.remove(range) }
                let (from, to) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
                naive[from..from + to].fill(add);
            }
            let mut again = [false; 100];
            let mut last_end = None;
            for range in set.iter() {
                prop_assert!(!range.is_empty());
                prop_assert!(last_end.is_none_or(|end| end < range.offset), "they touch");
                last_end = Some(range.end());
                (range.offset..range.end()).for_each(|b| again[usize::try_from(b).unwrap()] = true);
            }
            prop_assert_eq!(again, naive);
            prop_assert_eq!(set.bytes(), naive.iter().filter(|b| **b).count() as u64);
            let probed = naive.iter().skip(usize::try_from(probe.0).unwrap());
            let hit = probed.take(usize::try_from(probe.1).unwrap()).any(|b| *b);
            prop_assert_eq!(set.overlaps(ByteRange::new(probe.0, probe.1)), hit);
        }
    }
}
