//! The checksums of a disk's blocks, in a file of their own. The bytes are drawn in
//! `docs/design/integrity.md`.

use holdfast_units::{BLOCK_SIZE, ResourceId};

use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, Head, get, get_u32, get_u64, put,
};

/// Blocks of the disk whose sums are in one page.
pub const BLOCKS_PER_PAGE: u64 = 1008;
/// Pages whose state is in one block.
pub const PAGES_PER_GROUP: u64 = 32_256;
/// Words of the state of a group, one bit a page.
pub const STATE_WORDS: usize = 504;

const SUMS: usize = 1008;
const BLOCK: u64 = BLOCK_LEN as u64;
const GROUP_BLOCKS: u64 = 2 + PAGES_PER_GROUP;

const AT_SIZE: usize = 40;
const AT_ALGORITHM: usize = 48;
const AT_FEATURES: usize = 52;
const AT_SEQUENCE: usize = 40;
const AT_FIELDS: usize = 64;
const CRC32C: u32 = 1;
const KNOWN_FEATURES: u32 = 0;

const _: () = assert!(AT_FIELDS + SUMS * 4 == BLOCK_LEN);
const _: () = assert!(AT_FIELDS + STATE_WORDS * 8 == BLOCK_LEN);
const _: () = assert!(STATE_WORDS as u64 * 64 == PAGES_PER_GROUP && SUMS as u64 == BLOCKS_PER_PAGE);

/// CRC-32C of 4096 zero bytes.
const ZERO_BLOCK: u32 = 0x98f9_4189;

/// The sum of a block of the disk: never 0, which says that there is none.
#[must_use]
pub fn block_sum(number: u64, data: &[u8]) -> u32 {
    of_place(number, crc32c::crc32c(data))
}

/// The sum of a block of 4096 zero bytes.
#[must_use]
pub fn zero_sum(number: u64) -> u32 {
    of_place(number, ZERO_BLOCK)
}

/// The place is mixed in by itself, so that the sums of many zero blocks cost nothing.
fn of_place(number: u64, crc: u32) -> u32 {
    (crc ^ crc32c::crc32c(&number.to_le_bytes())).max(1)
}

/// How many blocks a disk of so many bytes has.
#[must_use]
pub const fn block_count(size: u64) -> u64 {
    size / BLOCK_SIZE
}

/// How many pages they need.
#[must_use]
pub const fn page_count(size: u64) -> u64 {
    block_count(size).div_ceil(BLOCKS_PER_PAGE)
}

/// How many groups these are in.
#[must_use]
pub const fn group_count(size: u64) -> u64 {
    page_count(size).div_ceil(PAGES_PER_GROUP)
}

/// Where copy 0 or 1 of the header lies in the file.
#[must_use]
pub const fn header_offset(copy: usize) -> u64 {
    if copy == 0 { 0 } else { BLOCK }
}

/// Where copy 0 or 1 of the state of a group lies.
#[must_use]
pub const fn state_offset(group: u64, copy: usize) -> u64 {
    (2 + group * GROUP_BLOCKS + if copy == 0 { 0 } else { 1 }) * BLOCK
}

/// Where a page lies.
#[must_use]
pub const fn page_offset(page: u64) -> u64 {
    let (group, within) = (page / PAGES_PER_GROUP, page % PAGES_PER_GROUP);
    (2 + group * GROUP_BLOCKS + 2 + within) * BLOCK
}

/// How long the file is for a disk of so many bytes.
#[must_use]
pub const fn file_length(size: u64) -> u64 {
    match page_count(size) {
        0 => 2 * BLOCK,
        pages => page_offset(pages - 1) + BLOCK,
    }
}

/// What the header says. Both copies are the same; they are written once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChecksumHeader {
    /// Whose disk it is.
    pub resource: ResourceId,
    /// The size of the disk in bytes when the file was made.
    pub size: u64,
}

impl ChecksumHeader {
    /// The bytes of copy 0 or 1.
    #[must_use]
    pub fn encode(&self, copy: usize) -> Block {
        let mut block = [0; BLOCK_LEN];
        put(&mut block, AT_SIZE, self.size.to_le_bytes());
        put(&mut block, AT_ALGORITHM, CRC32C.to_le_bytes());
        put(&mut block, AT_FEATURES, KNOWN_FEATURES.to_le_bytes());
        block::seal(&mut block, head(BlockKind::Checksums, header_offset(copy), self.resource));
        block
    }

