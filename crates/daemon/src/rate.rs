//! How fast something goes, over the last seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Over how long the rate is measured.
const WINDOW: Duration = Duration::from_secs(4);
/// How far apart the samples are.
const STEP: Duration = Duration::from_millis(400);

/// Samples of a growing number.
#[derive(Clone, Debug, Default)]
pub(crate) struct RateMeter(VecDeque<(Instant, u64)>);

impl RateMeter {
    /// Notes how far it is. A number below the one before begins anew.
    pub(crate) fn note(&mut self, now: Instant, done: u64) {
        if self.0.back().is_some_and(|(_, before)| done < *before) {
            self.0.clear();
        }
        if self.0.back().is_none_or(|(at, _)| now.duration_since(*at) >= STEP) {
            self.0.push_back((now, done));
        }
        while self.0.len() > 2
            && self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            self.0.pop_front();
        }
    }

    /// How much it grows per second, when it is at `done` now.
    pub(crate) fn rate(&self, now: Instant, done: u64) -> u64 {
        let Some((start, before)) = self.0.front() else { return 0 };
        let elapsed = now.duration_since(*start).as_millis();
        if elapsed < 50 {
            return 0;
        }
        let grown = u128::from(done.saturating_sub(*before));
        u64::try_from(grown * 1000 / elapsed).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = RateMeter::default();
        assert_eq!(meter.rate(start, 7), 0);
        for second in 0..=10 {
            meter.note(at(second), second * 1000);
        }
        assert_eq!(meter.rate(at(10), 10_000), 1000);
        for second in 11..=20 {
            meter.note(at(second), 10_000 + (second - 10) * 3000);
        }
        assert_eq!(meter.rate(at(20), 40_000), 3000);
        // A new resync starts at zero again.
        meter.note(at(21), 0);
        assert_eq!(meter.rate(at(22), 500), 500);
    }
}
