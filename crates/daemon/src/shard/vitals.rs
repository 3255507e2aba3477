//! What the disk of a resource goes through: errors and times, gathered where operations end.
//!
//! One owner, the disk's driver, on one thread: plain numbers, no lock, no allocation for an
//! operation that goes well. The control plane takes what has come together once a second.

use super::histogram::Histogram;
use super::stages::{Spreads, StageOp};
use crate::events::unix_ms;
use holdfast_store::OpKind;
use holdfast_units::ByteRange;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many errors are kept with their places until they are taken; of more, only their number is.
const PLACES: usize = 1024;
/// So many blocks that failed lately are known, for so long.
const MOST_LATELY: usize = 4096;
const LATELY: Duration = Duration::from_secs(1);
/// So many minutes make up the times that are told.
const MINUTES: usize = 5;
/// An operation that takes as long is a stall.
const STALL: Duration = Duration::from_secs(1);
/// An operation that takes so many times the median is an outlier, from this time on.
const OUTLIER_FACTOR: u64 = 10;
const OUTLIER_FLOOR: Duration = Duration::from_millis(50);
/// A median of fewer operations says nothing.
const ENOUGH: u64 = 100;

/// What failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// A read.
    Read,
    /// A write, also of zeroes, or a discard.
    Write,
    /// A flush.
    Flush,
    /// A write of the metadata.
    Metadata,
    /// A block was read, and its checksum does not fit.
    Checksum,
}

impl ErrorKind {
    /// How many kinds there are.
    pub const COUNT: usize = 5;

    /// Its number, below [`Self::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 2,
            Self::Metadata => 3,
            Self::Checksum => 4,
        }
    }
}

impl From<OpKind> for ErrorKind {
    fn from(kind: OpKind) -> Self {
        match kind {
            OpKind::Read => Self::Read,
            OpKind::Write | OpKind::Discard | OpKind::WriteZeroes => Self::Write,
            OpKind::Flush => Self::Flush,
        }
    }
}

/// Errors of one kind at one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorSeen {
    /// What failed.
    pub kind: ErrorKind,
    /// Where; `None` for a flush and for metadata.
    pub range: Option<ByteRange>,
    /// How many: one for a whole operation, else one for each bad block of the range.
    pub count: u64,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// How long operations of one kind took in the last minutes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Times {
    /// How many ended well.
    pub operations: u64,
    /// Half of them took no longer, in microseconds.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// 999 of 1,000 took no longer.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

/// What has come together since it was last taken, and how long operations take.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VitalsReport {
    /// The disk that it is of.
    pub disk: PathBuf,
    /// Errors with their places, in the order in which they came.
    pub errors: Vec<ErrorSeen>,
    /// The numbers of those that came faster than they were taken, by [`ErrorKind::index`].
    pub unplaced: [u64; ErrorKind::COUNT],
    /// Operations that took a second or longer.
    pub stalls: u64,
    /// Shorter ones that took ten times the median of their kind, and 50 ms.
    pub outliers: u64,
    /// Reads, writes, flushes in the last minutes.
    pub times: [Times; 3],
    /// For how long the oldest operation is under way.
    pub oldest_pending: Duration,
}

/// An operation under way.
#[derive(Clone, Copy)]
struct Started {
    kind: OpKind,
    at: Instant,
}

/// The numbers of operations are no secret and count up: one multiplication spreads them.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The times of one kind of operation.
struct KindTimes {
    /// One for each of the last minutes.
    minutes: [Histogram; MINUTES],
    /// From how many microseconds on an operation is an outlier.
    outlier_from: u64,
}

impl KindTimes {
    fn new() -> Self {
        let minutes = std::array::from_fn(|_| Histogram::new());
        Self { minutes, outlier_from: u64::MAX }
    }

    fn sum(&self) -> Histogram {
        let mut all = Histogram::new();
        self.minutes.iter().for_each(|minute| all.add(minute));
        all
    }

    fn times(&self) -> Times {
        let all = self.sum();
        Times {
            operations: all.count(),
            p50: all.quantile(500),
            p99: all.quantile(990),
            p999: all.quantile(999),
            max: all.max(),
        }
    }

    /// Sets the bound for outliers by what the last minutes were like.
    fn judge(&mut self) {
        let all = self.sum();
        let floor = micros(OUTLIER_FLOOR);
        self.outlier_from = match all.count() {
            few if few < ENOUGH => u64::MAX,
            _ => all.quantile(500).saturating_mul(OUTLIER_FACTOR).max(floor),
        };
    }
}

