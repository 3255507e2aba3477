//! The errors of a disk as they are kept over restarts: totals, how many there were lately, where.

use crate::shard::{ErrorKind, ErrorSeen, VitalsReport};
use holdfast_api::health::{DiskErrors, HotRegion};
use holdfast_units::ByteRange;
use serde::{Deserialize, Serialize};

/// A region of the disk that errors are counted for, in bytes.
pub(super) const REGION: u64 = 1 << 20;
/// So many regions are told.
const TOLD: usize = 16;
/// So many are counted: one that gets its first error must be able to become one of the worst.
const COUNTED: usize = 64;
/// The sector that addresses of disks count in.
const SECTOR: u64 = 512;

const MINUTE: u64 = 60_000;

/// How many of something there were in the last while, in a row of equal pieces of time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Window {
    /// How long a piece is, in milliseconds.
    width: u64,
    /// The number of the newest piece, since 1970.
    newest: u64,
    /// The newest piece first.
    pieces: Vec<u64>,
}

impl Window {
    fn new(width: u64, pieces: usize) -> Self {
        Self { width, newest: 0, pieces: vec![0; pieces] }
    }

    fn hour() -> Self {
        Self::new(5 * MINUTE, 12)
    }

    fn day() -> Self {
        Self::new(60 * MINUTE, 24)
    }

    fn add(&mut self, now: u64, count: u64) {
        self.turn_to(now);
        if let Some(first) = self.pieces.first_mut() {
            *first = first.saturating_add(count);
        }
    }

    /// How many there were, of which the first ones may be as old as the window and a piece.
    fn sum(&self, now: u64) -> u64 {
        let past = self.number(now).saturating_sub(self.newest);
        let left = self.pieces.len().saturating_sub(usize::try_from(past).unwrap_or(usize::MAX));
        self.pieces.iter().take(left).fold(0, |sum, piece| sum.saturating_add(*piece))
    }

    fn number(&self, now: u64) -> u64 {
        now.checked_div(self.width).unwrap_or(0)
    }

    /// A clock that was far ahead has not been right: what it counted is not new for ever.
    fn not_ahead_of(&mut self, now: u64) {
        let number = self.number(now);
        if self.newest > number.saturating_add(self.pieces.len() as u64) {
            self.newest = number;
        }
    }

    /// A clock that was set back counts into the newest piece.
    fn turn_to(&mut self, now: u64) {
        let number = self.number(now);
        let past = number.saturating_sub(self.newest);
        let past = usize::try_from(past).unwrap_or(usize::MAX).min(self.pieces.len());
        self.pieces.rotate_right(past);
        self.pieces.iter_mut().take(past).for_each(|piece| *piece = 0);
        self.newest = self.newest.max(number);
    }

    /// Whether it has the shape that it must have: the file may be somebody else's work.
    fn has_shape_of(&self, other: &Self) -> bool {
        self.width == other.width && self.pieces.len() == other.pieces.len()
    }
}

/// A region with errors.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Region {
    number: u64,
    errors: u64,
    lba: u64,
    first: u64,
    last: u64,
}

/// What is kept of the errors of one disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// The file or device that they are of.
    pub(super) disk: String,
    /// Since when they are counted, in milliseconds since 1970.
    pub(super) since: u64,
    /// When the last one was.
    pub(super) last_error: Option<u64>,
    /// By [`ErrorKind::index`].
    errors: [u64; ErrorKind::COUNT],
    pub(super) stalls: u64,
    pub(super) outliers: u64,
    errors_hour: Window,
    errors_day: Window,
    stalls_hour: Window,
    regions: Vec<Region>,
}

impl Kept {
    /// Nothing yet.
    pub(super) fn new(disk: &str, now: u64) -> Self {
        Self {
            disk: disk.to_owned(),
            since: now,
            last_error: None,
            errors: [0; ErrorKind::COUNT],
            stalls: 0,
            outliers: 0,
            errors_hour: Window::hour(),
            errors_day: Window::day(),
            stalls_hour: Window::hour(),
            regions: Vec::new(),
        }
    }

    /// Whether it can be used as it was read.
    pub(super) fn is_sound(&self) -> bool {
        self.errors_hour.has_shape_of(&Window::hour())
            && self.errors_day.has_shape_of(&Window::day())
            && self.stalls_hour.has_shape_of(&Window::hour())
            && self.regions.len() <= COUNTED
    }

