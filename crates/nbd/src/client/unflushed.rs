//! What was completed and no flush has covered yet: a restart of the server may lose it.

use bytes::Bytes;
use holdfast_units::ByteRange;
use std::collections::{BTreeMap, VecDeque};

/// What a range was made to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kept {
    /// These bytes.
    Data(Bytes),
    /// Zeroes; they may have to take space.
    Zeroes { no_hole: bool },
    /// Anything.
    Trim,
}

/// The newest content of every range that no flush has covered.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    /// Without overlaps, by offset.
    pieces: BTreeMap<u64, Piece>,
    /// What each completed request weighs, with its number, in order. What a later one has
    /// replaced counts on: a slice holds on to all of its memory.
    weights: VecDeque<(u64, u64)>,
    weight: u64,
    next: u64,
}

#[derive(Debug)]
struct Piece {
    len: u64,
    kept: Kept,
    number: u64,
}

/// Everything that had been completed at some time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark(u64);

/// What a piece weighs besides its data.
const OVERHEAD: u64 = 128;

/// What a request will weigh.
pub(super) const fn weight(data: u64) -> u64 {
    data + OVERHEAD
}

impl Unflushed {
    /// A request was completed.
    pub(super) fn add(&mut self, range: ByteRange, kept: Kept) {
        self.cut(range);
        let weight = weight(if let Kept::Data(data) = &kept { data.len() as u64 } else { 0 });
        self.weights.push_back((self.next, weight));
        self.weight += weight;
        self.pieces.insert(range.offset, Piece { len: range.len, kept, number: self.next });
        self.next += 1;
    }

    /// Forgets what a range held: something newer is durable there.
    pub(super) fn cut(&mut self, range: ByteRange) {
        let before = self.pieces.range(..range.offset).next_back();
        if let Some((start, piece)) = before
            && *start + piece.len > range.offset
        {
            self.take_out(*start, range);
        }
        while let Some((start, _)) = self.pieces.range(range.offset..range.end()).next() {
            self.take_out(*start, range);
        }
    }

    /// Leaves of the piece at `start` only what is outside the range.
    fn take_out(&mut self, start: u64, range: ByteRange) {
        let Some(piece) = self.pieces.remove(&start) else { return };
        let end = start + piece.len;
        if start < range.offset {
            self.put_back(&piece, start, start, range.offset);
        }
        if end > range.end() {
            self.put_back(&piece, start, range.end(), end);
        }
    }

    /// Keeps the part `from..to` of a piece that begins at `start`.
    fn put_back(&mut self, piece: &Piece, start: u64, from: u64, to: u64) {
        let kept = match &piece.kept {
            Kept::Data(data) => {
                let at = |offset: u64| usize::try_from(offset - start).unwrap_or(usize::MAX);
                Kept::Data(data.slice(at(from)..at(to)))
            }
            other => other.clone(),
        };
        self.pieces.insert(from, Piece { len: to - from, kept, number: piece.number });
    }

    /// What a flush that is sent now will cover.
    pub(super) const fn mark(&self) -> Mark {
        Mark(self.next)
    }

    /// A flush that was sent at `mark` has succeeded.
    pub(super) fn flushed(&mut self, mark: Mark) {
        while let Some((_, weight)) = self.weights.pop_front_if(|(number, _)| *number < mark.0) {
            self.weight -= weight;
        }
        self.pieces.retain(|_, piece| piece.number >= mark.0);
    }

    /// How many bytes of memory it is worth.
    pub(super) const fn weight(&self) -> u64 {
        self.weight
    }

    /// How many requests it is worth.
    pub(super) fn count(&self) -> usize {
        self.weights.len()
    }

    /// Whether something is kept for a part of the range.
    pub(super) fn overlaps(&self, range: ByteRange) -> bool {
        let last = self.pieces.range(..range.end()).next_back();
        last.is_some_and(|(start, piece)| start + piece.len > range.offset)
    }

