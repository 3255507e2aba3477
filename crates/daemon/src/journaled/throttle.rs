//! Large writes are answered more slowly while the journal fills: at the rate at which the slowest
//! follower fetches. They are written at once, and in order; only who waits for them waits longer.

use super::worker::Worker;
use super::{JournalCallError, JournalHandle};
use holdfast_store::{DiskOp, Outcome, Ticket};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Writes of at least so many bytes are slowed down.
const LARGE: u64 = 64 << 10;
/// No write is answered later than this for it.
const MOST: Duration = Duration::from_millis(100);

/// What slows writes down, and what is slowed down.
#[derive(Default)]
pub(super) struct Throttle {
    /// It begins when so many percent of the budget are needed; 0 for never.
    percent: u64,
    /// Bytes per second that the slowest follower fetches.
    rate: u64,
    /// Until when the writes that were answered take at this rate.
    busy_until: Option<Instant>,
    /// Writes that are done, with what came of them, and when that is said.
    slowed: VecDeque<(Instant, Ticket, Outcome)>,
    /// How many there were.
    pub(super) count: u64,
}

impl Throttle {
    /// When a write of `len` bytes is to be answered; `None` at once.
    fn due(&mut self, len: u64, fill_percent: u64, now: Instant) -> Option<Instant> {
        if self.percent == 0 || len < LARGE || fill_percent < self.percent {
            return None;
        }
        let nanos = u128::from(len) * 1_000_000_000 / u128::from(self.rate.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.busy_until.map_or(now, |until| until.max(now));
        let due = from.checked_add(takes).unwrap_or(now + MOST).min(now + MOST);
        self.busy_until = Some(due);
        self.count += 1;
        Some(due)
    }

    /// When the next one is to be answered.
    pub(super) fn next(&self) -> Option<Instant> {
        self.slowed.front().map(|(due, ..)| *due)
    }

    /// Answers those whose time has come, or all. Whether there was one.
    pub(super) fn answer(&mut self, all: bool) -> bool {
        let now = Instant::now();
        let before = self.slowed.len();
        while let Some((_, ticket, outcome)) =
            self.slowed.pop_front_if(|(due, ..)| all || *due <= now)
        {
            ticket.complete(Ok(outcome));
        }
        before > self.slowed.len()
    }
}

impl JournalHandle {
    /// From now on large writes are answered at `rate` bytes per second at most while so many percent
    /// of the budget are needed, each at most 100 ms later; 0 percent never does so.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn set_throttle(&self, percent: u64, rate: u64) -> Result<(), JournalCallError> {
        self.ask(move |worker| {
            (worker.throttle.percent, worker.throttle.rate) = (percent, rate);
            Ok(())
        })
        .await
    }
}

impl Worker {
    /// A write is in the journal: answers it, sooner or later.
    pub(super) fn answer_write(&mut self, request: &DiskOp, ticket: Ticket, outcome: Outcome) {
        let len = match request {
            DiskOp::Write { range, .. } => range.len,
            _ => 0,
        };
        let due = match self.throttle.percent {
            0 => None,
            _ => {
                let fill = self.figures_now().fill_percent();
                self.throttle.due(len, fill, Instant::now())
            }
        };
        match due {
            // Due times only go forward.
            Some(due) => self.throttle.slowed.push_back((due, ticket, outcome)),
            None => ticket.complete(Ok(outcome)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LARGE, MOST, Throttle};
    use std::time::{Duration, Instant};

    #[test]
    fn large_writes_take_as_long_as_a_follower_does_and_never_much_longer() {
        let now = Instant::now();
        let mut off = Throttle { rate: 1, ..Throttle::default() };
        assert_eq!(off.due(1 << 20, 1000, now), None);
        let mut on = Throttle { percent: 60, rate: 10 << 20, ..Throttle::default() };
        assert_eq!(on.due(LARGE, 59, now), None, "there is room");
        assert_eq!(on.due(LARGE - 1, 99, now), None, "small ones never");
        let ms = |ms| Some(now + Duration::from_millis(ms));
        assert_eq!(on.due(100 << 10, 60, now).map(|at| (at - now).as_millis()), Some(9));
        // One after the other, not side by side.
        assert_eq!(on.due(100 << 10, 60, now).map(|at| (at - now).as_millis()), Some(19));
        for _ in 0..50 {
            assert!(on.due(1 << 20, 95, now) <= ms(100));
        }
        assert_eq!(on.due(1 << 20, 95, now), Some(now + MOST));
        let mut stalled = Throttle { percent: 60, rate: 0, ..Throttle::default() };
        assert_eq!(stalled.due(u64::MAX, 60, now), Some(now + MOST));
        assert_eq!(stalled.count, 1);
    }
}
