//! Writes of a mirror that overlap are done one after the other: its parts would otherwise each
//! take them in an order of its own, and differ for ever.

use holdfast_units::ByteRange;
use std::collections::{BTreeMap, VecDeque};

/// The writes that are under way, and those that wait for them. `T` is whatever is to be told that
/// its turn has come.
#[derive(Debug)]
pub(super) struct Order<T> {
    /// Start and end of each; they do not overlap.
    running: BTreeMap<u64, u64>,
    waiting: VecDeque<(ByteRange, T)>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self { running: BTreeMap::new(), waiting: VecDeque::new() }
    }
}

impl<T> Order<T> {
    /// Lets a write begin; gives it back when it may begin at once, and otherwise keeps it in
    /// line.
    pub(super) fn begin(&mut self, range: ByteRange, who: T) -> Option<T> {
        if self.is_free(range, self.waiting.len()) {
            self.running.insert(range.offset, range.end());
            return Some(who);
        }
        self.waiting.push_back((range, who));
        None
    }

    /// Whether nothing that runs, and none of the first `ahead` in line, overlaps a range.
    fn is_free(&self, range: ByteRange, ahead: usize) -> bool {
        let before = self.running.range(..range.end()).next_back();
        before.is_none_or(|(_, end)| *end <= range.offset)
            && !self.waiting.iter().take(ahead).any(|(other, _)| other.overlaps(range))
    }

    /// A write has ended; those whose turn has come.
    pub(super) fn end(&mut self, range: ByteRange) -> Vec<T> {
        self.running.remove(&range.offset);
        let mut next = Vec::new();
        let mut at = 0;
        while let Some((waiting, _)) = self.waiting.get(at) {
            let waiting = *waiting;
            if waiting.overlaps(range) && self.is_free(waiting, at) {
                self.running.insert(waiting.offset, waiting.end());
                next.extend(self.waiting.remove(at).map(|(_, who)| who));
            } else {
                at += 1;
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::Order;
    use holdfast_units::ByteRange;

    fn range(offset: u64, len: u64) -> ByteRange {
        ByteRange::new(offset, len)
    }

    #[test]
    fn who_overlaps_waits_and_nobody_overtakes() {
        let mut order = Order::default();
        assert_eq!(order.begin(range(0, 10), 'a'), Some('a'));
        assert_eq!(order.begin(range(10, 10), 'b'), Some('b'));
        assert_eq!(order.begin(range(9, 2), 'c'), None);
        assert_eq!(order.begin(range(30, 1), 'd'), Some('d'));
        assert_eq!(order.begin(range(5, 1), 'e'), None, "behind a");
        assert_eq!(order.begin(range(8, 3), 'f'), None);
        assert_eq!(order.end(range(0, 10)), ['e'], "c has to wait for b, too");
        assert_eq!(order.end(range(10, 10)), ['c']);
        assert_eq!(order.begin(range(0, 100), 'g'), None);
        assert_eq!(order.begin(range(50, 1), 'h'), None, "g waits longer");
        assert_eq!(order.end(range(9, 2)), ['f']);
        assert!(order.end(range(5, 1)).is_empty());
        assert!(order.end(range(8, 3)).is_empty());
        assert_eq!(order.end(range(30, 1)), ['g']);
        assert_eq!(order.end(range(0, 100)), ['h']);
        assert!(order.end(range(50, 1)).is_empty());
        assert!(order.running.is_empty() && order.waiting.is_empty());
    }

    #[test]
    fn whoever_waits_runs_alone_in_its_range() {
        // A long line of writes over a few places, in many orders.
        let mut order = Order::default();
        let mut running: Vec<(ByteRange, u32)> = Vec::new();
        let mut begun = Vec::new();
        let ranges: Vec<_> = (0..400u64).map(|n| range(n * 37 % 50, 1 + n * 13 % 20)).collect();
        let mut start = |running: &mut Vec<(ByteRange, u32)>, number: u32| {
            let range = ranges[number as usize];
            assert!(running.iter().all(|(other, _)| !other.overlaps(range)));
            running.push((range, number));
            begun.push(number);
        };
        for number in 0..400 {
            if let Some(number) = order.begin(ranges[number as usize], number) {
                start(&mut running, number);
            }
            if number % 3 == 0 && !running.is_empty() {
                let (range, _) = running.remove(number as usize % running.len());
                order.end(range).into_iter().for_each(|next| start(&mut running, next));
            }
        }
        while let Some((range, _)) = running.pop() {
            order.end(range).into_iter().for_each(|next| start(&mut running, next));
        }
        assert_eq!(begun.len(), 400);
        for (at, number) in begun.iter().enumerate() {
            let earlier = begun[at + 1..].iter().filter(|other| *other < number);
            let overtaken =
                earlier.filter(|other| ranges[**other as usize].overlaps(ranges[*number as usize]));
            assert_eq!(overtaken.count(), 0, "{number} came too early");
        }
    }
}
