//! Where the bytes of an export lie in its parts.

use holdfast_units::ByteRange;

/// How several files or devices make up one export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One after the other; one alone, too.
    Concat,
    /// In turns, so many bytes of each.
    Stripe {
        /// Bytes of a turn.
        chunk: u64,
    },
    /// Every one has all of it.
    Mirror,
}

/// The places of all bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    shape: Shape,
    /// Where each part begins, when they follow each other.
    starts: Vec<u64>,
    parts: u64,
    size: u64,
}

/// A piece of a range that lies in one part without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which part; for a mirror 0, which stands for any.
    pub(super) part: usize,
    /// Where in the part.
    pub(super) at: u64,
    /// Where in the export.
    pub(super) offset: u64,
    /// How many bytes.
    pub(super) len: u64,
}

impl Piece {
    /// Its place in the part.
    pub(super) const fn range(&self) -> ByteRange {
        ByteRange::new(self.at, self.len)
    }
}

/// What the parts together hold is less than 2^63 bytes, as the protocol demands.
pub(super) const MAX_SIZE: u64 = i64::MAX as u64;

impl Layout {
    /// The layout of parts of these lengths; `None` when nothing is left of them, or too much.
    pub(super) fn new(shape: Shape, lens: &[u64]) -> Option<Self> {
        let smallest = lens.iter().copied().min()?;
        let parts = lens.len() as u64;
        let mut starts = Vec::new();
        let size = match shape {
            Shape::Concat => {
                let mut end = 0u64;
                for len in lens {
                    starts.push(end);
                    end = end.checked_add(*len)?;
                }
                end
            }
            Shape::Stripe { chunk } => (smallest / chunk * chunk).checked_mul(parts)?,
            Shape::Mirror => smallest,
        };
        (1..=MAX_SIZE).contains(&size).then_some(Self { shape, starts, parts, size })
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    pub(super) const fn is_mirror(&self) -> bool {
        matches!(self.shape, Shape::Mirror)
    }

    /// What parts of these lengths hold now; never less than before.
    pub(super) fn grow(&mut self, lens: &[u64]) {
        let size = match (self.shape, lens.last(), self.starts.last()) {
            // Only the last one can grow: what lies behind another one would move.
            (Shape::Concat, Some(len), Some(start)) => start.checked_add(*len),
            (Shape::Concat, ..) => None,
            (shape, ..) => Self::new(shape, lens).map(|layout| layout.size),
        };
        self.size = size.filter(|size| *size <= MAX_SIZE).unwrap_or(0).max(self.size);
    }

    /// It has `size` bytes from now on, for which its parts are long enough.
    pub(super) fn grow_to(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// How long each part must be for an export of `size` bytes, and 0 for those that it does not
    /// matter for.
    pub(super) fn lens_for(&self, size: u64) -> Vec<u64> {
        let parts = 0..self.parts;
        match self.shape {
            Shape::Concat => {
                let last = self.starts.last().copied().unwrap_or(0);
                let len = |part| if part + 1 == self.parts { size.saturating_sub(last) } else { 0 };
                parts.map(len).collect()
            }
            Shape::Stripe { chunk } => {
                let turns = size.div_ceil(chunk * self.parts);
                parts.map(|_| turns * chunk).collect()
            }
            Shape::Mirror => parts.map(|_| size).collect(),
        }
    }

    /// The pieces of a range within the size, in order.
    pub(super) fn pieces(&self, range: ByteRange) -> impl Iterator<Item = Piece> + use<'_> {
        let mut offset = range.offset;
        std::iter::from_fn(move || {
            let left = range.end() - offset;
            if left == 0 {
                return None;
            }
            let (part, at, run) = self.place(offset);
            let len = left.min(run);
            let piece = Piece { part, at, offset, len };
            offset += len;
            Some(piece)
        })
    }

    /// The part and the place in it of one byte, and how many bytes follow it there.
    fn place(&self, offset: u64) -> (usize, u64, u64) {
        match self.shape {
            Shape::Mirror => (0, offset, u64::MAX),
            Shape::Concat => {
                let part = self.starts.partition_point(|start| *start <= offset) - 1;
                let end = self.starts.get(part + 1).copied().unwrap_or(u64::MAX);
                (part, offset - self.starts[part], end - offset)
            }
            Shape::Stripe { chunk } => {
                let (number, within) = (offset / chunk, offset % chunk);
                let part = usize::try_from(number % self.parts).unwrap_or(usize::MAX);
                (part, number / self.parts * chunk + within, chunk - within)
            }
        }
    }

    /// What a range covers of each part: one stretch, where it covers any. In the order of the
    /// parts; for a mirror the range itself, once.
    pub(super) fn spans(&self, range: ByteRange) -> Vec<(usize, ByteRange)> {
        match self.shape {
            Shape::Concat | Shape::Mirror => {
                self.pieces(range).map(|piece| (piece.part, piece.range())).collect()
            }
            Shape::Stripe { chunk } => {
                let before = |part, offset| self.stripe_before(chunk, part, offset);
                (0..self.parts)
                    .filter_map(|part| {
                        let start = before(part, range.offset);
                        let len = before(part, range.end()) - start;
                        let part = usize::try_from(part).ok()?;
                        (len > 0).then(|| (part, ByteRange::new(start, len)))
                    })
                    .collect()
            }
        }
    }

    /// How many bytes of a part lie before an offset of the export.
    const fn stripe_before(&self, chunk: u64, part: u64, offset: u64) -> u64 {
        let number = offset / chunk;
        let (turn, at) = (number / self.parts, number % self.parts);
        turn * chunk
            + if part < at {
                chunk
            } else if part == at {
                offset % chunk
            } else {
                0
            }
    }
}

#[cfg(test)]
mod tests {
    use super::{Layout, MAX_SIZE, Piece, Shape};
    use holdfast_units::ByteRange;