/// Since when the thread of a disk is in a call of it that has not returned: it cannot tell that
/// itself, so whoever wants to know sees it here.
#[derive(Clone, Debug)]
pub(super) struct InCall {
    base: Instant,
    /// Milliseconds since `base`, and one; 0: in none.
    since: Arc<AtomicU64>,
}

impl InCall {
    fn new(base: Instant) -> Self {
        Self { base, since: Arc::default() }
    }

    fn begins(&self, now: Instant) {
        let since = now.saturating_duration_since(self.base).as_millis();
        self.since.store(u64::try_from(since).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
    }

    fn ends(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// For how long.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => now
                .saturating_duration_since(self.base)
                .saturating_sub(Duration::from_millis(since - 1)),
        }
    }
}

/// The figures of one disk while it is in use.
pub(super) struct Vitals {
    disk: PathBuf,
    in_call: InCall,
    began: Instant,
    /// The minute that is being filled.
    minute: u64,
    pending: HashMap<u64, Started, BuildHasherDefault<NumberHasher>>,
    times: Box<[KindTimes; 3]>,
    /// The times of all operations that went well, since the disk is in use.
    spreads: Box<Spreads>,
    errors: Vec<ErrorSeen>,
    unplaced: [u64; ErrorKind::COUNT],
    stalls: u64,
    outliers: u64,
    /// Blocks that failed a moment ago.
    lately: HashMap<u64, Instant>,
}

impl Vitals {
    pub(super) fn new(disk: &Path, now: Instant) -> Self {
        Self {
            disk: disk.to_owned(),
            in_call: InCall::new(now),
            began: now,
            minute: 0,
            pending: HashMap::default(),
            times: Box::new(std::array::from_fn(|_| KindTimes::new())),
            spreads: Box::default(),
            errors: Vec::new(),
            unplaced: [0; ErrorKind::COUNT],
            stalls: 0,
            outliers: 0,
            lately: HashMap::new(),
        }
    }

    /// Another disk is in its place, which has gone through nothing yet. What waits for it stays.
    pub(super) fn begin_anew(&mut self, disk: &Path, now: Instant) {
        let anew = Self::new(disk, now);
        let pending = std::mem::take(&mut self.pending);
        let in_call = self.in_call.clone();
        *self = Self { pending, in_call, ..anew };
    }

    /// The disk that they are of.
    pub(super) fn disk(&self) -> &Path {
        &self.disk
    }

    /// For others to see.
    pub(super) fn in_call(&self) -> InCall {
        self.in_call.clone()
    }

    /// The disk is called, and may not return for long.
    pub(super) fn calls(&self, now: Instant) {
        self.in_call.begins(now);
    }

    /// It has returned.
    pub(super) fn returned(&self) {
        self.in_call.ends();
    }

    /// An operation begins that does not end at once.
    pub(super) fn started(&mut self, op: u64, kind: OpKind, now: Instant) {
        self.pending.insert(op, Started { kind, at: now });
    }

    /// An operation that was [`Self::started`] ends, well or not. Failed ones are told by
    /// [`Self::failed`] or [`Self::bad_blocks`], too.
    pub(super) fn ended(&mut self, op: u64, now: Instant, well: bool) {
        if let Some(Started { kind, at }) = self.pending.remove(&op) {
            self.took(kind, now.saturating_duration_since(at), now, well);
        }
    }

    /// An operation took so long.
    pub(super) fn took(&mut self, kind: OpKind, time: Duration, now: Instant, well: bool) {
        self.turn_to(now);
        let of_kind = &mut self.times[index_of(kind)];
        let micros = micros(time);
        if time >= STALL {
            self.stalls += 1;
        } else if micros >= of_kind.outlier_from {
            self.outliers += 1;
        }
        // How fast a disk refuses says nothing about how fast it works.
        if well && let Some(minute) = of_kind.minutes.get_mut(slot(self.minute)) {
            minute.note(micros);
            if let Some(spread) = self.spreads.get_mut(StageOp::from(kind).index()) {
                spread.note(time);
            }
        }
    }

    /// A whole operation failed.
    pub(super) fn failed(&mut self, kind: ErrorKind, range: Option<ByteRange>) {
        self.note(kind, range, 1);
    }

