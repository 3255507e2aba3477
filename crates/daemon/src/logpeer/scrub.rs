//! Reading through the disk of a node that follows, slowly: the same order and rate as that of a node
//! with a core. What it finds is healed by the logic.

use holdfast_core::{Refusal, SurveyAction, SurveyChunks, SurveyEnd, SurveyKind, SurveyProgress};
use holdfast_units::{ByteRange, Millis};
use holdfast_wire::RepairMode;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long it goes at a lower rate when something was replayed or fetched.
const QUIET: Duration = Duration::from_millis(100);
/// The share of its rate that it has at most; at least it has one of them.
const FULL_SHARE: u64 = 16;
/// What counts as the rate of one without a limit, so that it can give way.
const FAST: u64 = 2 << 30;
/// However busy the node is, it goes so fast, in bytes a second.
const LEAST: u64 = 1 << 20;
/// Chunks around errors that wait.
const MOST_SOON: usize = 1024;
/// Chunks that may be done before it is their turn.
const MOST_AHEAD: usize = 65_536;

/// What is asked of it.
pub(super) enum ScrubCall {
    /// Begin at this number.
    Begin(u64),
    Act(SurveyAction),
}

/// One that goes on.
pub(super) struct Scrub {
    chunks: SurveyChunks,
    progress: SurveyProgress,
    /// Chunks around errors, to be looked at before the others.
    soon: VecDeque<u64>,
    /// Those of them that are done, from the next one in order on.
    ahead: BTreeSet<u64>,
    /// What is being looked at, with its number.
    looking: Option<(u64, ByteRange)>,
    /// Bytes that it may read now.
    allowance: i64,
    filled: Instant,
    share: u64,
    shared: Instant,
    /// How much had been done otherwise when the share was looked at.
    work: u64,
}

impl Scrub {
    pub(super) fn new(from: u64, size: u64) -> Self {
        let chunks = SurveyChunks::new(SurveyKind::Scrub, ByteRange::new(0, size));
        let progress = chunks.begin(from, size, RepairMode::Majority, Millis::default());
        let now = Instant::now();
        Self {
            chunks,
            progress,
            soon: VecDeque::new(),
            ahead: BTreeSet::new(),
            looking: None,
            allowance: 0,
            filled: now,
            share: FULL_SHARE,
            shared: now,
            work: 0,
        }
    }

    pub(super) fn progress(&self) -> SurveyProgress {
        self.progress.clone()
    }

    /// A person does something to it; how it ended, if it did.
    pub(super) fn act(&mut self, action: SurveyAction) -> Option<SurveyEnd> {
        match action {
            SurveyAction::Pause => self.progress.paused = true,
            SurveyAction::Resume => self.progress.paused = false,
            SurveyAction::Stop => return Some(SurveyEnd::Stopped),
        }
        None
    }

    /// What is to be looked at next, if something is now. `rate` is its limit in bytes a second, 0 is
    /// none; `work` counts what the node did otherwise.
    pub(super) fn next(&mut self, now: Instant, rate: u64, work: u64) -> Option<ByteRange> {
        self.give_way(now, work);
        self.refill(now, rate);
        let may = !self.progress.paused && self.looking.is_none() && self.allowance > 0;
        if !may {
            return None;
        }
        while let Some(number) = self.soon.pop_front() {
            let may = !self.is_done(number) && self.ahead.len() < MOST_AHEAD;
            if let Some(range) = self.chunks.chunk(number).filter(|_| may) {
                return Some(self.begin(number, range));
            }
        }
        while self.progress.next < self.chunks.count() {
            let number = self.progress.next;
            if !self.ahead.remove(&number)
                && let Some(range) = self.chunks.chunk(number)
            {
                return Some(self.begin(number, range));
            }
            self.progress.next += 1;
        }
        None
    }

    fn is_done(&self, number: u64) -> bool {
        number < self.progress.next || self.ahead.contains(&number)
    }

    fn begin(&mut self, number: u64, range: ByteRange) -> ByteRange {
        self.allowance = self.allowance.saturating_sub_unsigned(range.len);
        self.looking = Some((number, range));
        range
    }

    /// Whether more could be read at once.
    pub(super) fn goes_on(&self) -> bool {
        !self.progress.paused && self.looking.is_none() && self.allowance > 0
    }

    /// What was being looked at is to be looked at again: the disk was opened anew.
    pub(super) fn again(&self) -> Option<ByteRange> {
        self.looking.map(|(_, range)| range)
    }

    /// What was looked at is done, and so many blocks of it have no good copy.
    pub(super) fn looked(&mut self, found: u64) {
        let Some((number, range)) = self.looking.take() else { return };
        if number == self.progress.next {
            self.progress.next += 1;
        } else {
            self.ahead.insert(number);
        }
        self.progress.done += range.len;
        self.progress.unreadable += found;
        if found > 0 {
            for number in self.chunks.around(range) {
                let known = self.is_done(number) || self.soon.contains(&number);
                if !known && self.soon.len() < MOST_SOON {
                    self.soon.push_back(number);
                }
            }
        }
    }