    const STRIPE: Shape = Shape::Stripe { chunk: 4 };

    fn shapes() -> [(Layout, u64); 5] {
        [
            (Layout::new(Shape::Concat, &[7]).unwrap(), 7),
            (Layout::new(Shape::Concat, &[3, 1, 20]).unwrap(), 24),
            (Layout::new(STRIPE, &[12, 13, 19]).unwrap(), 36),
            (Layout::new(STRIPE, &[9]).unwrap(), 8),
            (Layout::new(Shape::Mirror, &[11, 10]).unwrap(), 10),
        ]
    }

    /// Where a byte lies, the simple way.
    fn of_byte(layout: &Layout, offset: u64) -> (usize, u64) {
        let pieces: Vec<_> = layout.pieces(ByteRange::new(offset, 1)).collect();
        let [Piece { part, at, .. }] = pieces[..] else { panic!("{pieces:?}") };
        (part, at)
    }

    #[test]
    fn every_byte_has_a_place_of_its_own() {
        for (layout, size) in shapes() {
            assert_eq!(layout.size(), size);
            let mut places: Vec<_> = (0..size).map(|offset| of_byte(&layout, offset)).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len() as u64, size, "{layout:?}");
        }
        let (stripe, _) = &shapes()[2];
        assert_eq!(of_byte(stripe, 4), (1, 0));
        assert_eq!(of_byte(stripe, 13), (0, 5));
        assert_eq!(of_byte(&shapes()[1].0, 3), (1, 0));
        assert_eq!(of_byte(&shapes()[1].0, 4), (2, 0));
    }

    #[test]
    fn pieces_and_spans_of_a_range_are_the_places_of_its_bytes() {
        for (layout, size) in shapes() {
            for offset in 0..size {
                for len in 0..=size - offset {
                    let range = ByteRange::new(offset, len);
                    let mut due: Vec<_> =
                        (offset..offset + len).map(|at| of_byte(&layout, at)).collect();
                    let bytes = |(part, range): (usize, ByteRange)| {
                        (range.offset..range.end()).map(move |at| (part, at))
                    };
                    let pieces = layout.pieces(range).map(|piece| (piece.part, piece.range()));
                    let in_order: Vec<_> = pieces.flat_map(bytes).collect();
                    assert_eq!(in_order, due, "{layout:?} {range}");
                    let spans = layout.spans(range);
                    let mut found: Vec<_> = spans.iter().copied().flat_map(bytes).collect();
                    found.sort_unstable();
                    due.sort_unstable();
                    assert_eq!(found, due, "{layout:?} {range}");
                    assert!(spans.windows(2).all(|pair| pair[0].0 < pair[1].0));
                }
            }
        }
    }

    #[test]
    fn what_has_grown_is_used_where_nothing_would_move() {
        let mut concat = Layout::new(Shape::Concat, &[3, 5]).unwrap();
        concat.grow(&[9, 5]);
        assert_eq!(concat.size(), 8, "the first must not grow");
        concat.grow(&[3, 9]);
        assert_eq!(concat.size(), 12);
        concat.grow(&[3, 1]);
        assert_eq!(concat.size(), 12);
        assert_eq!(of_byte(&concat, 11), (1, 8));
        assert_eq!(concat.lens_for(20), [0, 17]);
        let mut stripe = Layout::new(STRIPE, &[8, 8]).unwrap();
        stripe.grow(&[100, 13]);
        assert_eq!(stripe.size(), 24);
        assert_eq!(stripe.lens_for(25), [16, 16]);
        let mut mirror = Layout::new(Shape::Mirror, &[8, 9]).unwrap();
        mirror.grow(&[10, 9]);
        assert_eq!(mirror.size(), 9);
        assert_eq!(mirror.lens_for(20), [20, 20]);
    }

    #[test]
    fn nothing_and_too_much_are_no_export() {
        assert_eq!(Layout::new(Shape::Concat, &[]), None);
        assert_eq!(Layout::new(STRIPE, &[3, 100]), None);
        assert_eq!(Layout::new(Shape::Concat, &[MAX_SIZE, 1]), None);
        assert_eq!(Layout::new(Shape::Concat, &[u64::MAX, 1]), None);
        assert!(Layout::new(Shape::Concat, &[MAX_SIZE]).is_some());
    }
}
