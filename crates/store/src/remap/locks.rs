//! Who works on which part of the disk. Only what takes the slow way comes here.

use holdfast_units::ByteRange;

struct Lock {
    id: u64,
    range: ByteRange,
    exclusive: bool,
    granted: bool,
    /// Whom to tell when it is granted.
    task: usize,
}

/// Locks on ranges, in the order in which they were asked for: none overtakes one that it conflicts
/// with, so everybody's turn comes.
#[derive(Default)]
pub(super) struct Locks {
    list: Vec<Lock>,
    next: u64,
}

impl Locks {
    fn conflicts(&self, before: usize, range: ByteRange, exclusive: bool) -> bool {
        self.list[..before]
            .iter()
            .any(|lock| (lock.exclusive || exclusive) && lock.range.overlaps(range))
    }

    /// A shared lock, if it can be had now.
    pub(super) fn try_shared(&mut self, range: ByteRange) -> Option<u64> {
        if self.conflicts(self.list.len(), range, false) {
            return None;
        }
        Some(self.acquire(range, false, usize::MAX).0)
    }

    /// A lock for a task, and whether it has it now; otherwise `release` says when.
    pub(super) fn acquire(
        &mut self,
        range: ByteRange,
        exclusive: bool,
        task: usize,
    ) -> (u64, bool) {
        let granted = !self.conflicts(self.list.len(), range, exclusive);
        let id = self.next;
        self.next += 1;
        self.list.push(Lock { id, range, exclusive, granted, task });
        (id, granted)
    }

    /// Gives a lock up. Appends the tasks that have theirs now.
    pub(super) fn release(&mut self, id: u64, granted: &mut Vec<usize>) {
        let Some(at) = self.list.iter().position(|lock| lock.id == id) else { return };
        let gone = self.list.remove(at);
        for i in at..self.list.len() {
            let lock = &self.list[i];
            if !lock.granted
                && lock.range.overlaps(gone.range)
                && !self.conflicts(i, lock.range, lock.exclusive)
            {
                self.list[i].granted = true;
                granted.push(self.list[i].task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Locks;
    use holdfast_units::ByteRange;

    #[test]
    fn locks_come_in_order_and_none_overtakes_what_it_conflicts_with() {
        let at = ByteRange::new;
        let mut locks = Locks::default();
        let (a, now) = locks.acquire(at(0, 10), false, 1);
        assert!(now);
        let (b, now) = locks.acquire(at(5, 10), false, 2);
        assert!(now, "readers share");
        let (c, now) = locks.acquire(at(8, 4), true, 3);
        assert!(!now);
        let (d, now) = locks.acquire(at(0, 9), false, 4);
        assert!(!now, "it must not overtake the writer");
        assert!(locks.try_shared(at(8, 1)).is_none());
        let (e, now) = locks.acquire(at(20, 1), true, 5);
        assert!(now, "elsewhere");
        let mut granted = Vec::new();
        locks.release(a, &mut granted);
        assert_eq!(granted, []);
        locks.release(b, &mut granted);
        assert_eq!(granted, [3]);
        locks.release(c, &mut granted);
        assert_eq!(granted, [3, 4]);
        locks.release(d, &mut granted);
        locks.release(e, &mut granted);
        assert!(locks.list.is_empty() && granted.len() == 2);
    }
}
