use crate::BLOCK_SIZE;
use std::fmt;

/// A stretch of a device in bytes: `offset..offset + len`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteRange {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
}

impl ByteRange {
    /// `len` bytes from `offset`.
    #[must_use]
    pub const fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// The first byte after it. Saturates, so that a range off the wire cannot overflow.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Whether it has no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether the two share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// Whether all of `other` lies in this one.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }

    /// Whether both ends are multiples of [`BLOCK_SIZE`].
    #[must_use]
    pub const fn is_aligned(self) -> bool {
        self.offset.is_multiple_of(BLOCK_SIZE) && self.len.is_multiple_of(BLOCK_SIZE)
    }

    /// The smallest range of whole blocks that holds this one.
    #[must_use]
    pub const fn aligned_out(self) -> Self {
        let start = self.offset / BLOCK_SIZE * BLOCK_SIZE;
        let end = self.end().div_ceil(BLOCK_SIZE) * BLOCK_SIZE;
        Self::new(start, end - start)
    }

    /// The numbers of the blocks that it touches.
    #[must_use]
    pub const fn blocks(self) -> std::ops::Range<u64> {
        if self.len == 0 {
            return 0..0;
        }
        self.offset / BLOCK_SIZE..self.end().div_ceil(BLOCK_SIZE)
    }

    /// The range of these blocks.
    #[must_use]
    pub const fn of_blocks(blocks: std::ops::Range<u64>) -> Self {
        Self::new(blocks.start * BLOCK_SIZE, (blocks.end - blocks.start) * BLOCK_SIZE)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::ByteRange;

    #[test]
    fn ends_touch_but_do_not_overlap() {
        let a = ByteRange::new(0, 4096);
        assert!(!a.overlaps(ByteRange::new(4096, 1)));
        assert!(a.overlaps(ByteRange::new(4095, 1)));
        assert!(!ByteRange::new(u64::MAX, u64::MAX).overlaps(a));
    }

    #[test]
    fn aligned_out_covers_partial_blocks() {
        assert_eq!(ByteRange::new(4095, 2).aligned_out(), ByteRange::new(0, 8192));
        assert_eq!(ByteRange::new(4096, 4096).aligned_out(), ByteRange::new(4096, 4096));
        assert_eq!(ByteRange::new(4095, 2).blocks(), 0..2);
    }
}