    /// Reads what was found in the place of copy 0 or 1.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(block: &Block, copy: usize) -> Result<Self, BlockError> {
        let resource = block::open(block, BlockKind::Checksums, header_offset(copy) / BLOCK)?;
        let unknown = get_u32(block, AT_FEATURES) & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(BlockError::Features { unknown });
        }
        if get_u32(block, AT_ALGORITHM) != CRC32C {
            return Err(BlockError::Content("its checksums are of an unknown kind"));
        }
        Ok(Self { resource, size: get_u64(block, AT_SIZE) })
    }
}

/// Which pages of a group can be believed: a bit for each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChecksumState {
    /// Up by one with each write; even in copy 0, odd in copy 1.
    pub sequence: u64,
    /// The bits, lowest page first.
    pub words: Box<[u64; STATE_WORDS]>,
}

impl ChecksumState {
    /// None can.
    #[must_use]
    pub fn blank() -> Self {
        Self { sequence: 0, words: Box::new([0; STATE_WORDS]) }
    }

    /// The copy that this one is written to.
    #[must_use]
    pub const fn copy(&self) -> usize {
        if self.sequence.is_multiple_of(2) { 0 } else { 1 }
    }

    /// Its bytes, for [`Self::copy`].
    #[must_use]
    pub fn encode(&self, resource: ResourceId, group: u64) -> Block {
        let mut block = [0; BLOCK_LEN];
        put(&mut block, AT_SEQUENCE, self.sequence.to_le_bytes());
        for (at, word) in (AT_FIELDS..).step_by(8).zip(self.words.iter()) {
            put(&mut block, at, word.to_le_bytes());
        }
        let offset = state_offset(group, self.copy());
        block::seal(&mut block, head(BlockKind::ChecksumState, offset, resource));
        block
    }

    /// Reads what was found in the place of copy 0 or 1.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(
        block: &Block,
        resource: ResourceId,
        group: u64,
        copy: usize,
    ) -> Result<Self, BlockError> {
        let offset = state_offset(group, copy);
        block::open_of(block, head(BlockKind::ChecksumState, offset, resource))?;
        let sequence = get_u64(block, AT_SEQUENCE);
        let mut state = Self { sequence, ..Self::blank() };
        if sequence >= block::MAX_SEQUENCE || state.copy() != copy {
            return Err(BlockError::Content("it has an impossible sequence number"));
        }
        for (at, word) in (AT_FIELDS..).step_by(8).zip(state.words.iter_mut()) {
            *word = get_u64(block, at);
        }
        Ok(state)
    }

    /// The state that counts, of two copies that were read. A copy that was written and cannot be used
    /// may have been the newer one: then nothing is believed.
    ///
    /// # Errors
    /// What is wrong with the copy because of which nothing is believed.
    pub fn newest(
        first: Result<Self, BlockError>,
        second: Result<Self, BlockError>,
    ) -> Result<Self, BlockError> {
        match (first, second) {
            (Ok(a), Ok(b)) => Ok(if b.sequence > a.sequence { b } else { a }),
            (Ok(one), Err(BlockError::Blank)) | (Err(BlockError::Blank), Ok(one)) => Ok(one),
            (Err(BlockError::Blank), Err(BlockError::Blank)) => Ok(Self::blank()),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }
}

/// The sums of the blocks of a page; 0: there is none.
pub type Sums = [u32; SUMS];

/// The bytes of a page.
#[must_use]
pub fn encode_page(sums: &Sums, resource: ResourceId, page: u64) -> Block {
    let mut block = [0; BLOCK_LEN];
    for (at, sum) in (AT_FIELDS..).step_by(4).zip(sums) {
        put(&mut block, at, sum.to_le_bytes());
    }
    block::seal(&mut block, head(BlockKind::ChecksumPage, page_offset(page), resource));
    block
}

/// Reads what was found in the place of a page.
///
/// # Errors
/// What is wrong with it.
pub fn decode_page(
    block: &Block,
    resource: ResourceId,
    page: u64,
) -> Result<Box<Sums>, BlockError> {
    block::open_of(block, head(BlockKind::ChecksumPage, page_offset(page), resource))?;
    let mut sums = Box::new([0; SUMS]);
    for (at, sum) in (AT_FIELDS..).step_by(4).zip(sums.iter_mut()) {
        *sum = u32::from_le_bytes(get(block, at));
    }
    Ok(sums)
}

/// The number of a block is its place in the file.
const fn head(kind: BlockKind, offset: u64, resource: ResourceId) -> Head {
    Head { kind, number: offset / BLOCK, resource }
}

#[cfg(test)]
mod tests;