    /// A read got all of its data but these blocks.
    pub(super) fn bad_blocks(&mut self, kind: ErrorKind, bad: &[ByteRange]) {
        let now = Instant::now();
        for range in bad {
            let count = range.blocks().filter(|block| self.is_news(*block, now)).count() as u64;
            if count > 0 {
                self.note(kind, Some(*range), count);
            }
        }
    }

    /// Whether a block did not fail a moment ago: before it is called lost it is read once more, and
    /// that is no other error.
    fn is_news(&mut self, block: u64, now: Instant) -> bool {
        if self.lately.len() >= MOST_LATELY {
            self.lately.retain(|_, at| now.duration_since(*at) < LATELY);
        }
        let last = self.lately.get(&block).copied();
        if self.lately.len() < MOST_LATELY {
            self.lately.insert(block, now);
        }
        last.is_none_or(|at| now.duration_since(at) >= LATELY)
    }

    fn note(&mut self, kind: ErrorKind, range: Option<ByteRange>, count: u64) {
        if self.errors.len() < PLACES {
            self.errors.push(ErrorSeen { kind, range, count, at_unix_ms: unix_ms() });
        } else if let Some(unplaced) = self.unplaced.get_mut(kind.index()) {
            *unplaced = unplaced.saturating_add(count);
        }
    }

    /// The times of all operations that went well.
    pub(super) fn spreads(&self) -> Spreads {
        *self.spreads
    }

    /// What has come together; errors and slow operations are told once.
    pub(super) fn take(&mut self, now: Instant) -> VitalsReport {
        self.turn_to(now);
        let oldest = self.pending.values().map(|started| started.at).min();
        VitalsReport {
            disk: self.disk.clone(),
            errors: std::mem::take(&mut self.errors),
            unplaced: std::mem::take(&mut self.unplaced),
            stalls: std::mem::take(&mut self.stalls),
            outliers: std::mem::take(&mut self.outliers),
            times: std::array::from_fn(|at| self.times[at].times()),
            oldest_pending: oldest.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
        }
    }

    /// What was taken did not reach anybody.
    pub(super) fn put_back(&mut self, report: VitalsReport) {
        if report.disk != self.disk {
            return;
        }
        for seen in report.errors {
            self.note(seen.kind, seen.range, seen.count);
        }
        for (sum, part) in self.unplaced.iter_mut().zip(report.unplaced) {
            *sum = sum.saturating_add(part);
        }
        self.stalls += report.stalls;
        self.outliers += report.outliers;
    }

    /// Forgets the minutes that are too old.
    fn turn_to(&mut self, now: Instant) {
        let minute = now.saturating_duration_since(self.began).as_secs() / 60;
        if minute == self.minute {
            return;
        }
        let passed = minute.saturating_sub(self.minute).min(MINUTES as u64);
        for kind in self.times.iter_mut() {
            kind.judge();
            for back in 0..passed {
                if let Some(old) = kind.minutes.get_mut(slot(minute - back)) {
                    *old = Histogram::new();
                }
            }
        }
        self.minute = minute;
    }
}

fn slot(minute: u64) -> usize {
    usize::try_from(minute % MINUTES as u64).unwrap_or(0)
}

