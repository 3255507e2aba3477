//! What clients have changed since some point in time.

use crate::Extent;
use holdfast_units::ByteRange;

/// Changes are remembered in pieces of this size, 2 MiB of memory for 1 TiB, or larger ones.
const PIECE: u64 = 64 << 10;
/// The most pieces: 16 MiB of memory. When there would be more, two become one.
const MAX_PIECES: u64 = 1 << 27;
/// The most extents in one answer.
const MAX_EXTENTS: usize = 4096;

/// Which pieces of 64 KiB were changed: a dirty bitmap, as the context of an export tells it. Takes
/// 2 MiB of memory for 1 TiB, and 16 MiB at most: larger exports have larger pieces.
#[derive(Clone, Debug)]
pub struct Changes {
    bits: Vec<u64>,
    piece: u64,
    size: u64,
}

impl Changes {
    /// Of an export of `size` bytes, none so far.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let mut changes = Self { bits: Vec::new(), piece: PIECE, size: 0 };
        changes.grow(size);
        changes
    }

    /// The export has grown; what is new counts as unchanged.
    pub fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
        while self.size.div_ceil(self.piece) > MAX_PIECES {
            self.coarsen();
        }
        let words = self.size.div_ceil(self.piece * 64);
        self.bits.resize(usize::try_from(words).unwrap_or(usize::MAX), 0);
    }

    /// Makes one piece of every two; it is changed when one of them was.
    fn coarsen(&mut self) {
        self.piece *= 2;
        let mut halves = self.bits.chunks(2).map(|pair| {
            let half = |at: usize| pair.get(at).map_or(0, |bits| u64::from(pairs(*bits)));
            half(0) | half(1) << 32
        });
        self.bits = halves.by_ref().collect();
    }

    /// This range is being changed.
    pub fn note(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let (first, end) = (range.offset / self.piece, range.end().div_ceil(self.piece));
        for word in first / 64..end.div_ceil(64) {
            let start = first.saturating_sub(word * 64);
            let count = (end - word * 64).min(64) - start;
            let mask = (u64::MAX >> (64 - count)) << start;
            if let Some(bits) = usize::try_from(word).ok().and_then(|word| self.bits.get_mut(word))
            {
                *bits |= mask;
            }
        }
    }

    fn is_changed(&self, piece: u64) -> bool {
        let word = usize::try_from(piece / 64).ok().and_then(|word| self.bits.get(word));
        word.is_some_and(|bits| bits >> (piece % 64) & 1 == 1)
    }

    /// Whether 64 pieces that begin a word are all like this one.
    fn is_uniform(&self, piece: u64, changed: bool) -> bool {
        let word = usize::try_from(piece / 64).ok().and_then(|word| self.bits.get(word));
        word == Some(if changed { &u64::MAX } else { &0 })
    }

    /// What is changed from the start of a range on, to its end, or not so far when there would be
    /// more than 4096 extents.
    #[must_use]
    pub fn extents(&self, range: ByteRange) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut at = range.offset;
        let stop = range.end().min(self.size);
        while at < stop && extents.len() < MAX_EXTENTS {
            let changed = self.is_changed(at / self.piece);
            let mut piece = at / self.piece + 1;
            while piece * self.piece < stop && self.is_changed(piece) == changed {
                let leap = piece.is_multiple_of(64) && self.is_uniform(piece, changed);
                piece += if leap { 64 } else { 1 };
            }
            let end = piece.saturating_mul(self.piece).min(self.size);
            extents.push(Extent::dirty(end - at, changed));
            at = end;
        }
        extents
    }
}

/// For every two neighbouring bits whether one of them is set.
fn pairs(bits: u64) -> u32 {
    (0..32).fold(0, |all, at| all | u32::from(bits >> (2 * at) & 3 != 0) << at)
}

#[cfg(test)]
mod tests {
    use super::{Changes, MAX_EXTENTS, MAX_PIECES, PIECE};
    use crate::Extent;
    use holdfast_units::ByteRange;

    fn flat(extents: &[Extent]) -> Vec<(u64, bool)> {
        extents.iter().map(|extent| (extent.len / PIECE, extent.flags == 1)).collect()
    }

    #[test]
    fn changes_are_told_in_pieces() {
        let size = 1000 * PIECE + 5;
        let mut changes = Changes::new(size);
        let all = ByteRange::new(0, size);
        assert_eq!(changes.extents(all), [Extent::dirty(size, false)]);
        changes.note(ByteRange::new(3 * PIECE + 1, 1));
        changes.note(ByteRange::new(63 * PIECE, 2 * PIECE));
        changes.note(ByteRange::new(200 * PIECE - 1, 300 * PIECE + 2));
        changes.note(ByteRange::new(700 * PIECE, 0));
        let expected = [
            (3, false),
            (1, true),
            (59, false),
            (2, true),
            (134, false),
            (302, true),
            (499, false),
        ];
        assert_eq!(flat(&changes.extents(all)), expected);
        let total: u64 = changes.extents(all).iter().map(|extent| extent.len).sum();
        assert_eq!(total, size);
        let inside = changes.extents(ByteRange::new(3 * PIECE + 100, 10));
        assert_eq!(inside, [Extent::dirty(PIECE - 100, true)]);
    }

    #[test]
    fn the_last_piece_and_what_has_grown() {
        let mut changes = Changes::new(PIECE + 1);
        changes.note(ByteRange::new(PIECE, 1));
        let all = ByteRange::new(0, PIECE + 1);
        assert_eq!(changes.extents(all), [Extent::dirty(PIECE, false), Extent::dirty(1, true)]);
        changes.grow(3 * PIECE);
        changes.grow(1);
        let all = ByteRange::new(0, 3 * PIECE);
        assert_eq!(flat(&changes.extents(all)), [(1, false), (1, true), (1, false)]);
    }

    #[test]
    fn a_large_export_has_larger_pieces() {
        let mut changes = Changes::new(1 << 40);
        assert_eq!((changes.piece, changes.bits.len()), (PIECE, 1 << 18));
        changes.note(ByteRange::new(65 * PIECE, 1));
        changes.note(ByteRange::new((1 << 40) - 1, 1));
        changes.grow(MAX_PIECES * PIECE * 4);
        assert_eq!((changes.piece, changes.bits.len() as u64), (4 * PIECE, MAX_PIECES / 64));
        let extents = changes.extents(ByteRange::new(0, 1 << 40));
        let expected = [
            Extent::dirty(64 * PIECE, false),
            Extent::dirty(4 * PIECE, true),
            Extent::dirty((1 << 40) - 72 * PIECE, false),
            Extent::dirty(4 * PIECE, true),
        ];
        assert_eq!(extents, expected);
        assert_eq!(Changes::new(i64::MAX as u64).bits.len() as u64, MAX_PIECES / 64);
    }

    #[test]
    fn an_answer_is_bounded_and_ranges_agree_with_single_notes() {
        let size = 20_000 * PIECE;
        let mut changes = Changes::new(size);
        for piece in (0..20_000).step_by(2) {
            changes.note(ByteRange::new(piece * PIECE, 1));
        }
        assert_eq!(changes.extents(ByteRange::new(0, size)).len(), MAX_EXTENTS);
        let (mut long, mut single) = (Changes::new(size), Changes::new(size));
        for (first, count) in [(0, 1), (60, 10), (64, 64), (300, 1000), (5000, 63), (127, 1)] {
            long.note(ByteRange::new(first * PIECE, count * PIECE));
            (first..first + count).for_each(|at| single.note(ByteRange::new(at * PIECE, 1)));
        }
        assert_eq!(long.bits, single.bits);
    }
}