    /// Whether nothing is left; the last numbers may stand for nothing.
    pub(super) fn is_through(&self) -> bool {
        let mut left = self.progress.next..self.chunks.count();
        self.looking.is_none()
            && self.soon.is_empty()
            && left.all(|number| self.is_done(number) || self.chunks.chunk(number).is_none())
    }

    /// Whether something is being looked at.
    pub(super) const fn is_looking(&self) -> bool {
        self.looking.is_some()
    }

    /// A replay or a filling goes first.
    fn give_way(&mut self, now: Instant, work: u64) {
        if now.duration_since(self.shared) < QUIET {
            return;
        }
        let busy = work != self.work;
        self.share = if busy { self.share / 2 } else { self.share * 2 }.clamp(1, FULL_SHARE);
        (self.shared, self.work) = (now, work);
    }

    fn refill(&mut self, now: Instant, limit: u64) {
        let full = if limit == 0 { FAST } else { limit };
        let rate = (full / FULL_SHARE * self.share).max(LEAST.min(full));
        let millis = now.duration_since(self.filled).as_millis();
        if millis == 0 {
            return;
        }
        self.filled = now;
        let more = u64::try_from(u128::from(rate) * millis / 1000).unwrap_or(u64::MAX);
        // No more than a tenth of a second, or one chunk, is saved up.
        let most = i64::try_from((rate / 10).max(LEAST)).unwrap_or(i64::MAX);
        self.allowance = self.allowance.saturating_add_unsigned(more).min(most);
    }
}

/// What is answered to what is asked of a scrub that may go on.
pub(super) fn allowed(scrub: Option<&Scrub>, call: &ScrubCall) -> Result<(), Refusal> {
    match (scrub, call) {
        (Some(_), ScrubCall::Begin(_)) => Err(Refusal::SurveyRunning),
        (None, ScrubCall::Act(_)) => Err(Refusal::NoSurvey),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{FULL_SHARE, LEAST, Scrub};
    use holdfast_core::{SurveyAction, SurveyEnd};
    use std::time::{Duration, Instant};

    const SIZE: u64 = 20 << 20;

    /// The chunks that one looks at, in this order; in some of them it finds blocks.
    fn looked_at(scrub: &mut Scrub, found: &[(u64, u64)]) -> Vec<u64> {
        let (mut now, mut seen) = (Instant::now(), Vec::new());
        while !scrub.is_through() {
            now += Duration::from_millis(10);
            while let Some(range) = scrub.next(now, 0, 0) {
                let chunk = range.offset >> 20;
                seen.push(chunk);
                let first = seen.iter().filter(|seen| **seen == chunk).count() == 1;
                let of = found.iter().find(|(at, _)| first && *at == chunk);
                // They are healed behind that.
                scrub.looked(of.map_or(0, |(_, blocks)| *blocks));
            }
        }
        seen
    }

    #[test]
    fn it_looks_at_everything_once() {
        let mut scrub = Scrub::new(0, SIZE);
        let seen = looked_at(&mut scrub, &[(2, 1)]);
        assert_eq!(seen, Vec::from_iter(0..20));
        assert!(Scrub::new(128, SIZE).is_through(), "also one that goes on at the end");
        let progress = scrub.progress();
        assert_eq!((progress.done, progress.total, progress.unreadable), (SIZE, SIZE, 1));
    }

    #[test]
    fn around_an_error_it_looks_at_once_and_counts_what_it_finds_there() {
        let size = 256 << 20;
        let mut scrub = Scrub::new(0, size);
        let seen = looked_at(&mut scrub, &[(2, 1), (4, 20), (12, 5)]);
        // Two regions in turn, until there is an error; then ten behind it, and ten behind the last.
        let before = [0, 128, 1, 129, 2];
        let all = Vec::from_iter(before.into_iter().chain(3..23).chain([130, 131]));
        assert_eq!(seen[..all.len()], all);
        assert_eq!(seen.len(), 256, "each of them once");
        let progress = scrub.progress();
        assert_eq!((progress.done, progress.unreadable), (size, 26));
    }

    #[test]
    fn it_gives_way_and_keeps_its_rate() {
        let mut scrub = Scrub::new(0, 1 << 40);
        let mut now = Instant::now();
        let mut read = |busy: bool, work: &mut u64, scrub: &mut Scrub| {
            let mut bytes = 0;
            for _ in 0..200 {
                now += Duration::from_millis(10);
                *work += u64::from(busy);
                while let Some(range) = scrub.next(now, 32 << 20, *work) {
                    bytes += range.len;
                    scrub.looked(0);
                }
            }
            bytes
        };
        let mut work = 0;
        let alone = read(false, &mut work, &mut scrub);
        assert!(alone.abs_diff(64 << 20) <= 4 << 20, "{alone} bytes in two seconds");
        read(true, &mut work, &mut scrub);
        let beside = read(true, &mut work, &mut scrub);
        let least = 2 * (32_u64 << 20) / FULL_SHARE;
        assert!(beside.abs_diff(least.max(2 * LEAST)) <= 2 << 20, "{beside} bytes in two seconds");
        assert_eq!(scrub.act(SurveyAction::Pause), None);
        assert_eq!(read(false, &mut work, &mut scrub), 0);
        assert_eq!(scrub.act(SurveyAction::Stop), Some(SurveyEnd::Stopped));
    }
}
