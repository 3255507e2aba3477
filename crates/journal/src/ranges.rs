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