const fn index_of(kind: OpKind) -> usize {
    match kind {
        OpKind::Read => 0,
        OpKind::Write | OpKind::Discard | OpKind::WriteZeroes => 1,
        OpKind::Flush => 2,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_units::BLOCK_SIZE;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn times_are_those_of_the_last_minutes_and_of_what_went_well() {
        let began = Instant::now();
        let mut vitals = Vitals::new(Path::new("/a"), began);
        for op in 0..1000_u64 {
            let at = began + MS * 10 * u32::try_from(op).unwrap();
            vitals.started(op, OpKind::Read, at);
            let takes = if op % 100 == 7 { 40 * MS } else { 2 * MS };
            vitals.ended(op, at + takes, op % 100 != 50);
        }
        let now = began + Duration::from_secs(12);
        let read = vitals.take(now).times[0];
        assert_eq!(read.operations, 990);
        assert!((1900..=2100).contains(&read.p50), "{read:?}");
        assert!((38_000..=42_000).contains(&read.p999), "{read:?}");
        assert!(read.p99 >= 38_000 && read.max == 40_000, "{read:?}");
        // Each minute goes after five.
        assert_eq!(vitals.take(began + Duration::from_secs(299)).times[0].operations, 990);
        assert_eq!(vitals.take(began + Duration::from_secs(300)).times[0], Times::default());
        vitals.took(OpKind::Flush, MS, began + Duration::from_secs(301), true);
        assert_eq!(vitals.take(began + Duration::from_secs(5000)).times[2].operations, 0);
    }

    #[test]
    fn stalls_and_outliers_are_told_once_and_what_hangs_is_seen() {
        let began = Instant::now();
        let mut vitals = Vitals::new(Path::new("/a"), began);
        for _ in 0..200 {
            vitals.took(OpKind::Write, 10 * MS, began, true);
        }
        // The first minute has no bound yet; ten times the median is above the floor then.
        let next = began + Duration::from_secs(61);
        for takes in [49, 90, 101, 999, 1000, 3000] {
            vitals.took(OpKind::Write, MS * takes, next, true);
            vitals.took(OpKind::Read, MS * takes.min(999), next, true);
        }
        vitals.started(77, OpKind::Flush, next);
        let report = vitals.take(next + Duration::from_secs(8));
        assert_eq!((report.stalls, report.outliers), (2, 2));
        assert_eq!(report.oldest_pending, Duration::from_secs(8));
        vitals.ended(77, next + Duration::from_secs(9), true);
        let report = vitals.take(next + Duration::from_secs(9));
        assert_eq!((report.stalls, report.outliers), (1, 0));
        assert_eq!(report.oldest_pending, Duration::ZERO);
    }

    #[test]
    fn errors_are_told_once_with_their_places_and_no_more_than_there_is_room_for() {
        let now = Instant::now();
        let mut vitals = Vitals::new(Path::new("/a"), now);
        vitals.failed(ErrorKind::Flush, None);
        let bad = [ByteRange::new(0, BLOCK_SIZE), ByteRange::new(1 << 20, 3 * BLOCK_SIZE)];
        vitals.bad_blocks(ErrorKind::Checksum, &bad);
        let report = vitals.take(now);
        let seen: Vec<_> =
            report.errors.iter().map(|seen| (seen.kind, seen.range, seen.count)).collect();
        assert_eq!(
            seen,
            [
                (ErrorKind::Flush, None, 1),
                (ErrorKind::Checksum, Some(bad[0]), 1),
                (ErrorKind::Checksum, Some(bad[1]), 3),
            ]
        );
        assert!(vitals.take(now).errors.is_empty());
        // Nobody was there to hear it: the next one hears it.
        vitals.put_back(report);
        assert_eq!(vitals.take(now).errors.len(), 3);
        for _ in 0..PLACES + 5 {
            vitals.failed(ErrorKind::Read, Some(bad[0]));
        }
        let report = vitals.take(now);
        assert_eq!((report.errors.len(), report.unplaced[ErrorKind::Read.index()]), (PLACES, 5));
    }

    #[test]
    fn what_a_disk_went_through_is_not_its_successors() {
        let began = Instant::now();
        let mut vitals = Vitals::new(Path::new("/a"), began);
        vitals.took(OpKind::Read, 3 * MS, began, true);
        vitals.failed(ErrorKind::Write, None);
        vitals.started(7, OpKind::Write, began);
        let old = vitals.take(began);
        assert_eq!((old.disk.as_path(), old.times[0].operations), (Path::new("/a"), 1));
        vitals.failed(ErrorKind::Read, None);
        vitals.begin_anew(Path::new("/b"), began + 5 * MS);
        vitals.put_back(old);
        let new = vitals.take(began + 9 * MS);
        assert_eq!((new.disk.as_path(), new.errors.len()), (Path::new("/b"), 0));
        assert_eq!(new.times[0], Times::default());
        assert_eq!(new.oldest_pending, 9 * MS, "what waited for the change waits still");
    }

    #[test]
    fn a_call_that_does_not_return_is_seen_by_others() {
        let began = Instant::now();
        let vitals = Vitals::new(Path::new("/a"), began);
        let seen = vitals.in_call();
        assert_eq!(seen.elapsed(began + 9 * MS), Duration::ZERO);
        vitals.calls(began + 2 * MS);
        assert_eq!(seen.elapsed(began + 7002 * MS), 7000 * MS);
        vitals.returned();
        assert_eq!(seen.elapsed(began + 8000 * MS), Duration::ZERO);
    }
}