    /// All that is kept.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (ByteRange, &Kept)> {
        self.pieces.iter().map(|(start, piece)| (ByteRange::new(*start, piece.len), &piece.kept))
    }

    /// Where the newest requests before `mark` wrote, the newest first.
    pub(super) fn newest_before(&self, mark: Mark, count: usize) -> Vec<ByteRange> {
        let mut all: Vec<_> =
            self.pieces.iter().filter(|(_, piece)| piece.number < mark.0).collect();
        let count = count.min(all.len());
        if count < all.len() {
            all.select_nth_unstable_by_key(count, |(_, piece)| std::cmp::Reverse(piece.number));
        }
        all[..count].iter().map(|(start, piece)| ByteRange::new(**start, piece.len)).collect()
    }

    /// The newest data that were written before `mark`.
    pub(super) fn newest_data_before(&self, mark: Mark) -> Option<(ByteRange, Bytes)> {
        let before = self.pieces.iter().filter(|(_, piece)| piece.number < mark.0);
        let (start, piece) = before.max_by_key(|(_, piece)| piece.number)?;
        match &piece.kept {
            Kept::Data(data) => Some((ByteRange::new(*start, piece.len), data.clone())),
            Kept::Zeroes { .. } | Kept::Trim => None,
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.weights.clear();
        self.weight = 0;
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of the tests are small")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 64;

    /// The content that the pieces make of a disk full of 0xff.
    fn image(unflushed: &Unflushed) -> Vec<u8> {
        let mut image = vec![0xff; SIZE as usize];
        let mut end = 0;
        for (range, kept) in unflushed.pieces() {
            assert!(range.offset >= end && range.len > 0, "pieces overlap or are empty");
            end = range.end();
            let target = &mut image[range.offset as usize..end as usize];
            match kept {
                Kept::Data(data) => target.copy_from_slice(data),
                Kept::Zeroes { .. } => target.fill(0),
                Kept::Trim => target.fill(0xfe),
            }
        }
        image
    }

    #[test]
    fn a_flush_covers_what_came_before_it() {
        let mut kept = Unflushed::default();
        kept.add(ByteRange::new(0, 4), Kept::Data(Bytes::from_static(b"aaaa")));
        let mark = kept.mark();
        kept.add(ByteRange::new(1, 2), Kept::Data(Bytes::from_static(b"bb")));
        assert_eq!(kept.count(), 2);
        assert_eq!(kept.newest_before(mark, 9).len(), 2, "both sides of what was replaced");
        kept.flushed(mark);
        assert_eq!(kept.pieces().count(), 1);
        assert!(kept.overlaps(ByteRange::new(2, 10)) && !kept.overlaps(ByteRange::new(3, 10)));
        assert!(!kept.overlaps(ByteRange::new(0, 1)));
        assert_eq!(kept.weight(), weight(2));
        kept.flushed(kept.mark());
        assert!(kept.pieces().count() == 0 && kept.weight() == 0 && kept.count() == 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(ByteRange, Kept),
        Cut(ByteRange),
    }

    fn step() -> impl Strategy<Value = Step> {
        (0..SIZE, 1..20u64, 0..4u8, any::<u8>()).prop_map(|(offset, len, kind, byte)| {
            let range = ByteRange::new(offset, len.min(SIZE - offset));
            match kind {
                0 => Step::Add(range, Kept::Zeroes { no_hole: false }),
                1 => Step::Add(range, Kept::Trim),
                2 => Step::Cut(range),
                _ => Step::Add(range, Kept::Data(vec![byte & 0x7f; range.len as usize].into())),
            }
        })
    }

    proptest! {
        #[test]
        fn the_newest_wins(steps in proptest::collection::vec(step(), 0..60)) {
            let mut kept = Unflushed::default();
            let mut model = vec![0xff; SIZE as usize];
            for step in steps {
                let (range, byte) = match &step {
                    Step::Cut(range) => (*range, 0xff),
                    Step::Add(range, Kept::Data(data)) => (*range, data[0]),
                    Step::Add(range, Kept::Zeroes { .. }) => (*range, 0),
                    Step::Add(range, Kept::Trim) => (*range, 0xfe),
                };
                model[range.offset as usize..range.end() as usize].fill(byte);
                match step {
                    Step::Add(range, what) => kept.add(range, what),
                    Step::Cut(range) => kept.cut(range),
                }
                prop_assert_eq!(&image(&kept), &model);
            }
        }
    }
}