    /// Takes in what the shard tells; whether that is worth keeping.
    pub(super) fn take(&mut self, report: &VitalsReport, now: u64) -> bool {
        for window in [&mut self.errors_hour, &mut self.errors_day, &mut self.stalls_hour] {
            window.not_ahead_of(now);
        }
        for seen in &report.errors {
            self.take_error(seen);
        }
        for (kind, count) in report.unplaced.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.count(kind, *count, now);
        }
        self.stalls = self.stalls.saturating_add(report.stalls);
        self.outliers = self.outliers.saturating_add(report.outliers);
        if report.stalls > 0 {
            self.stalls_hour.add(now, report.stalls);
        }
        !report.errors.is_empty()
            || report.unplaced.iter().any(|count| *count > 0)
            || report.stalls > 0
            || report.outliers > 0
    }

    /// So many of the blocks that could not be read had a wrong checksum; how many of them were known.
    pub(super) fn were_checksums(&mut self, count: u64) -> u64 {
        let [read, .., checksum] = &mut self.errors;
        let moved = count.min(*read);
        *read -= moved;
        *checksum = checksum.saturating_add(moved);
        moved
    }

    fn take_error(&mut self, seen: &ErrorSeen) {
        self.count(seen.kind.index(), seen.count, seen.at_unix_ms);
        if let Some(range) = seen.range {
            self.place(range, seen.count, seen.at_unix_ms);
        }
    }

    fn count(&mut self, kind: usize, count: u64, at: u64) {
        if let Some(sum) = self.errors.get_mut(kind) {
            *sum = sum.saturating_add(count);
        }
        self.errors_hour.add(at, count);
        self.errors_day.add(at, count);
        self.last_error = Some(self.last_error.unwrap_or(0).max(at));
    }

    /// Counts errors where they were. A whole operation that failed counts where it begins.
    fn place(&mut self, range: ByteRange, count: u64, at: u64) {
        let mut left = count;
        let mut offset = range.offset;
        while left > 0 {
            let end = (offset / REGION + 1) * REGION;
            let here = match count {
                1 => 1,
                _ => left.min((end - offset).div_ceil(holdfast_units::BLOCK_SIZE)),
            };
            self.place_one(offset, here, at);
            left -= here;
            offset = end;
        }
    }

    fn place_one(&mut self, offset: u64, count: u64, at: u64) {
        let number = offset / REGION;
        let lba = offset / SECTOR;
        if let Some(known) = self.regions.iter_mut().find(|region| region.number == number) {
            known.errors = known.errors.saturating_add(count);
            known.lba = lba;
            known.last = known.last.max(at);
            return;
        }
        if self.regions.len() >= COUNTED {
            let least = self.regions.iter().enumerate().min_by_key(|(_, r)| (r.errors, r.last));
            if let Some(at) = least.map(|(at, _)| at) {
                self.regions.swap_remove(at);
            }
        }
        self.regions.push(Region { number, errors: count, lba, first: at, last: at });
    }

    pub(super) fn errors(&self) -> DiskErrors {
        let [read, write, flush, metadata, checksum] = self.errors;
        DiskErrors { read, write, flush, metadata, checksum }
    }

    /// Of all kinds.
    pub(super) fn all_errors(&self) -> u64 {
        self.errors.iter().sum()
    }

    pub(super) fn errors_last_hour(&self, now: u64) -> u64 {
        self.errors_hour.sum(now)
    }

    /// Those of the last hour included.
    pub(super) fn errors_last_day(&self, now: u64) -> u64 {
        self.errors_day.sum(now).max(self.errors_hour.sum(now))
    }

    pub(super) fn stalls_last_hour(&self, now: u64) -> u64 {
        self.stalls_hour.sum(now)
    }

    /// The worst regions, the worst first.
    pub(super) fn hot_regions(&self) -> Vec<HotRegion> {
        let mut regions: Vec<&Region> = self.regions.iter().collect();
        regions.sort_by_key(|region| (std::cmp::Reverse(region.errors), region.number));
        let told = regions.into_iter().take(TOLD);
        told.map(|region| HotRegion {
            offset_bytes: region.number.saturating_mul(REGION),
            lba: region.lba,
            errors: region.errors,
            first_unix_ms: region.first,
            last_unix_ms: region.last,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * MINUTE;
    const NOW: u64 = 1_800_000_000_000;

    fn seen(kind: ErrorKind, offset: u64, blocks: u64, at: u64) -> ErrorSeen {
        let range = ByteRange::new(offset, blocks * holdfast_units::BLOCK_SIZE);
        ErrorSeen { kind, range: Some(range), count: blocks, at_unix_ms: at }
    }

    fn report(errors: Vec<ErrorSeen>) -> VitalsReport {
        VitalsReport { errors, ..VitalsReport::default() }
    }

    #[test]
    fn errors_are_counted_and_age() {
        let mut kept = Kept::new("/dev/x", NOW);
        assert!(!kept.take(&VitalsReport::default(), NOW));
        let errors = (0..37).map(|at| seen(ErrorKind::Read, at * 4096, 1, NOW)).collect();
        assert!(kept.take(&report(errors), NOW));
        let unplaced = VitalsReport { unplaced: [0, 3, 0, 0, 0], ..VitalsReport::default() };
        assert!(kept.take(&unplaced, NOW));
        let due = DiskErrors { read: 37, write: 3, ..DiskErrors::default() };
        assert_eq!(kept.errors(), due);
        let lately = |at: u64| (kept.errors_last_hour(at), kept.errors_last_day(at));
        assert_eq!(lately(NOW), (40, 40));
        assert_eq!(lately(NOW + HOUR - 6 * MINUTE), (40, 40));
        assert_eq!(lately(NOW + HOUR + 5 * MINUTE), (0, 40));
        assert_eq!(lately(NOW + 23 * HOUR), (0, 40));
        assert_eq!(lately(NOW + 25 * HOUR), (0, 0));
        // A clock that goes back loses nothing.
        assert_eq!(lately(NOW - 100 * HOUR), (40, 40));
        let mut early = kept.clone();
        early.take(&report(vec![seen(ErrorKind::Flush, 0, 1, NOW - 100 * HOUR)]), NOW);
        assert_eq!(early.errors_last_hour(NOW), 41);
        assert_eq!(early.last_error, Some(NOW));
        assert_eq!(kept.errors(), due);
    }

    #[test]
    fn wrong_checksums_are_told_apart_from_other_reads() {
        let mut kept = Kept::new("/dev/x", NOW);
        kept.take(&report(vec![seen(ErrorKind::Read, 0, 3, NOW)]), NOW);
        assert_eq!((kept.were_checksums(2), kept.were_checksums(5)), (2, 1));
        let due = DiskErrors { checksum: 3, ..DiskErrors::default() };
        assert_eq!((kept.errors(), kept.errors_last_hour(NOW)), (due, 3));
    }

    #[test]
    fn a_window_forgets_piece_by_piece() {
        let mut window = Window::hour();
        for piece in 0..24 {
            window.add(NOW + piece * 5 * MINUTE, 1);
            assert_eq!(window.sum(NOW + piece * 5 * MINUTE), (piece + 1).min(12));
        }
        window.add(u64::MAX, 5);
        assert_eq!(window.sum(u64::MAX), 5);
    }

    #[test]
    fn the_worst_regions_are_told_with_their_places_and_times() {
        let mut kept = Kept::new("/dev/x", NOW);
        let hot = 700 * REGION;
        for n in 0..200_u64 {
            let one = seen(ErrorKind::Read, n * REGION + 8192, 1, NOW + n);
            // One place again and again among many that fail once.
            kept.take(&report(vec![one, seen(ErrorKind::Read, hot + 4096, 1, NOW + n)]), NOW);
        }
        let regions = kept.hot_regions();
        assert_eq!(regions.len(), TOLD);
        let due = HotRegion {
            offset_bytes: hot,
            lba: (hot + 4096) / 512,
            errors: 200,
            first_unix_ms: NOW,
            last_unix_ms: NOW + 199,
        };
        assert_eq!(regions[0], due);
        assert!(regions[1..].iter().all(|region| region.errors == 1));
        assert!(kept.regions.len() <= COUNTED && kept.is_sound());
    }

    #[test]
    fn a_run_over_the_edge_of_a_region_counts_in_both() {
        let mut kept = Kept::new("/dev/x", NOW);
        let run = seen(ErrorKind::Checksum, REGION - 3 * 4096, 5, NOW);
        kept.take(&report(vec![run]), NOW);
        let found: Vec<_> = kept.hot_regions().iter().map(|r| (r.offset_bytes, r.errors)).collect();
        assert_eq!(found, [(0, 3), (REGION, 2)]);
        // A whole operation is one error, where it begins.
        let whole = ErrorSeen { count: 1, ..seen(ErrorKind::Write, REGION - 4096, 256, NOW) };
        kept.take(&report(vec![whole]), NOW);
        assert_eq!(kept.hot_regions()[0].errors, 4);
    }
}
