//! Digests of blocks: what nodes tell each other of their copies instead of the data.

use crate::event::{DiskOutcome, IoFailure};
use holdfast_units::{BLOCK_SIZE, ByteRange};
use holdfast_wire::Digest;
use std::sync::LazyLock;

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE, "they are the same");

/// The digest of a block of zeroes.
static ZERO: LazyLock<Digest> = LazyLock::new(|| digest_of(&[0; BLOCK]));

/// Stands for the digest of a block that could not be read. No block is known to have it.
pub(crate) const UNREAD: Digest = [0; 32];

/// The digest of a block.
pub(crate) fn digest_of(block: &[u8]) -> Digest {
    *blake3::hash(block).as_bytes()
}

/// Whether a read that allowed holes gave the first part of its range only.
pub(crate) fn is_part(range: ByteRange, read: &Result<DiskOutcome, IoFailure>) -> bool {
    match read {
        Ok(DiskOutcome::Data(data) | DiskOutcome::Partial { data, .. }) => {
            (data.len() as u64) < range.len
        }
        _ => false,
    }
}

/// How many blocks of a range the disk could not give.
pub(crate) fn unreadable(read: &Result<DiskOutcome, IoFailure>) -> u64 {
    match read {
        Ok(DiskOutcome::Partial { bad, .. }) => bad.iter().map(|bad| bad.len / BLOCK_SIZE).sum(),
        _ => 0,
    }
}

/// One copy of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Digests {
    /// All of it is zero.
    Zeroes,
    /// One digest for each block.
    Blocks(Vec<Digest>),
}

impl Digests {
    /// Those of a read of the whole range; `None` when it failed.
    pub(crate) fn of(range: ByteRange, read: &Result<DiskOutcome, IoFailure>) -> Option<Self> {
        match read {
            Ok(DiskOutcome::Zeroes) => Some(Self::Zeroes),
            Ok(DiskOutcome::Data(data)) if data.len() as u64 == range.len => {
                Some(Self::Blocks(data.chunks(BLOCK).map(digest_of).collect()))
            }
            Ok(DiskOutcome::Partial { data, bad, .. }) if data.len() as u64 == range.len => {
                let is_bad = |block: u64| bad.iter().any(|bad| bad.blocks().contains(&block));
                let blocks = range.blocks().zip(data.chunks(BLOCK));
                let digest = |(block, data)| if is_bad(block) { UNREAD } else { digest_of(data) };
                Some(Self::Blocks(blocks.map(digest).collect()))
            }
            _ => None,
        }
    }

    /// What a peer told of a range of so many blocks; `None` when it is not that.
    pub(crate) fn told(digests: Vec<Digest>, blocks: usize) -> Option<Self> {
        match digests.len() {
            0 => Some(Self::Zeroes),
            n if n == blocks => Some(Self::Blocks(digests)),
            _ => None,
        }
    }

    /// As they are told.
    pub(crate) fn into_wire(self) -> Vec<Digest> {
        match self {
            Self::Zeroes => Vec::new(),
            Self::Blocks(digests) => digests,
        }
    }

    /// That of one block; [`UNREAD`] where it could not be read.
    pub(crate) fn get(&self, block: usize) -> Digest {
        match self {
            Self::Blocks(digests) => digests.get(block).copied().unwrap_or(*ZERO),
            Self::Zeroes => *ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Digests, UNREAD};
    use crate::event::DiskOutcome;
    use holdfast_units::ByteRange;

    #[test]
    fn a_hole_and_zeroes_are_the_same_and_one_bit_is_not() {
        let range = ByteRange::new(0, 2 * BLOCK as u64);
        let of = |data: Vec<u8>| Digests::of(range, &Ok(DiskOutcome::Data(data.into()))).unwrap();
        let zeroes = of(vec![0; 2 * BLOCK]);
        let mut flipped = vec![0; 2 * BLOCK];
        flipped[BLOCK + 7] = 1;
        let flipped = of(flipped);
        for block in 0..2 {
            assert_eq!(Digests::Zeroes.get(block), zeroes.get(block));
        }
        assert_eq!(flipped.get(0), zeroes.get(0));
        assert_ne!(flipped.get(1), zeroes.get(1));
        assert_eq!(Digests::of(range, &Ok(DiskOutcome::Data(vec![0; BLOCK].into()))), None);
        let bad = vec![ByteRange::new(BLOCK as u64, BLOCK as u64)];
        let partial =
            DiskOutcome::Partial { data: vec![0; 2 * BLOCK].into(), bad, wrong: Vec::new() };
        let partial = Digests::of(range, &Ok(partial)).unwrap();
        assert_eq!((partial.get(0), partial.get(1)), (zeroes.get(0), UNREAD));
        assert_eq!(Digests::told(zeroes.into_wire(), 3), None, "another number of blocks");
    }
}
