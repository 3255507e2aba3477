//! When a record may be replayed that is to be held back for a while.
//!
//! Clocks that people and programs set may jump, on either side. So two things count:
//!
//! 1. This node has known for the delay that the record is there, by a time that goes on evenly.
//!    This is always enough: whatever the clocks say, nothing is held longer.
//! 2. By the time that the record has it is older than the delay. This is for what was written while
//!    this node did not look: an outage or a restart does not begin the delay anew. Of all clocks
//!    that were seen since the start, the leaders' and once the own one, the one that was furthest
//!    behind counts, as it would have gone on: one that jumps ahead makes nothing be replayed. As
//!    long as no leader was met this is not asked: the own clock alone is not believed.

use holdfast_units::{HybridTime, LogPosition};
use std::collections::VecDeque;

/// The delay is divided into so many parts: a record is held longer by one of them at most.
const PARTS: u64 = 1024;
/// So many positions are remembered. When the delay does not change there are no more than parts.
const MOST: usize = 4096;

/// Everything before a position was known to be there.
struct Known {
    to: LogPosition,
    /// When that was.
    at: u64,
    /// When something behind the one before it was first known.
    begun: u64,
}

/// How far the disk is held behind.
#[derive(Default)]
pub(super) struct Delay {
    ms: u64,
    /// In order of positions and of time.
    known: VecDeque<Known>,
    /// What the clock that was furthest behind was ahead of the time here.
    clock: Option<i64>,
    /// A leader's clock was seen.
    led: bool,
}

impl Delay {
    pub(super) const fn ms(&self) -> u64 {
        self.ms
    }

    pub(super) const fn set(&mut self, ms: u64) {
        self.ms = ms;
    }

    /// A clock says this now.
    pub(super) fn clock_says(&mut self, now_ms: u64, time: HybridTime, of_leader: bool) {
        let ahead = signed(time.unix_millis()).saturating_sub(signed(now_ms));
        self.clock = Some(self.clock.map_or(ahead, |clock| clock.min(ahead)));
        self.led |= of_leader;
    }

    /// Everything before a position is known to be there now.
    pub(super) fn knows(&mut self, now_ms: u64, to: LogPosition) {
        let full = self.known.len() >= MOST;
        match self.known.back_mut() {
            Some(last) if to <= last.to => return,
            // Later than it was is never too early.
            Some(last) if full || now_ms.saturating_sub(last.begun) < self.ms.div_ceil(PARTS) => {
                (last.to, last.at) = (to, now_ms);
            }
            _ => self.known.push_back(Known { to, at: now_ms, begun: now_ms }),
        }
        // Of those that are old enough one says it for all.
        let old = |known: &Known| now_ms.saturating_sub(known.at) >= self.ms;
        while self.known.get(1).is_some_and(old) {
            self.known.pop_front();
        }
    }

    /// What lies from a position on is not here, and what comes there may be something else.
    pub(super) fn forget_from(&mut self, position: LogPosition) {
        while self.known.back().is_some_and(|last| last.to > position) {
            let last = self.known.pop_back();
            let before = self.known.back().map_or(LogPosition::START, |before| before.to);
            if let Some(last) = last.filter(|_| before < position) {
                self.known.push_back(Known { to: position, ..last });
            }
        }
    }

    /// What is known is of a journal that does not count any more.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Whether the record at a position may be replayed.
    pub(super) fn is_over(&self, now_ms: u64, position: LogPosition, time: HybridTime) -> bool {
        let index = self.known.partition_point(|known| known.to <= position);
        let known = self.known.get(index);
        if known.is_some_and(|known| now_ms.saturating_sub(known.at) >= self.ms) {
            return true;
        }
        let clock = self.clock.filter(|_| self.led);
        let due = signed(time.unix_millis().saturating_add(self.ms));
        clock.is_some_and(|clock| signed(now_ms).saturating_add(clock) >= due)
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Delay, MOST, PARTS};
    use holdfast_units::{HybridTime, LogPosition};

    const DAY: u64 = 86_400_000;

    fn delay(ms: u64) -> Delay {
        Delay { ms, ..Delay::default() }
    }

    fn time(ms: u64) -> HybridTime {
        HybridTime::from_unix_millis(ms)
    }

    #[test]
    fn what_was_known_for_the_delay_is_due_whatever_the_clocks_say() {
        let mut delay = delay(1000);
        delay.clock_says(0, time(5), true);
        delay.knows(10, LogPosition(100));
        delay.knows(500, LogPosition(200));
        let is_over = |delay: &Delay, now, at| delay.is_over(now, LogPosition(at), time(30 * DAY));
        assert!(!is_over(&delay, 1009, 99) && is_over(&delay, 1010, 99));
        assert!(!is_over(&delay, 1499, 100) && is_over(&delay, 1500, 100));
        assert!(!is_over(&delay, 100_000, 200), "nobody knows of it");
    }

    #[test]
    fn the_clock_that_was_furthest_behind_counts_when_a_leaders_was_seen() {
        let mut delay = delay(1000);
        let is_over = |delay: &Delay, now, of| delay.is_over(now, LogPosition(0), time(of));
        delay.clock_says(100, time(30 * DAY), false);
        assert!(!is_over(&delay, 100, 0), "the own one alone is not believed");
        delay.clock_says(200, time(20_200), true);
        assert!(is_over(&delay, 200, 19_200) && !is_over(&delay, 200, 19_201));
        delay.clock_says(300, time(30 * DAY), true);
        assert!(is_over(&delay, 300, 19_300) && !is_over(&delay, 300, 19_301));
        delay.clock_says(400, time(10_400), true);
        assert!(is_over(&delay, 400, 9_400) && !is_over(&delay, 400, 9_401));
    }

    #[test]
    fn what_another_history_has_in_the_same_place_is_not_older_than_it_is() {
        let mut delay = delay(1000);
        delay.knows(0, LogPosition(100));
        delay.knows(10, LogPosition(200));
        delay.knows(20, LogPosition(300));
        delay.forget_from(LogPosition(150));
        delay.knows(500, LogPosition(300));
        let is_over = |at, now| delay.is_over(now, LogPosition(at), time(DAY));
        assert!(is_over(99, 1000) && is_over(149, 1010));
        assert!(!is_over(150, 1499) && is_over(150, 1500));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_holds_little_longer() {
        for ms in [0, 2000, 60_000, 30 * DAY] {
            let mut delay = delay(ms);
            let step = (ms / 20_000).max(1);
            for n in 1..60_000 {
                delay.knows(n * step, LogPosition(n));
                assert!(delay.known.len() as u64 <= PARTS + 2, "{ms}");
                // The record before `n` was known at that time.
                let longer = ms + ms.div_ceil(PARTS) + step;
                let due = (n * step).saturating_sub(longer) / step;
                let held = due > 0 && !delay.is_over(n * step, LogPosition(due - 1), time(DAY));
                assert!(!held, "{ms} {n} {due}");
                let young = (n * step).saturating_sub(ms.saturating_sub(1)) / step + 1;
                let early = delay.is_over(n * step, LogPosition(young), time(DAY));
                assert!(ms == 0 || !early, "{ms} {n} {young}");
            }
        }
        // It is changed all the time.
        let mut delay = delay(0);
        for n in 1..100_000 {
            delay.set([DAY, 2000, 0, 5 * DAY][usize::try_from(n / 500 % 4).unwrap()]);
            delay.knows(n * 10, LogPosition(n));
            assert!(delay.known.len() <= MOST);
        }
    }
}
