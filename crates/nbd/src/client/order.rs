//! Who must wait for whom: overlapping requests keep the order in which they came.

use holdfast_units::ByteRange;
use std::collections::BTreeMap;

/// What a request does to its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Leaves it as it is.
    Read,
    /// Changes it.
    Write,
}

/// The ranges of all requests that are not over, by the number of the request. Numbers must grow.
#[derive(Debug, Default)]
pub(super) struct Order {
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    range: ByteRange,
    access: Access,
    /// How many earlier requests this one waits for.
    waits_for: usize,
    /// Later requests that wait for this one.
    before: Vec<u64>,
}

impl Order {
    /// Takes in a request; whether it may go at once.
    pub(super) fn enter(&mut self, number: u64, range: ByteRange, access: Access) -> bool {
        debug_assert!(self.entries.last_key_value().is_none_or(|(last, _)| *last < number));
        let mut waits_for = 0;
        for entry in self.entries.values_mut() {
            let reads = entry.access == Access::Read && access == Access::Read;
            if !reads && entry.range.overlaps(range) {
                entry.before.push(number);
                waits_for += 1;
            }
        }
        let entry = Entry { range, access, waits_for, before: Vec::new() };
        self.entries.insert(number, entry);
        waits_for == 0
    }

    /// A request is over, or was taken back; calls `free` for each that may go now.
    pub(super) fn leave(&mut self, number: u64, mut free: impl FnMut(u64)) {
        let Some(entry) = self.entries.remove(&number) else { return };
        for later in entry.before {
            // It may have been taken back while it waited.
            let Some(waiting) = self.entries.get_mut(&later) else { continue };
            waiting.waits_for -= 1;
            if waiting.waits_for == 0 {
                free(later);
            }
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of the tests are small")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(offset: u64, len: u64) -> ByteRange {
        ByteRange::new(offset, len)
    }

    fn leave(order: &mut Order, number: u64) -> Vec<u64> {
        let mut free = Vec::new();
        order.leave(number, |number| free.push(number));
        free
    }

    #[test]
    fn readers_go_together_and_a_writer_alone() {
        let mut order = Order::default();
        assert!(order.enter(1, range(0, 10), Access::Read));
        assert!(order.enter(2, range(5, 10), Access::Read));
        assert!(!order.enter(3, range(8, 4), Access::Write));
        assert!(!order.enter(4, range(11, 1), Access::Read), "it must not overtake 3");
        assert!(order.enter(5, range(20, 1), Access::Write));
        assert!(leave(&mut order, 1).is_empty());
        assert_eq!(leave(&mut order, 2), [3]);
        assert_eq!(leave(&mut order, 3), [4]);
    }

    #[test]
    fn one_that_is_taken_back_frees_those_behind_it() {
        let mut order = Order::default();
        order.enter(1, range(0, 10), Access::Write);
        order.enter(2, range(0, 20), Access::Write);
        order.enter(3, range(15, 1), Access::Write);
        assert_eq!(leave(&mut order, 2), [3]);
        assert!(leave(&mut order, 1).is_empty());
    }

    proptest! {
        /// At no time do two that conflict run together, and the earlier one runs first.
        #[test]
        fn conflicting_requests_run_in_order(
            requests in proptest::collection::vec((0..40u64, 1..10u64, any::<bool>()), 1..40),
            picks in proptest::collection::vec(any::<usize>(), 40),
        ) {
            let mut order = Order::default();
            let mut running = BTreeSet::new();
            let all: Vec<_> = requests
                .iter()
                .map(|(at, len, write)| {
                    (range(*at, *len), if *write { Access::Write } else { Access::Read })
                })
                .collect();
            for (number, (range, access)) in (0..).zip(&all) {
                if order.enter(number, *range, *access) {
                    running.insert(number);
                }
            }
            let conflict = |a: u64, b: u64| {
                let (a, b) = (all[a as usize], all[b as usize]);
                a.0.overlaps(b.0) && (a.1 == Access::Write || b.1 == Access::Write)
            };
            let mut over = BTreeSet::new();
            for pick in picks.iter().cycle() {
                let Some(done) = running.iter().nth(pick % running.len().max(1)).copied() else {
                    break;
                };
                for number in &running {
                    prop_assert!(*number == done || !conflict(*number, done));
                    prop_assert!((0..*number).all(|e| over.contains(&e) || !conflict(e, *number)));
                }
                running.remove(&done);
                over.insert(done);
                running.extend(leave(&mut order, done));
            }
            prop_assert_eq!(over.len(), all.len());
        }
    }
}
