use holdfast_units::{BLOCK_SIZE, ByteRange};
use std::collections::BTreeMap;
use std::ops::Range;

/// Bits of one piece of the bitmap, which takes memory only when one of them is set.
const PIECE: u64 = 32_768;
const WORDS: usize = 512;

/// Which blocks of 4096 bytes of a disk; takes memory for pieces of 128 MiB that have any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bitmap {
    pieces: BTreeMap<u64, Box<[u64; WORDS]>>,
    count: u64,
}

impl Bitmap {
    /// Adds the blocks that a range touches.
    pub(super) fn set(&mut self, range: ByteRange) {
        for (piece, bits) in by_piece(range.blocks()) {
            let words = self.pieces.entry(piece).or_insert_with(|| Box::new([0; WORDS]));
            for (word, mask) in by_word(bits) {
                self.count += u64::from((mask & !words[word]).count_ones());
                words[word] |= mask;
            }
        }
    }

    /// Takes out the blocks that lie completely in a range, or are cut off by the end of the disk.
    pub(super) fn clear(&mut self, range: ByteRange, size: u64) {
        let end =
            if range.end() >= size { size.div_ceil(BLOCK_SIZE) } else { range.end() / BLOCK_SIZE };
        let start = range.offset.div_ceil(BLOCK_SIZE);
        for (piece, bits) in by_piece(start..end.max(start)) {
            let Some(words) = self.pieces.get_mut(&piece) else { continue };
            for (word, mask) in by_word(bits) {
                self.count -= u64::from((mask & words[word]).count_ones());
                words[word] &= !mask;
            }
            if words.iter().all(|word| *word == 0) {
                self.pieces.remove(&piece);
            }
        }
    }

