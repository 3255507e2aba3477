//! What a block holds, kept small: every sector of 512 bytes says which write it came from and where
//! it belongs, so that a whole payload is told by eight numbers.

use bytes::Bytes;
use holdfast_units::{BLOCK_SIZE, ByteRange};

/// How many sectors a block has. A sector is what a disk writes or does not write as a whole.
pub(crate) const SECTORS: usize = 8;
const SECTOR_SIZE: usize = 512;
const BLOCK_BYTES: usize = SECTORS * SECTOR_SIZE;

/// The number of the write that a sector came from; 0 is zeroes.
pub(crate) type Stamp = u64;

/// The content of one block: the stamp of each sector. Sectors differ only after a torn write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block(pub(crate) [Stamp; SECTORS]);

impl Block {
    /// All zeroes.
    pub(crate) const ZERO: Self = Self([0; SECTORS]);

    /// A block written in one piece.
    pub(crate) fn whole(stamp: Stamp) -> Self {
        Self([stamp; SECTORS])
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.iter().all(|stamp| *stamp == self.0[0]) {
            write!(f, "w{}", self.0[0])
        } else {
            write!(f, "torn{:?}", self.0)
        }
    }
}

/// The payload of a write to `range` by the client's write number `stamp`.
pub(crate) fn payload(range: ByteRange, stamp: Stamp) -> Bytes {
    render(range, |_| Block::whole(stamp))
}

/// The bytes of `range`, given what each block holds.
pub(crate) fn render(range: ByteRange, content: impl Fn(u64) -> Block) -> Bytes {
    let mut bytes = vec![0; usize::try_from(range.len).expect("a request is small")];
    for (block, chunk) in range.blocks().zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        let content = content(block);
        if content == Block::ZERO {
            continue;
        }
        for (sector, stamp) in content.0.iter().enumerate().filter(|(_, stamp)| **stamp != 0) {
            let at = sector * SECTOR_SIZE;
            chunk[at..at + 8].copy_from_slice(&stamp.to_le_bytes());
            let place = block * SECTORS as u64 + sector as u64;
            chunk[at + 8..at + 16].copy_from_slice(&place.to_le_bytes());
        }
    }
    Bytes::from(bytes)
}

/// What each block of `range` holds by these bytes.
///
/// # Errors
/// Says what is wrong when the length does not fit, or when a sector belongs somewhere else.
pub(crate) fn parse(range: ByteRange, bytes: &[u8]) -> Result<Vec<Block>, String> {
    if bytes.len() as u64 != range.len || !range.len.is_multiple_of(BLOCK_SIZE) {
        return Err(format!("{} bytes for the range {range}", bytes.len()));
    }
    let number = |at: &[u8]| u64::from_le_bytes(at.try_into().expect("eight bytes"));
    let mut blocks = Vec::with_capacity(bytes.len() / BLOCK_BYTES);
    for (block, chunk) in range.blocks().zip(bytes.chunks_exact(BLOCK_BYTES)) {
        let mut content = Block::ZERO;
        for (sector, stamp) in content.0.iter_mut().enumerate() {
            let at = sector * SECTOR_SIZE;
            *stamp = number(&chunk[at..at + 8]);
            let place = number(&chunk[at + 8..at + 16]);
            if *stamp != 0 && place != block * SECTORS as u64 + sector as u64 {
                let other = place / SECTORS as u64;
                return Err(format!("block {block} was given the data of block {other}"));
            }
        }
        blocks.push(content);
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::{Block, parse, payload, render};
    use holdfast_units::ByteRange;

    #[test]
    fn a_payload_is_read_back_and_knows_its_place() {
        let range = ByteRange::of_blocks(5..8);
        let bytes = payload(range, 77);
        assert_eq!(parse(range, &bytes), Ok(vec![Block::whole(77); 3]));
        assert!(parse(ByteRange::of_blocks(6..9), &bytes).is_err());
        assert!(parse(ByteRange::of_blocks(5..7), &bytes).is_err());
        let mut torn = Block::whole(3);
        torn.0[4] = 0;
        let bytes = render(ByteRange::of_blocks(1..2), |_| torn);
        assert_eq!(parse(ByteRange::of_blocks(1..2), &bytes), Ok(vec![torn]));
    }
}