    /// Adds all blocks of another one.
    pub(super) fn add(&mut self, other: &Self) {
        for (piece, theirs) in &other.pieces {
            let words = self.pieces.entry(*piece).or_insert_with(|| Box::new([0; WORDS]));
            for (word, mask) in words.iter_mut().zip(theirs.iter()) {
                self.count += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
        }
    }

    /// How many blocks.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a block of this range is set.
    pub(super) fn touches(&self, range: ByteRange) -> bool {
        let blocks = range.blocks();
        self.next_run(blocks.start, 1).is_some_and(|run| run.start < blocks.end)
    }

    /// The first blocks at or behind block `from`, at most `most` that follow each other.
    pub(super) fn next_run(&self, from: u64, most: u64) -> Option<Range<u64>> {
        for (piece, words) in self.pieces.range(from / PIECE..) {
            let base = piece * PIECE;
            let mut at = from.max(base) - base;
            while at < PIECE {
                let (word, bit) = place(at);
                let ahead = words[word] >> bit;
                if ahead == 0 {
                    at = (at / 64 + 1) * 64;
                    continue;
                }
                let start = at + u64::from(ahead.trailing_zeros());
                let mut end = start;
                while end < PIECE && end - start < most && {
                    let (word, bit) = place(end);
                    words[word] >> bit & 1 == 1
                } {
                    end += 1;
                }
                return Some(base + start..base + end);
            }
        }
        None
    }

    /// The numbers of the pieces that have any block.
    pub(super) fn pieces(&self) -> impl Iterator<Item = u64> {
        self.pieces.keys().copied()
    }

    /// The blocks of a piece as bytes: bit 0 of byte 0 is the first.
    pub(super) fn piece(&self, piece: u64) -> Vec<u8> {
        let words = self.pieces.get(&piece);
        let words = words.into_iter().flat_map(|words| words.iter());
        let mut bytes: Vec<_> = words.flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(WORDS * 8, 0);
        bytes
    }

    /// Adds the blocks of a piece as [`Bitmap::piece`] gives them, as far as a disk of `size` bytes
    /// has them.
    pub(super) fn load(&mut self, piece: u64, bytes: &[u8], size: u64) {
        if bytes.iter().all(|byte| *byte == 0) {
            return;
        }
        let mut words = Box::new([0; WORDS]);
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let inside = size.div_ceil(BLOCK_SIZE).saturating_sub(piece * PIECE).min(PIECE);
        for (word, mask) in by_word(inside..PIECE) {
            words[word] &= !mask;
        }
        let count: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let other = Self { pieces: BTreeMap::from([(piece, words)]), count };
        self.add(&other);
    }
}

/// Bytes of a piece.
pub(super) const PIECE_BYTES: u64 = PIECE / 8;

/// The number of pieces of a disk.
pub(super) const fn pieces_of(size: u64) -> u64 {
    size.div_ceil(BLOCK_SIZE).div_ceil(PIECE)
}

fn place(at: u64) -> (usize, u32) {
    let word = usize::try_from(at / 64).unwrap_or(WORDS);
    (word, u32::try_from(at % 64).unwrap_or(0))
}

fn by_piece(blocks: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    (blocks.start / PIECE..blocks.end.div_ceil(PIECE)).map(move |piece| {
        let base = piece * PIECE;
        (piece, blocks.start.max(base) - base..blocks.end.min(base + PIECE) - base)
    })
}

fn by_word(bits: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    (bits.start / 64..bits.end.div_ceil(64)).map(move |word| {
        let base = word * 64;
        let low = bits.start.max(base) - base;
        let high = bits.end.min(base + 64) - base;
        let mask = (u64::MAX >> (64 - (high - low))) << low;
        (usize::try_from(word).unwrap_or(WORDS), mask)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SIZE: u64 = (3 * PIECE - 5) * BLOCK_SIZE + 512;

    fn all(bitmap: &Bitmap) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut from = 0;
        while let Some(run) = bitmap.next_run(from, 256) {
            assert!(!run.is_empty() && run.end - run.start <= 256);
            found.extend(run.clone());
            from = run.end;
        }
        assert_eq!(found.len() as u64, bitmap.count());
        found
    }

    #[test]
    fn partial_blocks_are_set_whole_and_not_cleared() {
        let mut bitmap = Bitmap::default();
        bitmap.set(ByteRange::new(4095, 2));
        assert_eq!(bitmap.next_run(0, 9), Some(0..2));
        bitmap.clear(ByteRange::new(1, 8191), SIZE);
        assert_eq!(bitmap.next_run(0, 9), Some(0..1));
        bitmap.clear(ByteRange::new(0, 4096), SIZE);
        assert!(bitmap.is_empty() && bitmap.pieces.is_empty());
        let last = SIZE / BLOCK_SIZE;
        bitmap.set(ByteRange::new(SIZE - 1, 1));
        assert_eq!(bitmap.next_run(0, 9), Some(last..last + 1));
        bitmap.clear(ByteRange::new(last * BLOCK_SIZE, 512), SIZE);
        assert!(bitmap.is_empty(), "the last block is short");
    }

    #[test]
    fn what_lies_behind_the_end_of_the_disk_is_not_loaded() {
        let mut bitmap = Bitmap::default();
        (0..4).for_each(|piece| bitmap.load(piece, &[0xff; 4096], SIZE));
        assert_eq!(bitmap.count(), SIZE.div_ceil(BLOCK_SIZE));
        assert_eq!(bitmap.next_run(3 * PIECE - 5, 9), Some(3 * PIECE - 5..3 * PIECE - 4));
        assert!(bitmap.pieces.get(&3).is_none_or(|words| words.iter().all(|word| *word == 0)));
    }

    proptest! {
        #[test]
        fn like_a_set(
            steps in proptest::collection::vec((0..3 * PIECE - 300, 1..300u64, 0..3u8), 1..20)
        ) {
            let mut bitmap = Bitmap::default();
            let mut model = BTreeSet::new();
            for (start, len, kind) in steps {
                let range = ByteRange::of_blocks(start..start + len);
                if kind == 0 {
                    bitmap.clear(range, SIZE);
                    model.retain(|block| !(start..start + len).contains(block));
                } else {
                    bitmap.set(range);
                    model.extend(start..start + len);
                }
            }
            prop_assert_eq!(all(&bitmap), model);
            let mut again = Bitmap::default();
            for piece in bitmap.pieces() {
                let bytes = bitmap.piece(piece);
                prop_assert_eq!(bytes.len() as u64, PIECE_BYTES);
                again.load(piece, &bytes, SIZE);
            }
            prop_assert_eq!(&again, &bitmap);
            again.add(&bitmap);
            prop_assert_eq!(again, bitmap);
        }
    }
}
